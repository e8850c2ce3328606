"""One batch: its progress and pace, its failed lines, its results, its files, and its webhook."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from console.client import Api, ApiError
from console.downloads import download
from console.pages.batches import FINAL
from console.render import page, redirect
from console.security import Acting, Reading, Writing

router = APIRouter()

FILES = {"input": "input_file_id", "output": "output_file_id", "errors": "error_file_id"}
"""The batch's field of each file, by its name in the console's paths."""

# Lines of a page of results, and of failed lines.
_RESULTS = 10
_FAILED = 10
# Seconds between two refreshes of a batch that runs, and seconds that its pace may take to arrive.
_LIVE_SECONDS = 2
_PACE_SECONDS = 3.0
# Characters of an answer that the list of results shows.
_EXCERPT = 240


@router.get("/batches/{batch_id}")
async def show_batch(request: Request, api: Reading, batch_id: str) -> Response:
    """Show a batch. The page refreshes itself until the batch and its webhook have ended."""
    batch = await api.get(f"/batches/{batch_id}")
    ended = batch["status"] in FINAL
    query = request.query_params
    pace, failed, results, files, deliveries = await asyncio.gather(
        _pace(api, batch),
        _failed_lines(api, batch, query.get("failed_after")),
        api.get(f"/batches/{batch_id}/results", limit=_RESULTS, after=query.get("after")),
        _files(api, batch),
        _deliveries(api, batch),
    )
    for line in results["data"]:
        line["summary"] = _summary(line)
    waits = any(delivery["status"] == "pending" for delivery in deliveries)
    return page(
        request,
        "batch.html",
        batch=batch,
        ended=ended,
        pace=pace,
        estimate=_estimate(batch),
        seconds=_running_seconds(batch),
        failed=failed,
        results=results,
        files=files,
        deliveries=deliveries,
        live=_LIVE_SECONDS if not ended or waits else None,
    )


@router.get("/batches/{batch_id}/files/{name}")
async def download_file(request: Request, api: Reading, batch_id: str, name: str) -> Response:
    """Send the input, the output or the errors of a batch as a file."""
    batch = await api.get(f"/batches/{batch_id}")
    file_id = batch.get(FILES.get(name, ""))
    if file_id is None:
        raise HTTPException(404)
    return await download(request, api, f"/files/{file_id}/content")


@router.post("/batches/{batch_id}/cancel")
async def cancel(session: Acting, api: Writing, batch_id: str) -> Response:
    """Cancel a batch. One that has ended meanwhile stays as it is."""
    try:
        await api.post(f"/batches/{batch_id}/cancel")
    except ApiError as error:
        if error.status != 409:
            raise
        session.say(error.message, "error")
    else:
        session.say("The batch is being cancelled. Lines that have ended stay in its output.")
    return redirect(f"/batches/{batch_id}")


async def _pace(api: Api, batch: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the pace of a running batch, from the first of its events, or None if no event arrives in time."""
    if batch["status"] in FINAL:
        return None
    try:
        async with (
            asyncio.timeout(_PACE_SECONDS),
            api.stream(f"/batches/{batch['id']}/events") as events,
        ):
            async for line in events.aiter_lines():
                if line.startswith("data:"):
                    progress: dict[str, Any] = json.loads(line.removeprefix("data:"))
                    return progress if progress.get("object") == "batch.progress" else None
    except TimeoutError:
        pass
    except ApiError as error:
        if error.status != 429:  # the key has its most subscribers
            raise
    return None


async def _failed_lines(api: Api, batch: Mapping[str, Any], after: str | None) -> dict[str, Any] | None:
    """Return a page of the lines that failed, newest first, or None where the API cannot list them in time."""
    if not batch["request_counts"]["failed"]:
        return {"data": [], "has_more": False, "last_id": None}
    try:
        failed: dict[str, Any] = await api.get(
            "/jobs", batch_id=batch["id"], status="failed", limit=_FAILED, after=after
        )
    except ApiError as error:
        if error.code != "list_too_long":
            raise
        return None
    return failed


async def _files(api: Api, batch: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the batch's files with their names in the console's paths. Those that are deleted have no size."""

    async def look(name: str, file_id: str) -> dict[str, Any]:
        try:
            return {"name": name, **await api.get(f"/files/{file_id}")}
        except ApiError as error:
            if error.status != 404:
                raise
            return {"name": name, "id": file_id, "filename": None}

    named = [(name, batch[field]) for name, field in FILES.items() if batch[field] is not None]
    return await asyncio.gather(*(look(name, file_id) for name, file_id in named))


async def _deliveries(api: Api, batch: Mapping[str, Any]) -> Sequence[dict[str, Any]]:
    if not batch["webhook"]:
        return []
    deliveries: Sequence[dict[str, Any]] = (await api.get(f"/batches/{batch['id']}/webhook-deliveries"))["data"]
    return deliveries


def _estimate(batch: Mapping[str, Any]) -> Decimal | None:
    """Return what the whole batch will cost if the other lines cost as much as those that have ended."""
    counts, cost = batch["request_counts"], batch["cost"]
    ended = counts["completed"] + counts["failed"]
    if batch["status"] in FINAL or cost is None or not ended:
        return None
    return Decimal(cost) / int(ended) * int(counts["total"])


def _running_seconds(batch: Mapping[str, Any]) -> float | None:
    """Return how long a batch that has ended took."""
    end = batch[f"{batch['status']}_at"] if batch["status"] in FINAL else None
    return None if end is None else end - batch["created_at"]


def _summary(line: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a list shows of a line that has ended: its job, the beginning of its text, and its tokens."""
    response = line["response"] or {}
    body = response.get("body") or {}
    error = body.get("error") or line["error"]
    usage = body.get("usage") or {}
    text = str(error.get("message")) if error else _text(body)
    return {
        "job_id": "job_" + line["id"].removeprefix("batch_req_"),
        "status": "failed" if error else "completed",
        "text": text[:_EXCERPT] + ("…" if len(text) > _EXCERPT else ""),
        "tokens": usage.get("total_tokens"),
    }


def _text(body: Mapping[str, Any]) -> str:
    """Return the text of a chat completion or of a response."""
    parts = [str((choice.get("message") or {}).get("content") or "") for choice in body.get("choices") or ()]
    for item in body.get("output") or ():
        parts += [str(part["text"]) for part in item.get("content") or () if part.get("text")]
    return "\n".join(filter(None, parts))
