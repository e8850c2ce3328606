"""One job: its state, attempts, request, answer and webhooks. Its text streams in while it runs."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from console.client import Api, ApiError
from console.events import pass_events
from console.forms import read_form
from console.render import local_path, page, redirect
from console.security import Acting, Reading, Writing
from console.transcript import Turn, turns_of_answer, turns_of_items, turns_of_messages

router = APIRouter()

FINAL = frozenset({"completed", "failed", "cancelled", "expired"})
"""The states that a job stays in."""

# Messages or items of the request that a page shows: the last ones, and earlier ones on further pages.
_PAGE = 50
_LIVE_SECONDS = 3


@dataclass(frozen=True, slots=True)
class Input:
    """A page of what a job's model reads."""

    turns: list[Turn]
    earlier: str | None
    """The id before which earlier messages stand, if there are any."""


@router.get("/jobs/{job_id}")
async def show_job(request: Request, api: Reading, job_id: str) -> Response:
    """Show a job. The page refreshes itself until the job and its webhooks have ended."""
    job, deliveries = await asyncio.gather(api.get(f"/jobs/{job_id}"), api.get(f"/jobs/{job_id}/webhook-deliveries"))
    asked = await read_input(api, job, before=request.query_params.get("before"))
    ended = job["status"] in FINAL
    waits = any(delivery["status"] == "pending" for delivery in deliveries["data"])
    return page(
        request,
        "job.html",
        job=job,
        ended=ended,
        times=times_of(job),
        asked=asked,
        answer=turns_of_answer(job),
        deliveries=deliveries["data"],
        live=None if ended and not waits else _LIVE_SECONDS,
    )


@router.get("/jobs/{job_id}/events")
async def pass_job_events(request: Request, api: Reading, job_id: str) -> Response:
    """Pass on the events of a job."""
    return await pass_events(request, api, f"/jobs/{job_id}/events")


@router.post("/jobs/{job_id}/cancel")
async def cancel(request: Request, session: Acting, api: Writing, job_id: str) -> Response:
    """Cancel a job. One that has ended meanwhile stays as it is."""
    job = await api.post(f"/jobs/{job_id}/cancel")
    if job["status"] == "cancelled":
        session.say("The job is cancelled.")
    else:
        session.say(f"The job is {job['status']}: it ended before it could be cancelled.", "error")
    return redirect(local_path(str((await read_form(request)).get("back", "")), f"/jobs/{job_id}"))


@router.post("/jobs/{job_id}/erase")
async def erase(session: Acting, api: Writing, job_id: str) -> Response:
    """Erase a job's content."""
    await api.delete(f"/jobs/{job_id}")
    session.say(f"{job_id} is erased. Its usage stays.")
    return redirect("/jobs")


async def read_input(api: Api, job: Mapping[str, Any], *, before: str | None = None) -> Input | None:
    """Return the last messages or items that a job's model reads, or None where they are not stored."""
    try:
        found = await api.get(input_path(job), order="desc", limit=_PAGE, after=before)
    except ApiError as error:
        if error.status != 404:
            raise
        return None
    oldest_first = found["data"][::-1]
    turns = turns_of_messages(oldest_first) if job["format"] == "chat" else turns_of_items(oldest_first)
    return Input(turns, found["last_id"] if found["has_more"] else None)


def input_path(job: Mapping[str, Any]) -> str:
    """Return the API's path of the messages or items that a job's model reads."""
    digits = str(job["id"]).removeprefix("job_")
    if job["format"] == "chat":
        return f"/chat/completions/chatcmpl-{digits}/messages"
    return f"/responses/resp_{digits}/input_items"


@dataclass(frozen=True, slots=True)
class Times:
    """Spans of a job in seconds, each None before it has ended. The API counts a job's times in whole seconds."""

    queued: float | None
    first_delta: float | None
    whole: float | None


def times_of(job: Mapping[str, Any]) -> Times:
    """Return how long a job waited for a worker, for its first delta, and for its end."""

    def until(name: str) -> float | None:
        return None if job[name] is None else max(0.0, float(job[name] - job["created_at"]))

    return Times(until("started_at"), until("first_token_at"), until("finished_at"))
