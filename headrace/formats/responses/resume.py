"""A log that a lost attempt has left: what is open in it is closed, and the next attempt goes on behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from headrace.formats.responses.output import PART_KINDS, CallItem, Item, TextItem, item_of


def closing_lines(log: Sequence[bytes]) -> tuple[list[bytes], int]:
    """Return the lines that close the open items of a log as incomplete, and the next item's `output_index`."""
    open_items: dict[int, Item] = {}
    following = 0
    for line in log:
        event = orjson.loads(line)
        index = event.get("output_index")
        match event["type"]:
            case "response.output_item.added":
                open_items[index] = item_of(event["item"], index)
                following = max(following, index + 1)
            case "response.output_item.done":
                open_items.pop(index, None)
            case kind if index in open_items:
                _replay(open_items[index], kind, event)
    closing = [line for index in sorted(open_items) for line in open_items[index].close("incomplete")]
    return closing, following


def _replay(item: Item, kind: str, event: dict[str, Any]) -> None:
    """Bring an item to where it was after an event."""
    if isinstance(item, CallItem):
        if kind == f"{item.kind.events}.delta":
            item.delta(event["delta"])
    elif isinstance(item, TextItem):
        part = item.part
        if kind.endswith("_part.added"):
            if event["part"].get("type") in PART_KINDS:
                item.begin(PART_KINDS[event["part"]["type"]])
        elif kind.endswith("_part.done"):
            item.end_part()
        elif part is not None and kind == "response.output_text.annotation.added":
            part.annotate(event["annotation"])
        elif part is not None and kind == f"{part.kind.events}.delta":
            part.delta(event["delta"], event.get("logprobs") or ())
