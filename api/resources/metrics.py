"""Metrics of this API process, for a scraper that has a key. The metrics port serves the same without a key."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from api.http.authentication import MetricsReader
from headrace.telemetry.exposition import MEDIA_TYPE, render_metrics

router = APIRouter(tags=["Health"])


@router.get(
    "/metrics",
    summary="Metrics of this process",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(_: MetricsReader) -> Response:
    """Return the metrics of the API process that answers, in Prometheus's text format."""
    return Response(render_metrics("api"), media_type=MEDIA_TYPE)
