"""Batches in OpenAI's shape, and their results and progress while they run."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from functools import partial
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Query
from pydantic import BaseModel
from starlette.responses import Response

from api.http.authentication import Authenticated
from api.http.body import read_body
from api.http.errors import render_json
from api.http.idempotency import Change, earlier_id, replay_headers, resource_id
from api.http.pages import Limit, Page, after_id, check_after, render_page
from api.http.query import DESCRIBED_METADATA, MetadataFilter
from api.http.request import ApiRequest
from api.http.sse import PING, EventStream, Write, render_error_event, render_event
from api.http.subscribers import RETRY_AT_ONCE
from api.jobs.tracing import trace_submission
from api.resources.webhooks import WebhookDeliveryList, render_deliveries, resend
from headrace.batches import queries
from headrace.batches.batch_object import (
    Batch,
    BatchProgress,
    find_batch,
    render_batch,
    render_progress,
)
from headrace.batches.ended import has_line, list_ended
from headrace.batches.request import BatchRequest, parse_batch_request
from headrace.batches.results import render_line
from headrace.batches.state import BatchState
from headrace.errors import AuthenticationError, ConflictError, HeadraceError, invalid_parameter, shorten
from headrace.files.file_object import get_file, no_such_file
from headrace.files.queries import FileWriter
from headrace.files.quota import check_file_quota
from headrace.formats.chat.validation import check_metadata
from headrace.ids import batch_line_id, is_id, job_id_of_line, new_id
from headrace.jobs.sql.lists import PAGE_BYTES
from headrace.keys.principal import Principal
from headrace.queue import LINES
from headrace.runtime.chores import wait_for
from headrace.runtime.offload import offloaded
from headrace.stores.connections import Row
from headrace.webhooks.acceptance import accept_webhook
from headrace.webhooks.queries import list_deliveries

router = APIRouter(prefix="/batches", tags=["Batches"])

# Seconds between two looks at a batch for a subscriber.
_LOOK_SECONDS = 0.5
# Seconds for which the input of a batch without a file is kept.
_INLINE_SECONDS = 30 * 86_400


class LineResponse(BaseModel):
    """The answer to a line: a completion, a response, or an error."""

    status_code: int
    request_id: str
    body: dict[str, Any]


class LineError(BaseModel):
    """The reason why a line has no answer."""

    code: str | None
    message: str | None


class BatchResult(BaseModel):
    """A line that has ended, as in the output files."""

    id: str
    custom_id: str
    response: LineResponse | None
    error: LineError | None


class BatchResults(Page[BatchResult]):
    """A page of lines that have ended."""


class BatchList(Page[Batch]):
    """A page of batches."""


@router.post("", summary="Create a batch", responses={200: {"model": Batch}})
async def create_batch(request: ApiRequest, principal: Authenticated) -> Response:
    """Run the requests of a file or of the body within a window. All requests are checked before the first runs."""
    body = await read_body(request)
    asked = await offloaded(len(body), parse_batch_request, body)
    database, settings, account_id = request.state["database"], request.state["settings"], principal.account_id
    if asked.webhook is not None:
        await accept_webhook(settings, database, account_id, asked.webhook)
    earlier = await earlier_id(request, principal, body)
    if earlier is not None and (batch := await queries.get_batch(database, earlier, account_id)) is not None:
        return render_json(render_batch(batch), replay_headers(repeated=True))
    await _check(request, principal, asked)
    batch_id, _ = await resource_id(request, principal, new_id("batch"), body)
    file_id = asked.input_file_id or await _store_inline(request, principal, asked.endpoint, asked.requests or [])
    cancel = partial(queries.cancel_batch, database, batch_id, account_id)
    new = _new_batch(request, asked, batch_id, file_id, principal)
    async with request.state["cancellations"].answering(request, batch_id, cancel) as made:
        span = trace_submission(
            batch_id,
            LINES,
            account_id=account_id,
            parent=new.trace_context,
            details={"headrace.endpoint": new.endpoint},
        )
        with span or contextlib.nullcontext():
            if span is not None:
                new = replace(new, trace_context=span.context)
            if not await queries.create_batch(database, new, most=settings.batches_in_progress):
                raise no_such_file(file_id, param="input_file_id")
        made()
        request.state["publisher"].call_scheduler()
        batch = await find_batch(database, batch_id, account_id)
    return render_json(render_batch(batch))


async def _check(request: ApiRequest, principal: Principal, asked: BatchRequest) -> None:
    """Check the conditions that the types cannot express.

    Raises:
        InvalidRequestError: The metadata has a character that Postgres cannot store.
        NotFoundError: The account has no such file for a batch.
        RateLimitError: The account has too many batches that have not ended.
    """
    database, most = request.state["database"], request.state["settings"].batches_in_progress
    await queries.check_active(database.relaxed, principal.account_id, most=most)
    check_metadata(asked.metadata)
    if asked.input_file_id is not None:
        file = await get_file(database, asked.input_file_id, principal.account_id, param="input_file_id")
        if file.purpose != "batch":
            raise no_such_file(asked.input_file_id, param="input_file_id")


def _new_batch(
    request: ApiRequest, asked: BatchRequest, batch_id: str, file_id: str, principal: Principal
) -> queries.NewBatch:
    return queries.NewBatch(
        id=batch_id,
        account_id=principal.account_id,
        key_id=principal.key_id,
        endpoint=asked.endpoint,
        completion_window=asked.completion_window,
        seconds=asked.window_seconds,
        input_file_id=file_id,
        output_seconds=None if asked.output_expires_after is None else asked.output_expires_after.seconds,
        metadata=asked.metadata,
        webhook=asked.webhook,
        trace_context=request.state["trace_context"],
    )


async def _store_inline(request: ApiRequest, principal: Principal, endpoint: str, lines: list[dict[str, Any]]) -> str:
    """Store the requests of a body as an input file, and return its id."""
    state, common = request.state, {"method": "POST", "url": endpoint}
    await check_file_quota(state["database"], principal.account_id, state["settings"], files=1, param="requests")
    writer = FileWriter(state["database"], account_id=principal.account_id, purpose="batch")
    for at in range(0, len(lines), 100):
        await writer.write(b"".join(orjson.dumps(common | line) + b"\n" for line in lines[at : at + 100]))
    await writer.close(filename="requests.jsonl", seconds=_INLINE_SECONDS)
    return writer.file_id


@router.get("", summary="List batches", responses={200: {"model": BatchList}}, openapi_extra=DESCRIBED_METADATA)
async def list_batches(
    request: ApiRequest,
    principal: Authenticated,
    metadata: MetadataFilter,
    after: Annotated[str | None, after_id("batch_")] = None,
    limit: Limit = 20,
) -> Response:
    """List the account's batches, newest first. `metadata[key]=value` narrows the list."""
    check_after(after, "batch")
    rows = await queries.list_batches(
        request.state["database"], principal.account_id, after=after, limit=limit + 1, metadata=metadata
    )
    return render_page([render_batch(row) for row in rows], limit=limit)


@router.get("/{batch_id}", summary="Get a batch", responses={200: {"model": Batch}})
async def get_batch(request: ApiRequest, principal: Authenticated, batch_id: str) -> Response:
    """Return a batch as it is now."""
    return render_json(render_batch(await find_batch(request.state["database"], batch_id, principal.account_id)))


@router.post("/{batch_id}/cancel", summary="Cancel a batch", responses={200: {"model": Batch}})
async def cancel_batch(request: ApiRequest, principal: Authenticated, batch_id: str) -> Response:
    """Stop a batch and its running lines. Lines that have ended are in its output."""
    database, account_id = request.state["database"], principal.account_id
    row = await find_batch(database, batch_id, account_id)
    change = await Change.of(request, principal)
    if not change.done:
        _check_cancellable(row)
        async with change.applying():
            await queries.cancel_batch(database, batch_id, account_id)
            row = await find_batch(database, batch_id, account_id)
            _check_cancellable(row)
    return render_json(render_batch(row), change.headers)


def _check_cancellable(row: Row) -> None:
    if row.state in {BatchState.FINALIZING, BatchState.COMPLETED, BatchState.FAILED, BatchState.EXPIRED}:
        raise ConflictError(f"Cannot cancel a batch with status '{row.state}'.")


@router.get(
    "/{batch_id}/results", summary="List a batch's results as they arrive", responses={200: {"model": BatchResults}}
)
async def list_results(
    request: ApiRequest,
    principal: Authenticated,
    batch_id: str,
    after: Annotated[str | None, after_id("batch_req_")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Response:
    """List the lines that have ended, in the order of their ends, as in the output files.

    A reader that asks again with `after` gets each line that has ended since, once. A page with large answers has
    fewer than `limit`.
    """
    database = request.state["database"]
    await find_batch(database, batch_id, principal.account_id)
    job_id = None
    if after is not None:
        job_id = job_id_of_line(after)
        if not (is_id(after, "batch_req") and await has_line(database, batch_id, job_id)):
            raise invalid_parameter("after", f"no line of the batch has the id '{shorten(after)}'")
    page, more = await list_ended(database, batch_id, after=job_id, limit=limit, most_bytes=PAGE_BYTES)
    head = {
        "object": "list",
        "first_id": batch_line_id(page[0].id) if page else None,
        "last_id": batch_line_id(page[-1].id) if page else after,
        "has_more": more,
    }
    body = b'%b,"data":[%b]}' % (orjson.dumps(head)[:-1], b",".join(map(render_line, page)))
    return Response(body, media_type="application/json")


@router.get(
    "/{batch_id}/events",
    summary="Watch a batch",
    responses={200: {"model": BatchProgress, "content": {"text/event-stream": {}}}},
)
async def watch_batch(request: ApiRequest, principal: Authenticated, batch_id: str) -> Response:
    """Stream the progress of a batch whenever it changes, and the batch when it ends.

    A reader that reconnects with `Last-Event-ID` does not get the same progress again.
    """
    request.state["subscribers"].check(principal.key_id)
    row = await find_batch(request.state["database"], batch_id, principal.account_id)
    known = request.headers.get("last-event-id")
    if BatchState(row.state).is_final and known == _event_id(row):
        return Response(status_code=204)  # after a stream, a browser would reconnect for ever
    return EventStream(partial(_tell, request, principal, row, known))


def _event_id(row: Row) -> str:
    return f"{row.state}-{row.completed}-{row.failed}-{row.cancelled}"


async def _tell(request: ApiRequest, principal: Principal, row: Row, known: str | None, write: Write) -> None:
    invalid = asyncio.Event()
    held = request.state["authenticator"].holding(principal, invalid.set)
    with request.state["subscribers"].counting(principal.key_id):
        held.begin()
        try:
            await _watch(request, row, known, write, invalid)
        finally:
            held.end()


async def _watch(request: ApiRequest, row: Row, known: str | None, write: Write, invalid: asyncio.Event) -> None:
    """Write the progress of a batch, and its end, unless the key of the request becomes `invalid`."""
    batch = request.state["watched_batches"].watch(row.id, row.account_id)
    loop = asyncio.get_running_loop()
    spoke = loop.time()
    while True:
        event_id = _event_id(row)
        if BatchState(row.state).is_final:
            name = f"batch.{row.state}"
            await write([render_event(orjson.dumps(render_batch(row)), name=name, event_id=event_id)])
            return
        if event_id != known:
            known, spoke = event_id, loop.time()
            progress = orjson.dumps(render_progress(row))
            await write([render_event(progress, name="batch.progress", event_id=event_id)])
        elif loop.time() - spoke > request.state["settings"].ping_seconds:
            spoke = loop.time()
            await write([PING])
        ending: asyncio.Event = request.state["hub"].ending
        await wait_for(ending, _LOOK_SECONDS)
        if ending.is_set():
            await write([request.state["subscribers"].retry(RETRY_AT_ONCE)])
            return
        if await request.is_disconnected():
            return
        try:
            if invalid.is_set():
                raise AuthenticationError
            row = await batch.get() or row
        except HeadraceError as error:
            await write([render_error_event(error, name="error")])
            return


@router.get(
    "/{batch_id}/webhook-deliveries",
    summary="List a batch's webhooks",
    responses={200: {"model": WebhookDeliveryList}},
)
async def list_webhook_deliveries(request: ApiRequest, principal: Authenticated, batch_id: str) -> Response:
    """List the deliveries of a batch's webhook, with their attempts."""
    database = request.state["database"]
    await find_batch(database, batch_id, principal.account_id)
    return render_deliveries(await list_deliveries(database, batch_id, principal.account_id))


@router.post(
    "/{batch_id}/webhook-deliveries/{delivery_id}/resend",
    summary="Resend a batch's webhook",
    responses={200: {"model": WebhookDeliveryList}},
)
async def resend_webhook(request: ApiRequest, principal: Authenticated, batch_id: str, delivery_id: str) -> Response:
    """Send a webhook again with the same `webhook-id`, at once and with retries for a day."""
    await find_batch(request.state["database"], batch_id, principal.account_id)
    return await resend(request, principal, batch_id, delivery_id)
