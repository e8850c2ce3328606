"""The first page: queues, rates, errors, spend, and what runs longest."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Request
from markupsafe import Markup
from starlette.responses import Response

from console.plots import Stacked, draw
from console.render import number, page
from console.security import Reading, SignedIn

router = APIRouter()

_ENDS = ("completed", "failed", "expired", "cancelled")


@router.get("/")
async def show_overview(request: Request, session: SignedIn, api: Reading) -> Response:
    """Show the service's state to a key that may read it, and the account's own jobs to any key.

    What an unavailable store holds is null in that state.
    """
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    usage, jobs, failed, batches, service = await asyncio.gather(
        api.get("/usage", start=int(today.timestamp())),
        api.get("/jobs", limit=8),
        api.get("/jobs", status="failed", limit=5),
        api.get("/batches", limit=5),
        api.get("/status") if session.may("metrics:read") else _nothing(),
    )
    return page(
        request,
        "overview.html",
        service=service,
        ended=_ended(service["rates"]["slots"]) if service and service["rates"] else None,
        today=_summed(usage["data"]),
        jobs=jobs["data"],
        failed=failed["data"],
        batches=batches["data"],
    )


def _ended(slots: Sequence[Mapping[str, Any]]) -> Markup:
    """Return a plot of the jobs that ended in the last minutes, by how."""
    columns = [datetime.fromtimestamp(slot["at"], UTC).strftime("%H:%M:%S") for slot in slots]
    series = {state: [slot[state] for slot in slots] for state in _ENDS if any(slot[state] for slot in slots)}
    return draw(Stacked("Jobs that ended, in steps of ten seconds (UTC)", columns, series), number)


async def _nothing() -> None:
    """Stand for an answer that the key may not have."""


def _summed(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return the requests, tokens and USD of usage rows."""
    return {
        "requests": sum(row["requests"] for row in rows),
        "tokens": sum(row["total_tokens"] for row in rows),
        "cost": sum(float(row["cost"] or 0) for row in rows),
    }
