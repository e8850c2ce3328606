"""What a response adds to its conversation at its end: its own input items, and its output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from headrace.conversations.appending import Item
from headrace.formats.responses.context import own_items


def turn_of(document: Mapping[str, Any], response: Mapping[str, Any]) -> list[Item]:
    """Return the items of a stored request that are not its context, and those of its response's output."""
    items = (*own_items(document), *response["output"])
    return [Item(item["id"], orjson.dumps(item).decode()) for item in items]
