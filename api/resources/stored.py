"""Stored completions: the answers of the account's jobs under OpenAI's paths."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Query
from pydantic import BaseModel
from starlette.responses import Response

from api.http.authentication import Authenticated
from api.http.body import METADATA_BODY, read_body
from api.http.errors import render_json
from api.http.idempotency import Change
from api.http.pages import Limit, Order, Page, TextFilter, after_id, render_page, render_page_after
from api.http.query import DESCRIBED_METADATA, MetadataFilter
from api.http.request import ApiRequest
from api.http.sse import EventStream
from api.jobs.attached import attached
from api.jobs.cancel import erase
from api.jobs.chunks import Chunks
from api.resources.metadata import MetadataUpdate
from headrace.errors import NotFoundError, invalid_parameter, restore_error, shorten
from headrace.formats.chat.completion import ChatCompletion
from headrace.formats.chat.validation import check_metadata, parse_body
from headrace.formats.lenient import parse_lenient_json
from headrace.ids import completion_id as completion_id_of
from headrace.ids import is_id, job_id_of
from headrace.jobs.records import JobFilter
from headrace.jobs.sql.label import label_job
from headrace.jobs.sql.lists import list_jobs
from headrace.jobs.sql.read import get_job, get_request
from headrace.jobs.state import State
from headrace.runtime.offload import offloaded
from headrace.stores.connections import Row

router = APIRouter(prefix="/chat/completions", tags=["Chat"])


class CompletionList(Page[ChatCompletion]):
    """A page of completions."""


class MessageList(Page[dict[str, Any]]):
    """A page of a completion's input messages; each has an `id` in addition to what was sent."""


class CompletionUpdate(MetadataUpdate):
    """The new metadata of a stored completion, which replace all earlier ones; `null` removes them."""


class DeletedCompletion(BaseModel):
    """The answer to an erasure."""

    id: str
    object: Literal["chat.completion.deleted"]
    deleted: Literal[True]


@router.get(
    "",
    summary="List stored completions",
    responses={200: {"model": CompletionList}},
    openapi_extra=DESCRIBED_METADATA,
)
async def list_completions(
    request: ApiRequest,
    principal: Authenticated,
    metadata: MetadataFilter,
    model: TextFilter = None,
    after: Annotated[str | None, after_id("chatcmpl-")] = None,
    limit: Limit = 20,
    order: Order = "asc",
) -> Response:
    """List the account's completions, oldest first. `metadata[key]=value` narrows the list."""
    database = request.state["database"]
    if after is not None and not _is_completion(after):
        raise invalid_parameter("after", "it is not the id of a completion")
    rows, more = await list_jobs(
        database,
        principal.account_id,
        JobFilter(state=State.COMPLETED, model=model, format="chat", metadata=metadata),
        after=None if after is None else job_id_of(after),
        limit=limit,
        descending=order == "desc",
    )
    ids = [completion_id_of(row.id) for row in rows]
    return render_page([await _render(row) for row in rows], limit=limit, has_more=more, ids=ids)


async def _render(row: Row) -> orjson.Fragment:
    """Return a completion with the metadata of its job, in place of any that the provider gave it."""
    metadata = orjson.dumps(row.metadata or {})
    # Stored answers have no spaces, so this finds the key at any depth, and no text that has the word.
    if '"metadata":' in row.response:
        return await offloaded(len(row.response), _replace_metadata, row.response, metadata)
    # An answer of megabytes is not parsed for this: that would keep the event loop for half a second.
    return orjson.Fragment(f'{row.response[:-1]},"metadata":{metadata.decode()}}}')


def _replace_metadata(response: str, metadata: bytes) -> orjson.Fragment:
    return orjson.Fragment(
        orjson.dumps({**parse_lenient_json(response.encode()), "metadata": orjson.Fragment(metadata)})
    )


@router.get(
    "/{completion_id}",
    summary="Get a completion",
    responses={200: {"model": ChatCompletion, "content": {"text/event-stream": {}}}},
)
async def get_completion(
    request: ApiRequest, principal: Authenticated, completion_id: str, stream: bool = False
) -> Response:
    """Return the completion of a job, or with `stream` its chunks from the start."""
    row = await _find(request, completion_id, principal.account_id)
    if row is None:
        raise _no_such_completion(completion_id)
    if stream:
        asked = await _asked(request, completion_id, principal.account_id)
        include_usage = bool((asked.get("stream_options") or {}).get("include_usage"))
        request.state["subscribers"].check(principal.key_id)
        chunks = Chunks(row.id, row.created_at, include_usage=include_usage)
        return EventStream(partial(attached, request, principal, row.id, chunks, format="chat"))
    if row.error is not None:
        raise restore_error(row.error)
    _check_completed(row, completion_id)
    return render_json(await _render(row))


@router.post("/{completion_id}", summary="Change a completion's metadata", responses={200: {"model": ChatCompletion}})
async def update_completion(request: ApiRequest, principal: Authenticated, completion_id: str) -> Response:
    """Replace the metadata of a stored completion and its job. Usage keeps the metadata of the request."""
    body = await read_body(request, limit=METADATA_BODY)
    metadata = parse_body(CompletionUpdate, body).metadata
    check_metadata(metadata)
    account_id = principal.account_id
    row = await _find(request, completion_id, account_id)
    change = await Change.of(request, principal, body)
    if row is not None and not change.done:
        _check_completed(row, completion_id)
        text = orjson.dumps(metadata).decode() if metadata else None
        async with change.applying():
            if not await label_job(request.state["database"], row.id, account_id, text):
                raise _no_such_completion(completion_id)
        row = await _find(request, completion_id, account_id)
    if row is None:
        raise _no_such_completion(completion_id)
    return render_json(await _render(row), change.headers)


@router.delete("/{completion_id}", summary="Erase a completion", responses={200: {"model": DeletedCompletion}})
async def delete_completion(request: ApiRequest, principal: Authenticated, completion_id: str) -> Response:
    """Erase a completion with all content of its job, and stop a job that has not ended. Its usage stays."""
    row = await _find(request, completion_id, principal.account_id)
    if row is None or not await erase(request, row.id, principal.account_id):
        raise _no_such_completion(completion_id)
    return render_json({"id": completion_id, "object": "chat.completion.deleted", "deleted": True})


@router.get("/{completion_id}/messages", summary="Get a completion's messages", responses={200: {"model": MessageList}})
async def list_messages(
    request: ApiRequest,
    principal: Authenticated,
    completion_id: str,
    after: Annotated[str | None, Query(json_schema_extra={"pattern": "^chatcmpl-[0-9a-f]{32}-[0-9]+$"})] = None,
    limit: Limit = 20,
    order: Order = "asc",
) -> Response:
    """List the messages that the completion answers."""
    asked = await _asked(request, completion_id, principal.account_id)
    messages = [
        {"id": f"{completion_id}-{index}", **_render_message(message)}
        for index, message in enumerate(asked["messages"])
    ]
    return render_page_after(messages, after=after, limit=limit, order=order, kind="message")


def _render_message(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message in OpenAI's shape for lists, with content parts in `content_parts`."""
    content = message.get("content")
    parts = content if isinstance(content, list) else None
    return {**message, "content": None if parts is not None else content, "content_parts": parts}


def _check_completed(row: Row, completion_id: str) -> None:
    """Check that a job has a completion.

    Raises:
        NotFoundError: The job has not ended, or ended without a completion.
    """
    if row.response is None:
        raise NotFoundError(
            f"The completion '{completion_id}' does not exist: its job is {row.state}. See GET /jobs/{row.id}.",
            param="completion_id",
            code=None if State(row.state).is_final else "completion_not_ready",
        )


async def _find(request: ApiRequest, completion_id: str, account_id: str) -> Row | None:
    if not _is_completion(completion_id):
        return None
    row = await get_job(request.state["database"], job_id_of(completion_id), account_id)
    return row if row is not None and row.format == "chat" else None


def _is_completion(completion_id: str) -> bool:
    return completion_id.startswith("chatcmpl-") and is_id(job_id_of(completion_id), "job")


async def _asked(request: ApiRequest, completion_id: str, account_id: str) -> dict[str, Any]:
    stored = None
    if _is_completion(completion_id):
        stored = await get_request(request.state["database"], job_id_of(completion_id), account_id)
    if stored is None:
        raise _no_such_completion(completion_id)
    asked: dict[str, Any] = orjson.loads(stored)
    return asked


def _no_such_completion(completion_id: str) -> NotFoundError:
    return NotFoundError(f"No completion found with id '{shorten(completion_id)}'.", param="completion_id")
