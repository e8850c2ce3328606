"""How items get into a conversation: each addition takes a block of positions under the lock of the conversation's row.

So the items of responses that end at the same time do not mix. The same CTEs serve the API, and the statement that
ends jobs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Item:
    """An item of a conversation. `document` is its JSON, with its id."""

    id: str
    document: str


NEW_ITEMS = (
    "unnest(%(item_owner)b::text[], %(item_id)b::text[], %(item)b::text[])"
    " WITH ORDINALITY AS new_item (owner, id, item, number)"
)
"""An item of a FROM clause that makes rows of the parameters that `item_parameters` returns."""


def item_parameters(given: Sequence[tuple[str, Sequence[Item]]]) -> dict[str, list[Any]]:
    """Return the parameters of `NEW_ITEMS`. Each pair is the id of what adds the items, such as a job's, and the items.

    The items of a pair stay together, in their order.
    """
    flat = [(owner, item) for owner, items in given for item in items]
    return {
        "item_owner": [owner for owner, _ in flat],
        "item_id": [item.id for _, item in flat],
        "item": [item.document for _, item in flat],
    }


def append_items(added: str) -> str:
    """Return CTEs for a statement that adds items to conversations, the last of which returns the items' ids.

    `added` is SQL for rows of `conversation_id`, `id`, `item` and `number`, by which they are ordered. A conversation
    that is deleted meanwhile gets no items. An item whose id the conversation has already is left out: a client may
    send back an item that it has read there.
    """
    return f"""addition AS MATERIALIZED (
    SELECT conversation_id, id, item,
           row_number() OVER (PARTITION BY conversation_id ORDER BY number) AS number,
           count(*) OVER (PARTITION BY conversation_id) AS total
    FROM ({added}) AS added
), locked AS MATERIALIZED (
    SELECT id FROM conversations WHERE id IN (SELECT conversation_id FROM addition) ORDER BY id FOR NO KEY UPDATE
), grown AS (
    UPDATE conversations SET last_position = last_position + total
    FROM locked JOIN (SELECT DISTINCT conversation_id, total FROM addition) AS block ON conversation_id = locked.id
    WHERE conversations.id = locked.id
    RETURNING conversations.id, last_position - total AS before
), appended AS (
    INSERT INTO conversation_items (conversation_id, position, id, item)
    SELECT conversation_id, before + number, addition.id, item
    FROM addition JOIN grown ON grown.id = addition.conversation_id
    ON CONFLICT (conversation_id, id) DO NOTHING
    RETURNING id
)"""
