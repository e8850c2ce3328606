"""What a response in a conversation reads, and the bounds of a conversation."""

from __future__ import annotations

import json
from typing import Any

import pytest

from headrace.conversations import context
from headrace.conversations.appending import Item
from headrace.conversations.context import check_conversation_size, read_context
from headrace.conversations.queries import add_items, create_conversation
from headrace.errors import ConflictError, InvalidRequestError, NotFoundError
from headrace.ids import new_id
from headrace.stores.database import Database
from tests.integration.job_rows import Owner

PLENTY = 1_000_000


async def read(
    database: Database, account_id: str, conversation_id: str, *, most_bytes: int = PLENTY
) -> list[dict[str, Any]]:
    """Return what a response reads, and check that room for it was taken before."""
    taken: list[int] = []

    async def reserve(size: int) -> None:
        taken.append(size)

    items = await read_context(database, account_id, conversation_id, most_bytes=most_bytes, reserve=reserve)
    assert taken == [sum(len(json.dumps(item)) for item in items)]
    return items


@pytest.fixture
async def conversation(database: Database, owner: Owner) -> str:
    """A conversation of three items, of 11 bytes each."""
    conversation_id = new_id("conv")
    items = [Item(name, f'{{"id": "{name}"}}') for name in "abc"]
    await create_conversation(database, conversation_id, owner.account_id, metadata={}, items=items, most=PLENTY)
    return conversation_id


async def test_a_response_reads_the_items_in_order(database: Database, owner: Owner, conversation: str) -> None:
    await add_items(database, conversation, owner.account_id, [Item("d", '{"id": "d", "text": "\\u0000"}')])
    items = await read(database, owner.account_id, conversation)
    assert items == [{"id": "a"}, {"id": "b"}, {"id": "c"}, {"id": "d", "text": "\0"}]


async def test_an_empty_conversation_is_an_empty_context(database: Database, owner: Owner) -> None:
    conversation_id = new_id("conv")
    await create_conversation(database, conversation_id, owner.account_id, metadata={}, items=(), most=PLENTY)
    assert await read(database, owner.account_id, conversation_id) == []


async def test_a_conversation_that_is_not_the_accounts_does_not_exist(
    database: Database, stranger: Owner, conversation: str
) -> None:
    for unknown in (conversation, new_id("conv"), "conv_1", "\0"):
        with pytest.raises(NotFoundError) as refused:
            await read(database, stranger.account_id, unknown)
        assert refused.value.param == "conversation"


async def test_a_conversation_beyond_its_bounds_is_not_read(
    database: Database, owner: Owner, conversation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = owner.account_id
    assert len(await read(database, account, conversation, most_bytes=33)) == 3
    with pytest.raises(InvalidRequestError) as refused:
        await read(database, account, conversation, most_bytes=32)
    assert (refused.value.param, refused.value.code) == ("conversation", "context_too_long")
    monkeypatch.setattr(context, "MOST_ITEMS", 3)
    assert len(await read(database, account, conversation)) == 3
    await add_items(database, conversation, account, [Item("d", "{}")])
    with pytest.raises(InvalidRequestError):
        await read(database, account, conversation)


async def test_items_are_added_up_to_the_bounds(
    database: Database, owner: Owner, conversation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context, "MOST_ITEMS", 5)
    account = owner.account_id
    await check_conversation_size(database, conversation, account, items=2, size=10, most_bytes=43)
    for items, size in [(3, 10), (2, 11)]:
        with pytest.raises(ConflictError):
            await check_conversation_size(database, conversation, account, items=items, size=size, most_bytes=43)
