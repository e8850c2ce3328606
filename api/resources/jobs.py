"""Jobs: submit, list, poll, watch, cancel and erase them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Query
from pydantic import BaseModel
from sqlalchemy.exc import SQLAlchemyError
from starlette.responses import Response

from api.http.authentication import Authenticated
from api.http.body import read_body
from api.http.connection import Client
from api.http.errors import render_json
from api.http.idempotency import Change
from api.http.pages import Limit, Order, Page, TextFilter, after_id, check_after, render_page
from api.http.query import DESCRIBED_METADATA, MetadataFilter
from api.http.request import ApiRequest
from api.http.sse import PING, EventStream, LiveEvents, Write, render_error_event, render_event
from api.http.subscribers import RETRY, RETRY_AT_ONCE, Subscribers
from api.jobs.accept import new_job
from api.jobs.asked import Asked
from api.jobs.attendance import watching
from api.jobs.cancel import cancel_and_wait, erase
from api.resources.chat import start
from api.resources.webhooks import WebhookDeliveryList, render_deliveries, resend
from headrace.errors import AuthenticationError, HeadraceError, invalid_parameter
from headrace.events.follow import follow, furthest_cursor
from headrace.events.job_events import START, Cursor, Deltas, Ended, Event, Retrying, Silence, Started
from headrace.events.listener import Listener, ListenerClosedError
from headrace.ids import completion_id, is_id
from headrace.jobs.job_object import Job, JobFormat, find_job, no_such_job, render_job
from headrace.jobs.records import JobFilter
from headrace.jobs.sql import lists
from headrace.jobs.sql.read import read_followed
from headrace.jobs.state import State
from headrace.keys.principal import Principal
from headrace.runtime.offload import offloaded
from headrace.stores.database import Database
from headrace.webhooks.queries import list_deliveries

log = logging.getLogger(__name__)

router = APIRouter(prefix="/jobs", tags=["Jobs"])


class JobList(Page[Job]):
    """A page of jobs."""


class DeletedJob(BaseModel):
    """The answer to an erasure."""

    id: str
    object: Literal["job.deleted"]
    deleted: Literal[True]


@router.post("", status_code=202, summary="Submit a job", responses={202: {"model": Job}})
async def create_job(request: ApiRequest, principal: Authenticated) -> Response:
    """Start a completion in the background, as `background` in a chat completion does."""
    body = await read_body(request)
    submission, asked = await offloaded(len(body), Asked.parse_submission, body)
    job = await new_job(
        request,
        principal,
        asked,
        sent=body,
        tier=submission.priority,
        metadata=submission.metadata,
        timeout_seconds=submission.timeout,
        webhook=submission.webhook,
        background=True,
    )
    return await start(request, job)


@router.get("", summary="List jobs", responses={200: {"model": JobList}}, openapi_extra=DESCRIBED_METADATA)
async def list_jobs(
    request: ApiRequest,
    principal: Authenticated,
    metadata: MetadataFilter,
    status: State | None = None,
    model: TextFilter = None,
    format: Annotated[JobFormat | None, Query()] = None,  # noqa: A002  (the name of the query's parameter)
    agent_id: TextFilter = None,
    batch_id: TextFilter = None,
    created_after: Annotated[int | None, Query(ge=0, le=2**33, description="Unix seconds")] = None,
    created_before: Annotated[int | None, Query(ge=0, le=2**33, description="Unix seconds")] = None,
    after: Annotated[str | None, after_id("job_")] = None,
    limit: Limit = 20,
    order: Order = "desc",
) -> Response:
    """List the account's jobs, newest first. `metadata[key]=value` narrows the list."""
    check_after(after, "job")
    wanted = JobFilter(
        state=status,
        model=model,
        format=format,
        agent_id=agent_id,
        batch_id=batch_id,
        metadata=metadata,
        created_after=_time(created_after),
        created_before=_time(created_before),
    )
    rows, more = await lists.list_jobs(
        request.state["database"], principal.account_id, wanted, after=after, limit=limit, descending=order == "desc"
    )
    return render_page([render_job(row) for row in rows], limit=limit, has_more=more)


def _time(seconds: int | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


@router.get("/{job_id}", summary="Get a job", responses={200: {"model": Job}})
async def get_job(
    request: ApiRequest,
    principal: Authenticated,
    job_id: str,
    wait: Annotated[float, Query(ge=0, description="Seconds to wait for the job's end before the answer")] = 0,
) -> Response:
    """Return a job at once, or with `wait` when it has ended or the time is over."""
    job = await find_job(request.state["database"], job_id, principal.account_id)
    if wait and not State(job["status"]).is_final:
        request.state["subscribers"].check(principal.key_id)
        await _wait(request, principal, job, min(wait, request.state["settings"].wait_limit_seconds))
        job = await find_job(request.state["database"], job_id, principal.account_id)
    return render_json(job)


async def _wait(request: ApiRequest, principal: Principal, job: dict[str, Any], seconds: float) -> None:
    """Wait for a job's end.

    Raises:
        AuthenticationError: The key has become invalid.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds), watching(request, principal, job["id"]) as listener:
            with contextlib.suppress(ListenerClosedError):
                database = request.state["database"]
                async for event in follow(listener, database, format=job["format"]):
                    if isinstance(event, Ended):
                        return
            if listener.refused:
                raise AuthenticationError


@router.get(
    "/{job_id}/events",
    summary="Watch a job",
    responses={200: {"content": {"text/event-stream": {}}, "description": "Server-sent events"}},
)
async def watch_job(
    request: ApiRequest,
    principal: Authenticated,
    job_id: str,
    after: Annotated[
        str | None, Query(description="An event's id: the stream continues after it. `Last-Event-ID` does the same")
    ] = None,
) -> Response:
    """Stream a job's events to its end, from its start or from where the reader was interrupted."""
    subscribers = request.state["subscribers"]
    subscribers.check(principal.key_id)
    database = request.state["database"]
    async with subscribers.opening:
        row = await read_followed(database, job_id, principal.account_id) if is_id(job_id, "job") else None
    if row is None:
        raise no_such_job(job_id)
    # A browser reconnects to the same URL and adds the header, so the header is newer than the query.
    param, event_id = "Last-Event-ID", request.headers.get("last-event-id")
    if not event_id:
        param, event_id = "after", after
    cursor = None if event_id is None else Cursor.parse(event_id, param=param)
    # Readers may have events of the attempt that runs before Postgres has them.
    if cursor is not None and not (row.state == State.RUNNING.value and cursor.attempt == row.attempt):
        furthest = await furthest_cursor(database, job_id)
        if cursor > furthest or (cursor.attempt == 0 and cursor != START):
            raise invalid_parameter(param, f"the job has no event '{cursor}'")
        if cursor == furthest and State(row.state).is_final:
            return Response(status_code=204)  # after an empty stream, a browser would reconnect for ever
    subscriber = _Subscriber(
        job_id=job_id,
        account_id=principal.account_id,
        format=row.format,
        created=row.created,
        database=database,
        subscribers=subscribers,
        client=request.state["client"],
        watched=watching(request, principal, job_id),
    )
    return EventStream(partial(_tell, subscriber, cursor))


@dataclass(frozen=True, slots=True)
class _Subscriber:
    """What a job's stream keeps of its request and its job: it may last for hours."""

    job_id: str
    account_id: str
    format: JobFormat
    created: int
    database: Database
    subscribers: Subscribers
    client: Client
    watched: contextlib.AbstractAsyncContextManager[Listener]


async def _tell(subscriber: _Subscriber, cursor: Cursor | None, write: Write) -> None:
    """Write the events of a job past the cursor, and those that tell its reader why they end earlier."""
    job_id, database, subscribers = subscriber.job_id, subscriber.database, subscriber.subscribers
    form = subscriber.format
    head = _head(job_id, form, subscriber.created)
    live = LiveEvents(subscriber.client, partial(_render, job_id, head))
    async with subscriber.watched as listener:
        opening = [subscribers.retry(RETRY)]
        if cursor is None:
            opening.append(_transition(job_id, State.QUEUED, attempt=0, name="job.queued", event_id=str(START)))
        await write(opening)
        try:
            async for event in follow(listener, database, after=cursor or START, format=form, write=live):
                if isinstance(event, Ended):
                    ended = await find_job(database, job_id, subscriber.account_id)
                    name = f"job.{event.state.value}"
                    await write([render_event(orjson.dumps(ended), name=name, event_id=str(event.cursor))])
                else:
                    await write(_render(job_id, head, event))
                del event
        except ListenerClosedError:
            if listener.refused:
                await write([render_error_event(AuthenticationError(), name="error")])
            else:
                await write([subscribers.retry(RETRY_AT_ONCE)])
        except SQLAlchemyError as error:
            log.warning("a subscriber must reconnect, as Postgres is unavailable: %s", error)
            await write([subscribers.retry(RETRY)])
        except HeadraceError as error:
            await write([render_error_event(error, name="error")])


def _head(job_id: str, form: JobFormat, created: int) -> bytes:
    """Return the beginning of each delta, up to the first field that is stored: a chat chunk's id and time are not."""
    if form != "chat":
        return b"{"
    about = {"id": completion_id(job_id), "object": "chat.completion.chunk", "created": created}
    return orjson.dumps(about)[:-1] + b","


def _render(job_id: str, head: bytes, event: Event) -> list[bytes]:
    if isinstance(event, Deltas):
        attempt, seq = event.first.attempt, event.first.seq
        return [
            b"event: job.delta\nid: %d-%d\ndata: %b%b\n\n" % (attempt, seq + index, head, chunk[1:])
            for index, chunk in enumerate(event.chunks)
        ]
    if isinstance(event, Started):
        attempt = event.cursor.attempt
        return [_transition(job_id, State.RUNNING, attempt=attempt, name="job.started", event_id=str(event.cursor))]
    if isinstance(event, Retrying):
        # This event has no id: a reader that is interrupted here continues after its last delta.
        return [_transition(job_id, State.QUEUED, attempt=event.attempt, name="job.retrying", event_id=None)]
    return [PING] if isinstance(event, Silence) else []


def _transition(job_id: str, state: State, *, attempt: int, name: str, event_id: str | None) -> bytes:
    about = {"id": job_id, "object": "job", "status": state.value, "attempt": attempt}
    return render_event(orjson.dumps(about), name=name, event_id=event_id)


@router.post("/{job_id}/cancel", summary="Cancel a job", responses={200: {"model": Job}})
async def cancel_job(request: ApiRequest, principal: Authenticated, job_id: str) -> Response:
    """Cancel a job and its call to the provider. A job that has ended is not changed."""
    job = await find_job(request.state["database"], job_id, principal.account_id)
    change = await Change.of(request, principal)
    if not change.done:
        async with change.applying():
            await cancel_and_wait(request, job_id, principal.account_id)
        job = await find_job(request.state["database"], job_id, principal.account_id)
    return render_json(job, change.headers)


@router.delete("/{job_id}", summary="Erase a job", responses={200: {"model": DeletedJob}})
async def delete_job(request: ApiRequest, principal: Authenticated, job_id: str) -> Response:
    """Stop a job if it has not ended, and erase its content. Its usage stays."""
    if not is_id(job_id, "job") or not await erase(request, job_id, principal.account_id):
        raise no_such_job(job_id)
    return render_json({"id": job_id, "object": "job.deleted", "deleted": True})


@router.get(
    "/{job_id}/webhook-deliveries",
    summary="List a job's webhooks",
    responses={200: {"model": WebhookDeliveryList}},
)
async def list_webhook_deliveries(request: ApiRequest, principal: Authenticated, job_id: str) -> Response:
    """List the deliveries of a job's webhook, with their attempts."""
    await find_job(request.state["database"], job_id, principal.account_id)
    return render_deliveries(await list_deliveries(request.state["database"], job_id, principal.account_id))


@router.post(
    "/{job_id}/webhook-deliveries/{delivery_id}/resend",
    summary="Resend a job's webhook",
    responses={200: {"model": WebhookDeliveryList}},
)
async def resend_webhook(request: ApiRequest, principal: Authenticated, job_id: str, delivery_id: str) -> Response:
    """Send a webhook again with the same `webhook-id`, at once and with retries for a day."""
    await find_job(request.state["database"], job_id, principal.account_id)
    return await resend(request, principal, job_id, delivery_id)
