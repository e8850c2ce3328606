"""What a response reads before its own input: the response or the conversation that it continues, and references."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from api.http.idempotency import earlier_id
from api.http.request import ApiRequest
from headrace.conversations.context import read_context
from headrace.errors import InvalidRequestError, NotFoundError, invalid_parameter, shorten
from headrace.formats.responses.context import CONTEXT_ITEMS, expand, kind_of, refers
from headrace.formats.responses.request import MOST_ITEMS, ResponseRequest
from headrace.ids import is_id, job_id_of_item, job_id_of_response
from headrace.jobs.records import StoredJob
from headrace.jobs.sql.read import read_response_sizes, read_stored
from headrace.keys.principal import Principal
from headrace.runtime.offload import offloaded


async def expanded(
    request: ApiRequest, principal: Principal, document: dict[str, Any], terms: ResponseRequest, body: bytes
) -> dict[str, Any]:
    """Return a checked request with the items of its context, and with those that it refers to.

    `document` and `terms` are what `body` says. A request that is sent again with its Idempotency-Key gets the context
    that it got first: by now the conversation may have the request's own turn, or be deleted.

    Raises:
        InvalidRequestError: The account has no such response, or the whole input is too large.
        NotFoundError: The account has no such conversation, or no such item.
        ConflictError: The Idempotency-Key came with another request.
    """
    context: list[dict[str, Any]] = []
    if terms.previous_response_id is not None or terms.conversation is not None:
        context = await _context(request, principal, terms, body)
    if refers(document):
        document = await _resolved(request, principal, document, context, own_size=len(body))
    whole = expand(document, context)
    if len(whole["input"]) > MOST_ITEMS:
        raise invalid_parameter(
            "input", f"with its context it has more than {MOST_ITEMS} items", code="context_too_long"
        )
    if terms.conversation is not None:
        _check_ids(whole["input"], first=len(context))
    return whole


async def _earlier_context(request: ApiRequest, principal: Principal, body: bytes) -> list[dict[str, Any]] | None:
    """Return the context of the response that an earlier request with the Idempotency-Key made, or None without one."""
    job_id = await earlier_id(request, principal, body)
    job = None if job_id is None else await read_stored(request.state["database"], job_id, principal.account_id)
    if job is None or job.format != "responses":
        return None
    await request.state["body_memory"].take(request, len(body) + len(job.request))
    stored = await offloaded(len(job.request), orjson.loads, job.request)
    items: list[dict[str, Any]] = stored["input"]
    return items[: stored[CONTEXT_ITEMS]]


async def _context(
    request: ApiRequest, principal: Principal, terms: ResponseRequest, body: bytes
) -> list[dict[str, Any]]:
    """Return what the response or the conversation has that a request continues."""
    try:
        context, missing = await _present_context(request, principal, terms, len(body)), None
    except (InvalidRequestError, NotFoundError) as error:
        context, missing = [], error
    # In this order, because an earlier request may add its turn between the two: then its job is found.
    earlier = await _earlier_context(request, principal, body)
    if earlier is not None:
        return earlier
    if missing is not None:
        raise missing
    return context


async def _present_context(
    request: ApiRequest, principal: Principal, terms: ResponseRequest, own_size: int
) -> list[dict[str, Any]]:
    if terms.previous_response_id is not None:
        return await _context_of(request, principal, terms.previous_response_id, own_size)
    assert terms.conversation is not None
    return await read_context(
        request.state["database"],
        principal.account_id,
        terms.conversation if isinstance(terms.conversation, str) else terms.conversation.id,
        most_bytes=request.state["settings"].max_body_bytes,
        reserve=lambda size: request.state["body_memory"].take(request, own_size + size),
    )


def _check_ids(items: Sequence[Mapping[str, Any]], *, first: int) -> None:
    """Check that no item from `first` on has the id of an item before it: a conversation has each id once.

    Raises:
        InvalidRequestError: An item has; the error names it as its client does.
    """
    seen = {item["id"] for item in items[:first]}
    for index, item in enumerate(items[first:]):
        if item.get("id") in seen:
            raise invalid_parameter(
                f"input[{index}].id", f"the conversation has the item {item['id']!r} already: send only what is new"
            )
        if item.get("id"):
            seen.add(item["id"])


async def _context_of(
    request: ApiRequest, principal: Principal, response_id: str, own_size: int
) -> list[dict[str, Any]]:
    """Return the input and the output of a response that has ended: what its next response reads first."""
    previous = await find_response(request, response_id, principal.account_id)
    if previous is None or not previous.stored:
        raise InvalidRequestError(
            f"Previous response with id '{shorten(response_id)}' not found.",
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
    if size > request.state["settings"].max_body_bytes:
        raise InvalidRequestError(
            f"The chain of responses that ends with '{response_id}' is larger than"
            f" {request.state['settings'].max_body_bytes} bytes.",
            param="previous_response_id",
            code="context_too_long",
        )
    await request.state["body_memory"].take(request, own_size + size)
    return await offloaded(size, _items_of, previous)


async def find_response(request: ApiRequest, response_id: str, account_id: str) -> StoredJob | None:
    """Return the job of a response, or None if the account has no such response."""
    if not is_id(response_id, "resp"):
        return None
    job = await read_stored(request.state["database"], job_id_of_response(response_id), account_id)
    return job if job is not None and job.format == "responses" else None


async def _resolved(
    request: ApiRequest, principal: Principal, document: dict[str, Any], context: list[dict[str, Any]], *, own_size: int
) -> dict[str, Any]:
    """Return a request with the items in the place of references to them, each once.

    Raises:
        InvalidRequestError: An item is referred to twice, or the responses that have the items are larger than a body
            may be.
        NotFoundError: The account has no such item.
    """
    in_context = {item["id"] for item in context}
    items: list[dict[str, Any]] = []
    params: dict[str, str] = {}
    for index, item in enumerate(document["input"]):
        if kind_of(item) != "item_reference":
            items.append(item)
        elif (item_id := item["id"]) not in in_context:
            param = f"input[{index}].id"
            if item_id in params:
                raise invalid_parameter(param, f"the item '{shorten(item_id)}' is in the input already")
            params[item_id] = param
            items.append(item)
    known = await _items_of_responses(request, principal, params, own_size=own_size)
    return {**document, "input": [known[item["id"]] if kind_of(item) == "item_reference" else item for item in items]}


async def _items_of_responses(
    request: ApiRequest, principal: Principal, params: dict[str, str], *, own_size: int
) -> dict[str, dict[str, Any]]:
    """Return items of earlier responses by their ids. `params` has the parameter that refers to each.

    A response also has the items of its context, so the one that a conversation refers to last has nearly all of them.
    """
    database, most = request.state["database"], request.state["settings"].max_body_bytes
    job_ids = {job_id for item_id in params if (job_id := job_id_of_item(item_id)) is not None}
    sizes = await read_response_sizes(database, job_ids, principal.account_id)
    found: dict[str, dict[str, Any]] = {}
    read = 0
    for item_id, param in reversed(params.items()):
        if item_id in found:
            continue
        job_id = job_id_of_item(item_id)
        if job_id is not None and job_id in sizes:
            read += sizes[job_id]
            if read > most:
                raise invalid_parameter(
                    "input", f"the responses that it refers to are larger than {most} bytes", code="context_too_long"
                )
            await request.state["body_memory"].take(request, own_size + read)
            job = await read_stored(database, job_id, principal.account_id)
            items = [] if job is None else await offloaded(sizes[job_id], _items_of, job)
            found |= {item["id"]: item for item in items if item["id"] in params}
        if item_id not in found:
            raise NotFoundError(f"Item with id '{shorten(item_id)}' not found.", param=param)
    return found


def _items_of(job: StoredJob) -> list[dict[str, Any]]:
    output = orjson.loads(job.response)["output"] if job.response is not None else []
    return [*orjson.loads(job.request)["input"], *output]
