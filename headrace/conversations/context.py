"""What a conversation may hold, and what a response in it reads before its own input."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import orjson

from headrace.conversations import queries
from headrace.errors import ConflictError, InvalidRequestError, NotFoundError, shorten
from headrace.formats.responses.request import MOST_ITEMS
from headrace.ids import is_id
from headrace.runtime.offload import offloaded
from headrace.stores.database import Database


def no_such_conversation(conversation_id: str, *, param: str = "conversation_id") -> NotFoundError:
    """Return the error for an id without a conversation of the account."""
    return NotFoundError(f"Conversation with id '{shorten(conversation_id)}' not found.", param=param)


async def check_conversation_size(
    database: Database, conversation_id: str, account_id: str, *, items: int, size: int, most_bytes: int
) -> None:
    """Check that a conversation may have so many items more, of `size` bytes together.

    A response that was accepted before adds its own even beyond the bounds.

    Raises:
        ConflictError: It would have too many items, or more than `most_bytes` of them.
        NotFoundError: The account has no such conversation.
    """
    has = await queries.measure(database, conversation_id, account_id)
    if has is None:
        raise no_such_conversation(conversation_id)
    for what, total, most in (("items", has.items + items, MOST_ITEMS), ("bytes", has.bytes + size, most_bytes)):
        if total > most:
            raise ConflictError(
                f"A conversation has at most {most} {what}, and this one would have {total}:"
                " delete items, or begin another conversation.",
                param="items",
            )


async def read_context(
    database: Database,
    account_id: str,
    conversation_id: str,
    *,
    most_bytes: int,
    reserve: Callable[[int], Awaitable[None]],
) -> list[dict[str, Any]]:
    """Return a conversation's items, oldest first, for a response that continues it.

    `reserve` is called with the items' bytes before they are read.

    Raises:
        NotFoundError: The account has no such conversation.
        InvalidRequestError: It has more than `MOST_ITEMS` items, or `most_bytes` of them.
    """
    has = await queries.measure(database, conversation_id, account_id) if is_id(conversation_id, "conv") else None
    if has is None:
        raise no_such_conversation(conversation_id, param="conversation")
    items = list[str]()
    if has.items <= MOST_ITEMS and has.bytes <= most_bytes:
        await reserve(has.bytes)
        # Other responses may have added their turns since, so the bounds are checked again.
        items = await queries.read_items(database, conversation_id, account_id, limit=MOST_ITEMS + 1)
        has = queries.Size(len(items), sum(map(len, items)))
    if has.items > MOST_ITEMS or has.bytes > most_bytes:
        raise InvalidRequestError(
            f"The conversation has more than {MOST_ITEMS} items, or more than {most_bytes} bytes of them, and"
            " a response reads no more: delete items, or begin another conversation.",
            param="conversation",
            code="context_too_long",
        )
    return await offloaded(has.bytes, _parse, items)


def _parse(items: list[str]) -> list[dict[str, Any]]:
    return [orjson.loads(item) for item in items]
