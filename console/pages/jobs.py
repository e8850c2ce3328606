"""The list of jobs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime

from fastapi import APIRouter, Request
from starlette.responses import Response

from console.client import ApiError
from console.render import page
from console.security import Reading

router = APIRouter()

STATUSES = ("queued", "running", "completed", "failed", "cancelled", "expired")
FORMATS = ("chat", "responses")
SPANS = {"15m": "Last 15 minutes", "1h": "Last hour", "1d": "Last 24 hours", "7d": "Last 7 days"}
_SECONDS = {"15m": 900, "1h": 3600, "1d": 86_400, "7d": 7 * 86_400}
# Filters that the API has under the same name.
_PASSED = ("status", "model", "format", "batch_id", "agent_id")
# The console's field of each parameter that the API may refuse.
_FIELDS = {"created_after": "from", "created_before": "to"}

# A list's jobs carry their whole results, so that a page is small.
_PAGE = 20
_LIVE_SECONDS = 3


class _FilterError(ValueError):
    """A filter that the console cannot read."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


@router.get("/jobs")
async def show_jobs(request: Request, api: Reading) -> Response:
    """Show the newest jobs that fit the filters. The first page refreshes itself."""
    query = request.query_params
    jobs, problem, field, status = None, "", "", 200
    try:
        jobs = await api.get("/jobs", limit=_PAGE, after=query.get("after"), **_filters(query))
    except _FilterError as error:
        problem, field, status = str(error), error.field, 400
    except ApiError as error:
        if error.status != 400:
            raise
        problem, status = error.message, 400
        param = error.param or ""
        field = "metadata" if param.startswith("metadata") else _FIELDS.get(param, param)
    asked = [name for name, value in query.items() if value and name != "after"]
    return page(
        request,
        "jobs.html",
        status=status,
        jobs=jobs,
        problem=problem,
        field=field,
        filtered=bool(asked),
        more_filters=bool(set(asked) - {"status", "model", "format", "span"}),
        statuses=[(name, name) for name in STATUSES],
        formats=[(name, name) for name in FORMATS],
        spans=SPANS.items(),
        live=None if query.get("after") or problem else _LIVE_SECONDS,
    )


def _filters(query: Mapping[str, str]) -> dict[str, str | int | None]:
    """Return the API's parameters of the page's filters.

    Raises:
        _FilterError: A filter cannot be read.
    """
    asked: dict[str, str | int | None] = {name: query.get(name, "").strip() for name in _PASSED}
    seconds = _SECONDS.get(query.get("span", ""))
    if seconds is not None:
        asked["created_after"] = int(time.time()) - seconds
    for name, parameter in (("from", "created_after"), ("to", "created_before")):
        if value := query.get(name, ""):
            asked[parameter] = _moment(name, value)
    for pair in filter(None, map(str.strip, query.get("metadata", "").split(","))):
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise _FilterError("metadata", "Write metadata as key=value, and several of them with commas between.")
        asked[f"metadata[{key.strip()}]"] = value.strip()
    return asked


def _moment(field: str, text: str) -> int:
    """Return the Unix seconds of a local date and time in UTC, as a browser's field sends it."""
    try:
        return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())
    except (ValueError, OverflowError) as error:
        raise _FilterError(field, "Write the time as 2026-11-28T15:00, in UTC.") from error
