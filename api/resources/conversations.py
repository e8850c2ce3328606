"""Conversations in OpenAI's shape: items that clients add, list and delete, and that responses read and add."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from api.http.authentication import Authenticated
from api.http.body import METADATA_BODY, read_body
from api.http.errors import render_json
from api.http.idempotency import Change, resource_id
from api.http.include import Include, check_include
from api.http.pages import Limit, Order, Page, render_page
from api.http.request import ApiRequest
from api.resources.metadata import MetadataUpdate
from headrace.conversations import queries
from headrace.conversations.appending import Item
from headrace.conversations.context import check_conversation_size, no_such_conversation
from headrace.conversations.items import parse_conversation, parse_items, with_new_ids
from headrace.conversations.queries import Conversation
from headrace.errors import NotFoundError, QuotaExceededError, invalid_parameter, shorten
from headrace.formats.chat.validation import check_metadata, parse_body
from headrace.ids import is_id, new_id
from headrace.runtime.offload import offloaded

router = APIRouter(prefix="/conversations", tags=["Conversations"])


class ConversationUpdate(MetadataUpdate):
    """The new metadata of a conversation, which replace all earlier ones; `null` removes them."""


class ConversationObject(BaseModel):
    """A conversation."""

    id: str
    object: Literal["conversation"]
    created_at: int = Field(description="Unix seconds")
    metadata: dict[str, str]


class DeletedConversation(BaseModel):
    """The answer to a deletion."""

    id: str
    object: Literal["conversation.deleted"]
    deleted: Literal[True]


class ConversationItem(BaseModel):
    """An item, with the fields of its type."""

    model_config = ConfigDict(extra="allow")

    id: str
    type: str


class ItemList(Page[ConversationItem]):
    """A page of a conversation's items."""


@router.post("", summary="Create a conversation", responses={200: {"model": ConversationObject}})
async def create_conversation(request: ApiRequest, principal: Authenticated) -> Response:
    """Create a conversation, with up to 20 items."""
    body = await read_body(request)
    metadata, given = await offloaded(len(body), parse_conversation, body)
    check_metadata(metadata)
    database, account_id = request.state["database"], principal.account_id
    change = await Change.of(request, principal, body)
    conversation_id, _ = await resource_id(request, principal, new_id("conv"), body)
    if not change.done:  # else it may be deleted by now, and stays so
        most = request.state["settings"].account_conversations
        items = with_new_ids(given, conversation_id[-32:])
        async with change.applying():
            await queries.create_conversation(
                database, conversation_id, account_id, metadata=metadata, items=items, most=most
            )
            if await queries.find_conversation(database, conversation_id, account_id) is None:
                raise QuotaExceededError(
                    f"This account may have {most} conversations: delete one first.",
                    code="conversation_quota_exceeded",
                )
    return render_json(_render(await _find(request, conversation_id, account_id)), change.headers)


@router.get("/{conversation_id}", summary="Get a conversation", responses={200: {"model": ConversationObject}})
async def get_conversation(request: ApiRequest, principal: Authenticated, conversation_id: str) -> Response:
    """Return a conversation, without its items."""
    return render_json(_render(await _find(request, conversation_id, principal.account_id)))


@router.post(
    "/{conversation_id}", summary="Change a conversation's metadata", responses={200: {"model": ConversationObject}}
)
async def update_conversation(request: ApiRequest, principal: Authenticated, conversation_id: str) -> Response:
    """Replace the metadata of a conversation."""
    body = await read_body(request, limit=METADATA_BODY)
    metadata = parse_body(ConversationUpdate, body).metadata
    check_metadata(metadata)
    conversation = await _find(request, conversation_id, principal.account_id)
    change = await Change.of(request, principal, body)
    if not change.done:
        async with change.applying():
            changed = await queries.label_conversation(
                request.state["database"], conversation_id, principal.account_id, metadata or {}
            )
            if changed is None:
                raise no_such_conversation(conversation_id)
            conversation = changed
    return render_json(_render(conversation), change.headers)


@router.delete("/{conversation_id}", summary="Delete a conversation", responses={200: {"model": DeletedConversation}})
async def delete_conversation(request: ApiRequest, principal: Authenticated, conversation_id: str) -> Response:
    """Delete a conversation and its items. Responses that belong to it stay, and running ones end as they would."""
    if not is_id(conversation_id, "conv") or not await queries.delete_conversation(
        request.state["database"], conversation_id, principal.account_id
    ):
        raise no_such_conversation(conversation_id)
    return render_json({"id": conversation_id, "object": "conversation.deleted", "deleted": True})


@router.post("/{conversation_id}/items", summary="Add items", responses={200: {"model": ItemList}})
async def create_items(
    request: ApiRequest, principal: Authenticated, conversation_id: str, include: Include
) -> Response:
    """Add up to 20 items to the end of a conversation. Each gets an id of ours."""
    check_include(include)
    body = await read_body(request)
    given = await offloaded(len(body), parse_items, body)
    await _find(request, conversation_id, principal.account_id)
    database, account_id = request.state["database"], principal.account_id
    change = await Change.of(request, principal, body)
    if not change.done:
        most = request.state["settings"].max_body_bytes
        await check_conversation_size(
            database, conversation_id, account_id, items=len(given), size=len(body), most_bytes=most
        )
    # The items' ids are made of one that the key stands for, so that a repeated request finds the items.
    claimed, _ = await resource_id(request, principal, new_id("items"), body)
    items = with_new_ids(given, claimed[-32:])
    if items and not change.done:
        async with change.applying():
            if not await queries.add_items(database, conversation_id, account_id, items):
                raise no_such_conversation(conversation_id)
    added = await queries.find_items(database, conversation_id, account_id, [item.id for item in items])
    return _render_items(added, headers=change.headers)


@router.get("/{conversation_id}/items", summary="List items", responses={200: {"model": ItemList}})
async def list_items(
    request: ApiRequest,
    principal: Authenticated,
    conversation_id: str,
    include: Include,
    after: Annotated[str | None, Query(description="The last id of the previous page")] = None,
    limit: Limit = 20,
    order: Order = "desc",
) -> Response:
    """List a conversation's items, newest first."""
    check_include(include)
    database, account_id = request.state["database"], principal.account_id
    await _find(request, conversation_id, account_id)
    if after is not None and await _find_item(request, conversation_id, account_id, after) is None:
        raise invalid_parameter("after", "the conversation has no such item")
    items, more = await queries.list_items(
        database, conversation_id, account_id, after=after, limit=limit, descending=order == "desc"
    )
    return _render_items(items, has_more=more)


@router.get("/{conversation_id}/items/{item_id}", summary="Get an item", responses={200: {"model": ConversationItem}})
async def get_item(
    request: ApiRequest, principal: Authenticated, conversation_id: str, item_id: str, include: Include
) -> Response:
    """Return an item of a conversation."""
    check_include(include)
    await _find(request, conversation_id, principal.account_id)
    item = await _find_item(request, conversation_id, principal.account_id, item_id)
    if item is None:
        raise _no_such_item(item_id)
    return Response(item.document, media_type="application/json")


@router.delete(
    "/{conversation_id}/items/{item_id}", summary="Delete an item", responses={200: {"model": ConversationObject}}
)
async def delete_item(request: ApiRequest, principal: Authenticated, conversation_id: str, item_id: str) -> Response:
    """Delete an item of a conversation, and return the conversation."""
    conversation = await _find(request, conversation_id, principal.account_id)
    if not _may_be_item(item_id) or not await queries.delete_item(
        request.state["database"], conversation_id, principal.account_id, item_id
    ):
        raise _no_such_item(item_id)
    return render_json(_render(conversation))


async def _find(request: ApiRequest, conversation_id: str, account_id: str) -> Conversation:
    found = None
    if is_id(conversation_id, "conv"):
        found = await queries.find_conversation(request.state["database"], conversation_id, account_id)
    if found is None:
        raise no_such_conversation(conversation_id)
    return found


async def _find_item(request: ApiRequest, conversation_id: str, account_id: str, item_id: str) -> Item | None:
    if not _may_be_item(item_id):
        return None
    found = await queries.find_items(request.state["database"], conversation_id, account_id, [item_id])
    return found[0] if found else None


def _may_be_item(item_id: str) -> bool:
    """Return whether Postgres can hold this id."""
    return "\0" not in item_id


def _no_such_item(item_id: str) -> NotFoundError:
    return NotFoundError(f"Item with id '{shorten(item_id)}' not found.", param="item_id")


def _render(conversation: Conversation) -> dict[str, Any]:
    return {
        "id": conversation.id,
        "object": "conversation",
        "created_at": conversation.created_at,
        "metadata": conversation.metadata,
    }


def _render_items(
    items: Sequence[Item], *, has_more: bool = False, headers: Mapping[str, str] | None = None
) -> Response:
    texts = [orjson.Fragment(item.document) for item in items]
    return render_page(texts, ids=[item.id for item in items], has_more=has_more, headers=headers)
