"""Responses: OpenAI's API for model calls that run in the background, are watched from any event, and continue."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Query
from pydantic import BaseModel
from starlette.responses import Response

from api.http.authentication import Authenticated
from api.http.body import read_body
from api.http.errors import render_json
from api.http.idempotency import Change
from api.http.include import Include, check_include
from api.http.pages import Limit, Order, Page, render_page_after
from api.http.request import ApiRequest
from api.http.routes import DirectRoute
from api.http.sse import EventStream
from api.jobs.accept import Submission, accept, answering, new_job, resolve_agent
from api.jobs.asked import Asked
from api.jobs.attached import attached
from api.jobs.cancel import cancel_and_wait, erase
from api.jobs.context import expanded, find_response
from api.jobs.foreground import Foreground
from api.jobs.response_events import ResponseEvents
from headrace.errors import InvalidRequestError, NotFoundError, invalid_parameter, shorten
from headrace.events.job_events import Cursor
from headrace.formats.chat.usage import estimate_usage
from headrace.formats.json_document import parse_json
from headrace.formats.responses.context import COMPACTS
from headrace.formats.responses.events import base
from headrace.formats.responses.request import ResponseRequest, check_response_request
from headrace.formats.responses.response import render_stored, status_of
from headrace.formats.responses.response_object import ResponseObject
from headrace.ids import response_id as response_id_of
from headrace.jobs.records import StoredJob
from headrace.jobs.state import State
from headrace.keys.principal import Principal
from headrace.runtime.offload import offloaded

router = APIRouter(prefix="/responses", tags=["Responses"], route_class=DirectRoute)

_RESPONSE_OR_EVENTS: dict[int | str, dict[str, Any]] = {
    200: {"model": ResponseObject, "content": {"text/event-stream": {}}}
}
# Stands for the model of a request that names none.
_ANY_MODEL = "any"
# The largest number of an event that a client may name.
_MOST_EVENTS = 2**31 - 1

StartingAfter = Annotated[
    int | None,
    Query(ge=0, le=_MOST_EVENTS, description="The number of an event: the stream continues after it"),
]


class ItemList(Page[dict[str, Any]]):
    """A page of a response's input items."""


class InputTokens(BaseModel):
    """How many tokens a request's input has."""

    object: Literal["response.input_tokens"]
    input_tokens: int


class CompactedItems(BaseModel):
    """The items that a provider has made of a long input, for the input of the next response."""

    id: str
    object: Literal["response.compaction"]
    created_at: int
    output: list[dict[str, Any]]
    usage: dict[str, Any] | None


class DeletedResponse(BaseModel):
    """The answer to an erasure."""

    id: str
    object: Literal["response"]
    deleted: Literal[True]


@router.post("", summary="Create a response", responses=_RESPONSE_OR_EVENTS)
async def create_response(request: ApiRequest, principal: Authenticated) -> Response:
    """Return the response, stream its events, or with `background` let it run without its client."""
    submission = await _submit(request, principal)
    if submission.job.background:
        return await _start(request, principal, submission)
    return Foreground(request, principal, submission).answer()


async def _submit(request: ApiRequest, principal: Principal) -> Submission:
    """Return the job that a request asks for. The body is freed on return, before the client waits."""
    body = await read_body(request)
    document, terms = await offloaded(len(body), _parse, body)
    whole = await expanded(request, principal, document, terms, body)
    asked = await offloaded(len(body), Asked.of_response, body, whole, terms)
    return await new_job(request, principal, asked, sent=body, background=bool(terms.background))


def _parse(body: bytes) -> tuple[dict[str, Any], ResponseRequest]:
    document = parse_json(body)
    return document, check_response_request(document)


async def _start(request: ApiRequest, principal: Principal, submission: Submission) -> Response:
    """Accept a background response, and return it or its stream."""
    assert submission.asked is not None
    job_id, streamed = submission.job.id, bool(submission.asked.terms.stream)
    if streamed:
        request.state["subscribers"].check(principal.key_id)
    async with answering(request, submission.job) as made:
        created = await accept(request, submission)
        made()
        if not streamed:
            job = await _find(request, response_id_of(job_id), principal.account_id)
            return Response(
                await offloaded(len(job.request), _render, job), 200, submission.headers, "application/json"
            )
    written = submission.events(created)
    tell = partial(attached, request, principal, job_id, written, format="responses")
    return EventStream(tell, submission.headers)


@router.post("/input_tokens", summary="Count a response's input", responses={200: {"model": InputTokens}})
async def count_input_tokens(request: ApiRequest, principal: Authenticated) -> Response:
    """Estimate how many tokens the model would read, without asking it; its own count may differ."""
    body = await read_body(request)
    document, terms = await offloaded(len(body), _parse_count, body)
    if terms.model != _ANY_MODEL:
        principal.check_may_ask(terms.model, ())
    whole = await expanded(request, principal, document, terms, body)
    asked = await offloaded(len(body), Asked.of_response, body, whole, terms)
    asked, _ = await resolve_agent(request, principal, asked)
    if asked.terms.model != _ANY_MODEL:
        request.state["catalogue"].current.find(asked.terms.model)
    tokens = await offloaded(len(body), estimate_usage, asked.document, "")
    counted = {"object": "response.input_tokens", "input_tokens": tokens.prompt_tokens}
    return render_json(counted, {"x-headrace-estimated": "true"})


def _parse_count(body: bytes) -> tuple[dict[str, Any], ResponseRequest]:
    document = parse_json(body)
    if isinstance(document, dict) and document.get("model") is None:
        document = {**document, "model": _ANY_MODEL}
    return document, check_response_request(document)


@router.post("/compact", summary="Compact a conversation", responses={200: {"model": CompactedItems}})
async def compact(request: ApiRequest, principal: Authenticated) -> Response:
    """Return fewer items for a long input, made by a provider that speaks the Responses API. Nothing is stored."""
    body = await read_body(request)
    document, terms = await offloaded(len(body), _parse, body)
    # OpenAI's endpoint has no such parameter. A compaction adds nothing to a conversation.
    if terms.conversation is not None:
        raise InvalidRequestError("Unknown parameter: 'conversation'.", param="conversation", code="unknown_parameter")
    foreground = {"store": False, "stream": None, "background": None}
    terms = terms.model_copy(update=foreground)
    whole = {**await expanded(request, principal, document, terms, body), **foreground, COMPACTS: True}
    asked = await offloaded(len(body), Asked.of_response, body, whole, terms)
    try:
        submission = await new_job(request, principal, asked, sent=body, background=False)
    except InvalidRequestError as error:
        if error.param != COMPACTS:
            raise
        raise NotFoundError(
            f"No provider of the model '{terms.model}' compacts a conversation. Continue it with"
            " 'previous_response_id' or 'conversation', whose items Headrace keeps.",
            param="model",
            code="unsupported",
        ) from None
    return Foreground(request, principal, submission).answer()


@router.get("/{response_id}", summary="Get a response", responses=_RESPONSE_OR_EVENTS)
async def get_response(
    request: ApiRequest,
    principal: Authenticated,
    response_id: str,
    include: Include,
    stream: bool = False,
    starting_after: StartingAfter = None,
    include_obfuscation: bool | None = None,  # noqa: ARG001  (as OpenAI's clients send it)
) -> Response:
    """Return a response in any state, or with `stream` its events from the start or past `starting_after`."""
    check_include(include)
    async with request.state["subscribers"].opening if stream else nullcontext():
        job = await _find(request, response_id, principal.account_id)
    if not stream:
        if starting_after is not None:
            raise invalid_parameter("starting_after", "only allowed when 'stream' is true")
        return Response(await offloaded(len(job.request), _render, job), 200, media_type="application/json")
    request.state["subscribers"].check(principal.key_id)
    after = _last_event(request, starting_after)
    document = await offloaded(len(job.request), orjson.loads, job.request)
    del document["input"]
    written = ResponseEvents(document, job.id, job.created, background=job.background, after=after, model=job.model)
    seq = max(0, after - base(job.background) + 1)
    tell = partial(attached, request, principal, job.id, written, after=Cursor(0, seq), format="responses")
    return EventStream(tell)


def _last_event(request: ApiRequest, starting_after: int | None) -> int:
    """Return the number of the last event that a reader has, -1 before the first.

    A client that reconnects by itself adds the header `Last-Event-ID`, which is newer than the query.
    """
    header = request.headers.get("last-event-id")
    if not header:
        return -1 if starting_after is None else starting_after
    if not header.isdecimal() or len(header) > len(str(_MOST_EVENTS)) or int(header) > _MOST_EVENTS:
        raise invalid_parameter("Last-Event-ID", "it is not the number of an event", code=None)
    return int(header)


@router.delete("/{response_id}", summary="Erase a response", responses={200: {"model": DeletedResponse}})
async def delete_response(request: ApiRequest, principal: Authenticated, response_id: str) -> Response:
    """Erase a response with all content of its job, and stop a job that has not ended. Its usage stays."""
    job = await _find(request, response_id, principal.account_id)
    if not await erase(request, job.id, principal.account_id):
        raise _no_such_response(response_id)
    return render_json({"id": response_id, "object": "response", "deleted": True})


@router.post("/{response_id}/cancel", summary="Cancel a response", responses={200: {"model": ResponseObject}})
async def cancel_response(request: ApiRequest, principal: Authenticated, response_id: str) -> Response:
    """Cancel a background response, and its call to the provider."""
    job = await _find(request, response_id, principal.account_id)
    change = await Change.of(request, principal)
    if not change.done:
        _check_cancellable(job)
        async with change.applying():
            await cancel_and_wait(request, job.id, principal.account_id)
        job = await _find(request, response_id, principal.account_id)
    _check_cancellable(job)  # a worker may have completed it first
    return Response(await offloaded(len(job.request), _render, job), 200, change.headers, "application/json")


def _check_cancellable(job: StoredJob) -> None:
    if not job.background:
        raise InvalidRequestError("Only a background response can be cancelled.", param="response_id")
    if job.state.is_final and job.state is not State.CANCELLED:
        raise InvalidRequestError(f"The response has ended: it is {status_of(_render(job))}.", param="response_id")


@router.get("/{response_id}/input_items", summary="List a response's input", responses={200: {"model": ItemList}})
async def list_input_items(
    request: ApiRequest,
    principal: Authenticated,
    response_id: str,
    include: Include,
    after: Annotated[str | None, Query(description="The last id of the previous page")] = None,
    limit: Limit = 20,
    order: Order = "desc",
) -> Response:
    """List all items that the model read: those of the context, and those of the request."""
    check_include(include)
    job = await _find(request, response_id, principal.account_id)
    items: list[dict[str, Any]] = (await offloaded(len(job.request), orjson.loads, job.request))["input"]
    return render_page_after(items, after=after, limit=limit, order=order, kind="item")


async def _find(request: ApiRequest, response_id: str, account_id: str) -> StoredJob:
    job = await find_response(request, response_id, account_id)
    if job is None:
        raise _no_such_response(response_id)
    return job


def _no_such_response(response_id: str) -> NotFoundError:
    return NotFoundError(f"Response with id '{shorten(response_id)}' not found.", param="response_id")


def _render(job: StoredJob) -> bytes:
    stored = render_stored(
        {} if job.response is not None else orjson.loads(job.request),
        job_id=job.id,
        created=job.created,
        background=job.background,
        state=job.state.value,
        model=job.model,
        response=None if job.response is None else job.response.encode(),
        error=None if job.error is None else job.error.encode(),
        finished=job.finished,
    )
    return stored if isinstance(stored, bytes) else orjson.dumps(stored)
