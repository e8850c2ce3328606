"""A tool call of a chat answer as an item of a response.

A custom tool is offered to a chat model as a function with one string, `input`. Its call is told once it is whole,
because only then can the string be taken out of the JSON.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

import orjson

from headrace.formats.responses.offered import Origin
from headrace.formats.responses.output import CUSTOM, FUNCTION, CallItem, Status
from headrace.formats.text_buffer import TextBuffer
from headrace.ids import item_id


class Call:
    """One call, piece by piece."""

    __slots__ = ("_held", "_kind", "item", "open")

    def __init__(
        self,
        piece: Mapping[str, Any],
        job_id: str,
        number: int,
        *,
        origins: Mapping[str, Origin] = MappingProxyType({}),
        taken: Collection[str] = (),
    ) -> None:
        """Take the first piece of a call, the tools that functions stand for, and ids that other calls have."""
        self._kind = "custom" if piece.get("type") == "custom" else "function"
        name = piece[self._kind].get("name") or ""
        origin = origins.get(name) if self._kind == "function" else None
        wrapped = origin is not None and origin.custom
        kind = CUSTOM if wrapped or self._kind == "custom" else FUNCTION
        given = piece.get("id")
        item = {
            "id": item_id("fc" if kind is FUNCTION else "ctc", job_id, number),
            "type": kind.type,
            "status": "in_progress",
            "call_id": given if given and given not in taken else item_id("call", job_id, number),
            "name": name if origin is None else origin.name,
            kind.text: "",
        }
        if origin is not None and origin.namespace is not None:
            item["namespace"] = origin.namespace
        if "extra_content" in piece:  # such as a signature, without which some models take no answer
            item["extra_content"] = piece["extra_content"]
        self.item = CallItem(item, number)
        self.open = True
        # The pieces of a wrapped call, of which no line is made before it is whole.
        self._held = TextBuffer() if wrapped else None

    def take(self, piece: Mapping[str, Any]) -> list[bytes]:
        """Return the lines of more of the call. What comes behind its end is left out."""
        if not self.open:
            return []
        said = piece.get(self._kind) or {}
        text = said.get("arguments" if self._kind == "function" else "input")
        if not self.item.item["name"]:
            self.item.item["name"] = said.get("name") or ""
        if not text:
            return []
        if self._held is None:
            return [self.item.delta(text)]
        self._held.add(text)
        return []

    def is_whole(self) -> bool:
        """Return whether a function's arguments are a whole object. Text for a custom tool has no end of its own."""
        if self._kind == "custom":
            return False
        text = (self.item.pieces if self._held is None else self._held).text
        return text.lstrip()[:1] == "{" and _parsed(text) is not None

    def close(self, status: Status) -> list[bytes]:
        """Return the lines that end the call."""
        self.open = False
        lines: list[bytes] = []
        if self._held and (text := _unwrapped(self._held.text)):
            lines.append(self.item.delta(text))
        return lines + self.item.close(status)


def _unwrapped(arguments: str) -> str:
    """Return the one string of a function's arguments; a model that does not keep to it gives its text as it is."""
    parsed = _parsed(arguments)
    if isinstance(parsed, dict) and len(parsed) == 1:
        (text,) = parsed.values()
        if isinstance(text, str):
            return text
    return arguments


def _parsed(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
