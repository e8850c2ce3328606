"""Conversations and their items in Postgres, each seen by its account alone."""

from __future__ import annotations

import json

from headrace.conversations.appending import Item
from headrace.conversations.queries import (
    Size,
    add_items,
    create_conversation,
    delete_conversation,
    delete_item,
    find_conversation,
    find_items,
    label_conversation,
    list_items,
    measure,
)
from headrace.ids import new_id
from headrace.stores.database import Database, execute
from tests.integration.job_rows import Owner

ANY_NUMBER = 1000


def item(name: str, text: str = "") -> Item:
    return Item(name, json.dumps({"id": name, "text": text}))


def items(*names: str) -> list[Item]:
    return [item(name) for name in names]


async def create(database: Database, owner: Owner, *names: str, most: int = ANY_NUMBER) -> str:
    conversation_id = new_id("conv")
    await create_conversation(
        database, conversation_id, owner.account_id, metadata={"topic": "mills"}, items=items(*names), most=most
    )
    return conversation_id


async def names(database: Database, owner: Owner, conversation_id: str) -> list[str]:
    page, more = await list_items(
        database, conversation_id, owner.account_id, after=None, limit=ANY_NUMBER, descending=False
    )
    assert not more
    return [item.id for item in page]


async def test_items_are_listed_in_order_of_addition_in_pages_both_ways(database: Database, owner: Owner) -> None:
    conversation = await create(database, owner, "a", "b")
    assert await add_items(database, conversation, owner.account_id, items("c", "d", "e"))
    for descending in (False, True):
        seen, after, more = list[str](), None, True
        while more:
            page, more = await list_items(
                database, conversation, owner.account_id, after=after, limit=2, descending=descending
            )
            seen += [item.id for item in page]
            after = seen[-1]
        assert seen == sorted("abcde", reverse=descending)


async def test_a_page_of_large_items_ends_early_and_has_one_item_at_least(database: Database, owner: Owner) -> None:
    conversation = await create(database, owner)
    large = [item(name, "x" * 100) for name in "abc"]
    await add_items(database, conversation, owner.account_id, large)
    for size, expected in [(1, 1), (len(large[0].document), 1), (len(large[0].document) + 1, 2), (1000, 3)]:
        page, more = await list_items(
            database, conversation, owner.account_id, after=None, limit=3, descending=False, page_bytes=size
        )
        assert page == large[:expected]
        assert (len(page), more) == (expected, expected < 3)


async def test_an_item_that_the_conversation_has_is_not_added_again(database: Database, owner: Owner) -> None:
    conversation, other = await create(database, owner, "a", "b"), await create(database, owner, "z")
    await add_items(database, conversation, owner.account_id, [item("b", "changed"), item("c")])
    await add_items(database, other, owner.account_id, items("a"))
    assert await names(database, owner, conversation) == ["a", "b", "c"]
    assert await names(database, owner, other) == ["z", "a"]
    assert await find_items(database, conversation, owner.account_id, ["b"]) == [item("b")]


async def test_metadata_are_replaced_as_a_whole(database: Database, owner: Owner) -> None:
    conversation = await create(database, owner)
    before = await find_conversation(database, conversation, owner.account_id)
    assert before is not None
    assert before.metadata == {"topic": "mills"}
    after = await label_conversation(database, conversation, owner.account_id, {"other": "1"})
    assert after is not None
    assert (after.metadata, after.created_at) == ({"other": "1"}, before.created_at)
    assert await find_conversation(database, conversation, owner.account_id) == after


async def test_a_deleted_item_and_a_deleted_conversation_are_gone(database: Database, owner: Owner) -> None:
    conversation = await create(database, owner, "a", "b", "c")
    assert await delete_item(database, conversation, owner.account_id, "b")
    assert not await delete_item(database, conversation, owner.account_id, "b")
    assert await names(database, owner, conversation) == ["a", "c"]
    assert await delete_conversation(database, conversation, owner.account_id)
    assert not await delete_conversation(database, conversation, owner.account_id)
    assert await find_conversation(database, conversation, owner.account_id) is None
    assert not await add_items(database, conversation, owner.account_id, items("d"))
    left = "SELECT FROM conversation_items WHERE conversation_id = %(id)s"
    assert len(await execute(database.durable, left, {"id": conversation})) == 0


async def test_the_size_counts_items_and_bytes(database: Database, owner: Owner) -> None:
    conversation = await create(database, owner)
    assert await measure(database, conversation, owner.account_id) == Size(0, 0)
    added = [item("a", "è" * 10), item("b")]
    await add_items(database, conversation, owner.account_id, added)
    size = sum(len(one.document.encode()) for one in added)
    assert await measure(database, conversation, owner.account_id) == Size(2, size)


async def test_an_account_with_all_its_conversations_gets_no_other(database: Database, stranger: Owner) -> None:
    made = [await create(database, stranger, "a", most=2) for _ in range(3)]
    found = [await find_conversation(database, one, stranger.account_id) for one in made]
    assert [one is None for one in found] == [False, False, True]


async def test_another_account_sees_and_changes_nothing(database: Database, owner: Owner, stranger: Owner) -> None:
    conversation = await create(database, owner, "a")
    account = stranger.account_id
    assert await find_conversation(database, conversation, account) is None
    assert await label_conversation(database, conversation, account, {}) is None
    assert await measure(database, conversation, account) is None
    assert not await add_items(database, conversation, account, items("b"))
    assert await find_items(database, conversation, account, ["a"]) == []
    assert await list_items(database, conversation, account, after=None, limit=9, descending=False) == ([], False)
    assert not await delete_item(database, conversation, account, "a")
    assert not await delete_conversation(database, conversation, account)
    assert await names(database, owner, conversation) == ["a"]


async def test_a_conversation_that_is_created_again_stays_as_it_is(database: Database, owner: Owner) -> None:
    conversation = await create(database, owner, "a")
    await create_conversation(database, conversation, owner.account_id, metadata={}, items=items("b"), most=ANY_NUMBER)
    assert await names(database, owner, conversation) == ["a"]
    found = await find_conversation(database, conversation, owner.account_id)
    assert found is not None
    assert found.metadata == {"topic": "mills"}
