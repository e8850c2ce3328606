"""A log that a lost attempt has left: what is open in it is closed, and the next attempt goes on behind it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import orjson

from headrace.formats.responses.output import PART_KINDS, CallItem, Item, TextItem, item_of
from headrace.formats.responses.sent_events import Key, key_of


class Resumed(NamedTuple):
    """What a new attempt has to know of the log before it."""

    lines: list[bytes]
    """The lines that close the open items as incomplete."""
    following: int
    """The `output_index` of the next item."""
    call_ids: frozenset[str]
    """The ids of calls in the log. A client of OpenAI's takes no stream in which two calls have the same one."""


def resume(log: Sequence[bytes]) -> Resumed:
    """Return how a new attempt goes on behind the lines that readers have of the earlier ones."""
    if not log:
        return Resumed([], 0, frozenset())
    open_items: dict[int, Item] = {}
    call_ids: set[str] = set()
    told: set[Key] = set()
    following = 0
    for line in log:
        event = orjson.loads(line)
        index, item = event.get("output_index"), event.get("item")
        match event["type"]:
            case "response.output_item.added" if type(index) is int and isinstance(item, dict):
                open_items[index] = item_of(item, index)
                following = max(following, index + 1)
                call_ids.add(item.get("call_id", ""))
            case "response.output_item.done":
                open_items.pop(index, None)
            case kind if index in open_items:
                told.add(key_of(kind, event))
                # An event that a provider's own stream had in another form is left out.
                with contextlib.suppress(LookupError, TypeError, AttributeError):
                    _replay(open_items[index], kind, event)
    closing = [line for index in sorted(open_items) for line in open_items[index].close("incomplete")]
    # The log may end between two events that end a part.
    closing = [line for line in closing if _key_of_line(line) not in told]
    return Resumed(closing, following, frozenset(call_ids))


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


def _key_of_line(line: bytes) -> Key:
    event = orjson.loads(line)
    return key_of(event["type"], event)
