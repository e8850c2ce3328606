"""The items that a client gives to a conversation: checked, with ids of ours, and whole as the API lists them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import orjson
from pydantic import BaseModel, ConfigDict, Field

from headrace.conversations.appending import Item
from headrace.errors import invalid_parameter
from headrace.formats.chat.request import Metadata
from headrace.formats.chat.slices import validate_in_slices
from headrace.formats.json_document import parse_json
from headrace.formats.responses import items as responses
from headrace.formats.responses.context import kind_of, new_id_of, whole_item

MOST_ADDED = 20
"""Items that a client may add at a time: OpenAI's limit."""

# What only a request can say: refer to an item, and ask for a compaction.
_NOT_KEPT = frozenset({"item_reference", "compaction_trigger"})

_Items = Annotated[list[responses.Item], Field(max_length=MOST_ADDED, fail_fast=True)]


class ConversationRequest(BaseModel):
    """A new conversation."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        json_schema_extra={
            "examples": [{"metadata": {"customer": "42"}, "items": [{"role": "user", "content": "Hello!"}]}]
        },
    )

    metadata: Metadata | None = None
    items: _Items | None = Field(default=None, description="Its first items, as in a response's `input`")


class NewItems(BaseModel):
    """Items to add to the end of a conversation."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        json_schema_extra={"examples": [{"items": [{"role": "user", "content": "Hello!"}]}]},
    )

    items: _Items = Field(description="As in a response's `input`")


def parse_conversation(body: bytes) -> tuple[Metadata, list[dict[str, Any]]]:
    """Return the metadata and the items of a new conversation. Raises as `parse_items` does."""
    document = parse_json(body)
    asked = validate_in_slices(ConversationRequest, document, "items", NewItems, most=MOST_ADDED)
    return asked.metadata or {}, _kept(document.get("items") or [])


def parse_items(body: bytes) -> list[dict[str, Any]]:
    """Return the items to add, as they came.

    Raises:
        InvalidRequestError: The body is not valid, or an item is one that a conversation cannot keep.
    """
    document = parse_json(body)
    validate_in_slices(NewItems, document, "items", NewItems, most=MOST_ADDED)
    return _kept(document["items"])


def _kept(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for index, item in enumerate(items):
        if kind_of(item) in _NOT_KEPT:
            raise invalid_parameter(f"items[{index}].type", f"a conversation cannot keep a '{kind_of(item)}'")
    return items


def with_new_ids(given: Sequence[Mapping[str, Any]], digits: str) -> list[Item]:
    """Return checked items with ids of ours, made of 32 hexadecimal `digits` and the items' numbers from 0 on."""
    items = []
    for number, item in enumerate(given):
        whole = whole_item(item)
        whole["id"] = new_id_of(whole, digits, number)
        items.append(Item(whole["id"], orjson.dumps(whole).decode()))
    return items
