"""Every statement on conversations, apart from the one that ends jobs. Each sees the conversations of one account."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from headrace.conversations.appending import NEW_ITEMS, Item, append_items, item_parameters
from headrace.stores.database import Database, execute

# Bytes of items in one page of a list, unless one item alone has more.
_PAGE_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation. `created_at` is in Unix seconds."""

    id: str
    created_at: int
    metadata: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Size:
    """How many items a conversation has, and the bytes of their JSON."""

    items: int
    bytes: int


_CREATE = f"""
WITH created AS (
    INSERT INTO conversations (id, account_id, metadata, last_position)
    SELECT %(id)s, %(account_id)s, %(metadata)s::jsonb, cardinality(%(item_id)b::text[])
    WHERE (SELECT count(*) FROM (SELECT FROM conversations WHERE account_id = %(account_id)s LIMIT %(most)s) AS known)
          < %(most)s
    ON CONFLICT (id) DO NOTHING
    RETURNING id
)
INSERT INTO conversation_items (conversation_id, position, id, item)
SELECT created.id, new_item.number, new_item.id, new_item.item FROM created, {NEW_ITEMS}
"""


async def create_conversation(
    database: Database,
    conversation_id: str,
    account_id: str,
    *,
    metadata: Mapping[str, str],
    items: Sequence[Item],
    most: int,
) -> None:
    """Insert a conversation with its first items, unless it exists or the account has `most` conversations already."""
    parameters = {
        "id": conversation_id,
        "account_id": account_id,
        "metadata": orjson.dumps(metadata).decode(),
        "most": most,
        **item_parameters([(conversation_id, items)]),
    }
    await execute(database.durable, _CREATE, parameters)


_COLUMNS = "id, floor(extract(epoch FROM created_at))::bigint AS created_at, metadata"
_FIND = f"SELECT {_COLUMNS} FROM conversations WHERE id = %(id)s AND account_id = %(account_id)s"


async def find_conversation(database: Database, conversation_id: str, account_id: str) -> Conversation | None:
    """Return a conversation, or None if the account has no such conversation."""
    return await _one(database, _FIND, {"id": conversation_id, "account_id": account_id})


_LABEL = f"""
UPDATE conversations SET metadata = %(metadata)s::jsonb WHERE id = %(id)s AND account_id = %(account_id)s
RETURNING {_COLUMNS}
"""


async def label_conversation(
    database: Database, conversation_id: str, account_id: str, metadata: Mapping[str, str]
) -> Conversation | None:
    """Replace a conversation's metadata. Returns None if the account has no such conversation."""
    parameters = {"id": conversation_id, "account_id": account_id, "metadata": orjson.dumps(metadata).decode()}
    return await _one(database, _LABEL, parameters, write=True)


async def _one(
    database: Database, statement: str, parameters: Mapping[str, Any], *, write: bool = False
) -> Conversation | None:
    rows = await execute(database.durable if write else database.relaxed, statement, parameters)
    return Conversation(*rows[0]) if rows else None


_DELETE = "DELETE FROM conversations WHERE id = %(id)s AND account_id = %(account_id)s RETURNING id"


async def delete_conversation(database: Database, conversation_id: str, account_id: str) -> bool:
    """Delete a conversation and its items. Returns False if the account has no such conversation."""
    parameters = {"id": conversation_id, "account_id": account_id}
    return bool(await execute(database.durable, _DELETE, parameters))


_SIZE = """
SELECT count(conversation_items.id), coalesce(sum(octet_length(item)), 0)::bigint
FROM conversations LEFT JOIN conversation_items ON conversation_id = conversations.id
WHERE conversations.id = %(id)s AND account_id = %(account_id)s GROUP BY conversations.id
"""


async def measure(database: Database, conversation_id: str, account_id: str) -> Size | None:
    """Return a conversation's size, or None if the account has no such conversation."""
    rows = await execute(database.relaxed, _SIZE, {"id": conversation_id, "account_id": account_id})
    return Size(*rows[0]) if rows else None


_ADD = f"""
WITH {
    append_items(f'''
    SELECT conversations.id AS conversation_id, new_item.id, new_item.item, new_item.number
    FROM {NEW_ITEMS} JOIN conversations ON conversations.id = new_item.owner
    WHERE conversations.account_id = %(account_id)s
''')
}
SELECT id FROM grown
"""


async def add_items(database: Database, conversation_id: str, account_id: str, items: Sequence[Item]) -> bool:
    """Add items to the end of a conversation. Returns False if the account has no such conversation."""
    parameters = {"account_id": account_id, **item_parameters([(conversation_id, items)])}
    return bool(await execute(database.durable, _ADD, parameters))


_READ = """
SELECT {columns} FROM conversation_items JOIN conversations ON conversations.id = conversation_id
WHERE conversation_id = %(conversation_id)s AND account_id = %(account_id)s
"""
_ITEMS = (
    _READ.format(columns="conversation_items.id, item")
    + "AND conversation_items.id = ANY(%(ids)b::text[]) ORDER BY position"
)


async def find_items(database: Database, conversation_id: str, account_id: str, item_ids: Sequence[str]) -> list[Item]:
    """Return those of the items that the conversation has, oldest first."""
    parameters = {"conversation_id": conversation_id, "account_id": account_id, "ids": list(item_ids)}
    return [Item(*row) for row in await execute(database.relaxed, _ITEMS, parameters)]


_ALL = _READ.format(columns="item") + "ORDER BY position LIMIT %(limit)s"


async def read_items(database: Database, conversation_id: str, account_id: str, *, limit: int) -> list[str]:
    """Return the JSON of the first `limit` items, oldest first."""
    parameters = {"conversation_id": conversation_id, "account_id": account_id, "limit": limit}
    return [row[0] for row in await execute(database.relaxed, _ALL, parameters)]


_DELETE_ITEM = """
DELETE FROM conversation_items USING conversations
WHERE conversation_items.id = %(item_id)s AND conversation_id = %(conversation_id)s
      AND conversations.id = conversation_id AND account_id = %(account_id)s
RETURNING conversation_items.id
"""


async def delete_item(database: Database, conversation_id: str, account_id: str, item_id: str) -> bool:
    """Delete an item. Returns False if the account has no such conversation, or the conversation no such item."""
    parameters = {"conversation_id": conversation_id, "account_id": account_id, "item_id": item_id}
    return bool(await execute(database.durable, _DELETE_ITEM, parameters))


# An item has up to the bytes of a body, so a page also ends by its bytes.
_PAGE = """
SELECT id, CASE WHEN before < %(bytes)s THEN item END AS item FROM (
    SELECT position, id, item,
           sum(octet_length(item)) OVER (ORDER BY {order} ROWS UNBOUNDED PRECEDING) - octet_length(item) AS before
    FROM ({items}
          AND (%(after)s::text IS NULL OR position {beyond} (
              SELECT position FROM conversation_items
              WHERE conversation_id = %(conversation_id)s AND id = %(after)s::text))
          ORDER BY {order} LIMIT %(limit)s + 1) AS found
) AS page
ORDER BY {order}
"""
_POSITIONED = _READ.format(columns="position, conversation_items.id, item")
_OLDEST_FIRST = _PAGE.format(items=_POSITIONED, order="position", beyond=">")
_NEWEST_FIRST = _PAGE.format(items=_POSITIONED, order="position DESC", beyond="<")


async def list_items(
    database: Database,
    conversation_id: str,
    account_id: str,
    *,
    after: str | None,
    limit: int,
    descending: bool,
    page_bytes: int = _PAGE_BYTES,
) -> tuple[list[Item], bool]:
    """Return up to `limit` items past the item `after`, and whether there are more.

    A page of large items has fewer. It is empty if the conversation does not have the item `after`.
    """
    parameters = {
        "conversation_id": conversation_id,
        "account_id": account_id,
        "after": after,
        "limit": limit,
        "bytes": page_bytes,
    }
    rows = await execute(database.relaxed, _NEWEST_FIRST if descending else _OLDEST_FIRST, parameters)
    page = [Item(*row) for row in rows[:limit] if row.item is not None]
    return page, len(page) < len(rows)
