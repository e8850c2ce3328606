"""Whether the process lives, and whether it can do its work."""

from __future__ import annotations

import asyncio
from typing import Literal

import orjson
from fastapi import APIRouter, Request
from pydantic import BaseModel
from sqlalchemy.exc import SQLAlchemyError
from starlette.responses import Response

from headrace.database import current_revision, head_revision

router = APIRouter(tags=["Health"])


class Health(BaseModel):
    """That the process answers."""

    status: Literal["ok"]


class Readiness(BaseModel):
    """Whether jobs can be accepted, and what of that which it takes is there."""

    status: Literal["ready", "not ready"]
    database: Literal["ok", "not migrated", "away"]
    redis: Literal["ok", "away"]


@router.get("/healthz", summary="Is the process alive?", responses={200: {"model": Health}})
async def healthz() -> Response:
    """Answer, whatever else is away."""
    return Response(b'{"status":"ok"}', media_type="application/json")


@router.get(
    "/readyz",
    summary="Can it accept jobs?",
    responses={200: {"model": Readiness}, 503: {"model": Readiness, "description": "Postgres is away or not migrated"}},
)
async def readyz(request: Request) -> Response:
    """Tell whether Postgres answers and has the schema of this version, and whether the live wire works.

    Without the live wire jobs are accepted all the same, so it alone does not make the answer 503.
    """
    try:
        async with asyncio.timeout(5):
            revision = await current_revision(request.state.database)
        database = "ok" if revision == head_revision() else "not migrated"
    except (SQLAlchemyError, TimeoutError):
        database = "away"
    redis = "ok" if request.state.hub.connected else "away"
    ready = database == "ok"
    body = {"status": "ready" if ready else "not ready", "database": database, "redis": redis}
    return Response(orjson.dumps(body), 200 if ready else 503, media_type="application/json")
