"""What a response reads before its own input: the response or the conversation that it continues, and references."""

from __future__ import annotations

from typing import Any

import orjson
from fastapi import Request

from headrace.conversations.context import read_context
from headrace.errors import InvalidRequestError, NotFoundError, invalid_parameter
from headrace.formats.responses.context import expand, kind_of
from headrace.formats.responses.request import MOST_ITEMS, ResponseRequest
from headrace.ids import is_id, job_id_of_item, job_id_of_response
from headrace.jobs.records import StoredJob
from headrace.jobs.sql.read import read_stored
from headrace.keys.queries import Principal
from headrace.runtime.offload import offloaded


async def expanded(
    request: Request, principal: Principal, document: dict[str, Any], terms: ResponseRequest, *, size: int
) -> dict[str, Any]:
    """Return a checked request of `size` bytes with the items of its context, and with those that it refers to.

    Raises:
        InvalidRequestError: The account has no such response, or the whole input is too large.
        NotFoundError: The account has no such conversation, or no such item.
    """
    database, account_id = request.state.database, principal.account_id
    most = request.state.settings.max_body_bytes
    context: list[dict[str, Any]] = []
    if terms.previous_response_id is not None:
        context = await _context_of(request, principal, terms.previous_response_id, size)
    elif terms.conversation is not None:
        asked = terms.conversation
        conversation_id = asked if isinstance(asked, str) else asked.id
        context = await read_context(
            database,
            account_id,
            conversation_id,
            most_bytes=most,
            reserve=lambda context_size: request.state.room.take(request, size + context_size),
        )
    whole = expand(await _resolved(request, principal, document, context), context)
    if len(whole["input"]) > MOST_ITEMS:
        raise invalid_parameter(
            "input", f"with its context it has more than {MOST_ITEMS} items", code="context_too_long"
        )
    return whole


async def _context_of(request: Request, principal: Principal, response_id: str, own_size: int) -> list[dict[str, Any]]:
    """Return the input and the output of a response that has ended: what its next response reads first."""
    previous = await find_response(request, response_id, principal.account_id)
    if previous is None:
        raise InvalidRequestError(
            f"Previous response with id '{response_id[:100]}' not found.",
            param="previous_response_id",
            code="previous_response_not_found",
        )
    if previous.response is None:
        raise InvalidRequestError(
            f"The response '{response_id}' has no output that another one could continue: it is {previous.state}.",
            param="previous_response_id",
            code="previous_response_not_completed",
        )
    size = len(previous.request) + len(previous.response)
    if size > request.state.settings.max_body_bytes:
        raise InvalidRequestError(
            f"The chain of responses that ends with '{response_id}' is larger than"
            f" {request.state.settings.max_body_bytes} bytes.",
            param="previous_response_id",
            code="context_too_long",
        )
    await request.state.room.take(request, own_size + size)
    return await offloaded(size, _items_of, previous)


async def find_response(request: Request, response_id: str, account_id: str) -> StoredJob | None:
    """Return the job of a response, or None if the account has no such response."""
    if not is_id(response_id, "resp"):
        return None
    job = await read_stored(request.state.database, job_id_of_response(response_id), account_id)
    return job if job is not None and job.format == "responses" else None


async def _resolved(
    request: Request, principal: Principal, document: dict[str, Any], context: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return a request with the items in the place of references to them."""
    own = document.get("input")
    if not isinstance(own, list) or not any(kind_of(item) == "item_reference" for item in own):
        return document
    in_context = {item["id"] for item in context}
    known: dict[str, dict[str, Any]] = {}
    items = []
    for index, item in enumerate(own):
        if kind_of(item) != "item_reference":
            items.append(item)
        elif item["id"] not in in_context:
            if item["id"] not in known:
                known |= await _items_beside(request, principal, item["id"], param=f"input[{index}].id")
            items.append(known[item["id"]])
    return {**document, "input": items}


async def _items_beside(request: Request, principal: Principal, item_id: str, *, param: str) -> dict[str, Any]:
    """Return the items of the response that an item is in, by their ids."""
    job_id = job_id_of_item(item_id)
    job = None if job_id is None else await read_stored(request.state.database, job_id, principal.account_id)
    found = {}
    if job is not None and job.format == "responses":
        found = {item["id"]: item for item in await offloaded(len(job.request), _items_of, job)}
    if item_id not in found:
        raise NotFoundError(f"Item with id '{item_id[:100]}' not found.", param=param)
    return found


def _items_of(job: StoredJob) -> list[dict[str, Any]]:
    output = orjson.loads(job.response)["output"] if job.response is not None else []
    return [*orjson.loads(job.request)["input"], *output]
