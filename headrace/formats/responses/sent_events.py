"""Which events of its output a stream has had: those that a server leaves out are added where they belong.

Clients need each of them. Some drop the pieces of a text whose part was never added, some wait for the end of an item.
Nothing is added to a stream that has the order of OpenAI's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from headrace.formats.responses.output import CALL_KINDS, REFUSAL, SUMMARY, TEXT, CallItem, Item, Part, PartKind, whole

Json = dict[str, Any]
# The place in the output, the type, the place of the part, and that of the annotation.
Key = tuple[Any, str, Any, Any]

_ADDED, _DONE = "response.output_item.added", "response.output_item.done"
_PARTS_ADDED = frozenset(f"{kind.part_events}.added" for kind in (TEXT, SUMMARY))
_DELTAS = {f"{kind.events}.delta": kind for kind in (TEXT, REFUSAL, SUMMARY)}
_TEXTS = {f"{kind.events}.done": kind for kind in (TEXT, REFUSAL, SUMMARY)}
_CALLS = {f"{kind.events}.done": kind for kind in CALL_KINDS.values()}
_OF_CALLS = frozenset(f"{kind.events}.{step}" for kind in CALL_KINDS.values() for step in ("delta", "done"))
# Items whose events are the same at each provider.
_KNOWN = frozenset({"message", *CALL_KINDS})


class SentEvents:
    """The events that one stream has had so far."""

    def __init__(self) -> None:
        """Begin a stream, which has had no events."""
        self._keys: set[Key] = set()
        self.items = 0
        """Items that have ended."""

    def add(self, kind: str, event: Json) -> list[bytes] | None:
        """Add an event, and return the lines that are missing before it.

        None means that the event itself comes too early: nothing is known of the call that it is of. Its item has all.
        """
        index = event.get("output_index")
        if type(index) is not int:
            return []
        lines: list[bytes] = []
        if kind in _PARTS_ADDED:
            lines = self._item_of(event, index)
        elif kind in _DELTAS:
            lines = self._beginning(_DELTAS[kind], index, event)
        elif kind in _TEXTS:
            part = _TEXTS[kind]
            lines = self._beginning(part, index, event)
            if event[part.text] and key_of(f"{part.events}.delta", event) not in self._keys:
                lines.append(Part(part, event["item_id"], index, event[part.index]).delta(event[part.text]))
        elif kind in _OF_CALLS:
            if (index, _ADDED, None, None) not in self._keys:
                return None
            call = _CALLS.get(kind)
            if call is not None and event[call.text] and (index, f"{call.events}.delta", None, None) not in self._keys:
                lines = [CallItem({"id": event["item_id"], "type": call.type}, index).delta(event[call.text])]
        elif kind == _DONE:
            self.items += 1
            self._keys.add((index, _DONE, None, None))
            return self.rest(event["item"], index)
        self._keys.add(key_of(kind, event))
        return lines

    def rest(self, item: Json, index: int) -> list[bytes]:
        """Return the lines that an item lacks, up to its end."""
        begun = (index, _ADDED, None, None) in self._keys
        if begun and (item.get("type") not in _KNOWN or self._has_all(item, index)):
            return []
        lines = []
        for line in whole(item, index):
            event = orjson.loads(line)
            key = key_of(event["type"], event)
            if key not in self._keys:
                self._keys.add(key)
                lines.append(line)
        return lines

    def _beginning(self, part: PartKind, index: int, event: Json) -> list[bytes]:
        """Return the lines that add a part, and its item, before its first text."""
        place, added = event.get(part.index), f"{part.part_events}.added"
        if type(place) is not int or (index, added, place, None) in self._keys:
            return []
        self._keys.add((index, added, place, None))
        return [*self._item_of(event, index), Part(part, event["item_id"], index, place).added()]

    def _item_of(self, event: Json, index: int) -> list[bytes]:
        """Return the line that adds the item of an event within it, unless it has been added."""
        if (index, _ADDED, None, None) in self._keys:
            return []
        self._keys.add((index, _ADDED, None, None))
        item: Json = {"id": event["item_id"], "type": "message", "status": "in_progress"}
        thought = "summary_index" in event or (event.get("part") or {}).get("type") == "reasoning_text"
        empty = {"type": "reasoning", "summary": []} if thought else {"role": "assistant", "content": []}
        return [Item({**item, **empty}, index).added()]

    def _has_all(self, item: Json, index: int) -> bool:
        """Return whether every part of an item that has been added has ended, and so has the item."""
        if item.get("type") in CALL_KINDS:
            parts: list[Key] = [(index, f"{CALL_KINDS[item['type']].events}.done", None, None)]
        else:
            content = item.get("content") or ()
            parts = [(index, "response.content_part.done", place, None) for place in range(len(content))]
        return {(index, _DONE, None, None), *parts} <= self._keys


def key_of(kind: str, event: Mapping[str, Any]) -> Key:
    """Return what identifies an event of the output. All deltas of one text have the same key."""
    place = event.get("content_index", event.get("summary_index"))
    return event.get("output_index"), kind, place, event.get("annotation_index")
