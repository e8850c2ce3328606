"""The items of a response's output as they grow: each gives the lines of its events, and at its end the whole item.

A line is an event's JSON with `type` first and without `sequence_number`, which the API adds. The order of an item's
events is OpenAI's: added, its parts with their deltas, done.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import orjson

from headrace.formats.text_buffer import TextBuffer

Status = Literal["in_progress", "completed", "incomplete"]


def render(kind: str, **fields: Any) -> bytes:
    """Return the line of an event."""
    line = orjson.dumps({"type": kind, **fields})
    return bytes(memoryview(line))  # a copy: orjson's result keeps the kilobytes that it was written into


@dataclass(frozen=True, slots=True)
class PartKind:
    """A kind of text in an item: the names that OpenAI gives it."""

    type: str
    text: str
    """The part's field that holds the text."""
    events: str
    """The beginning of the names of the events of its text."""
    part_events: str
    index: str
    """The events' field for the part's place in the item."""
    place: str
    """The item's field that lists such parts."""


TEXT: Final = PartKind(
    "output_text", "text", "response.output_text", "response.content_part", "content_index", "content"
)
REFUSAL: Final = PartKind("refusal", "refusal", "response.refusal", "response.content_part", "content_index", "content")
THOUGHT: Final = PartKind(
    "reasoning_text", "text", "response.reasoning_text", "response.content_part", "content_index", "content"
)
SUMMARY: Final = PartKind(
    "summary_text",
    "text",
    "response.reasoning_summary_text",
    "response.reasoning_summary_part",
    "summary_index",
    "summary",
)
PART_KINDS: Final = {kind.type: kind for kind in (TEXT, REFUSAL, THOUGHT, SUMMARY)}


class Part:
    """A part of an item, whose text grows by deltas.

    The line of a delta is `before`, the text as JSON, and `after`: most lines of a stream are made of these three.
    """

    __slots__ = ("_where", "after", "annotations", "before", "kind", "logprobs", "pieces")

    def __init__(self, kind: PartKind, item_id: str, output_index: int, index: int) -> None:
        self.kind = kind
        self.pieces = TextBuffer()
        self.annotations: list[Any] = []
        self.logprobs: list[Any] = []
        self._where = {"item_id": item_id, "output_index": output_index, kind.index: index}
        self.before = render(f"{kind.events}.delta", **self._where)[:-1] + b',"delta":'
        self.after = b',"logprobs":[]}' if kind is TEXT else b"}"

    def added(self) -> bytes:
        """Return the line that tells of the part, which is empty still."""
        empty: dict[str, Any] = {"type": self.kind.type, self.kind.text: ""}
        if self.kind is TEXT:
            empty |= {"annotations": [], "logprobs": []}
        return render(f"{self.kind.part_events}.added", **self._where, part=empty)

    def delta(self, text: str, logprobs: Sequence[Any] = ()) -> bytes:
        """Return the line of more text, and of its log probabilities if they are asked for."""
        self.pieces.add(text)
        if not logprobs:
            return self.before + orjson.dumps(text) + self.after
        self.logprobs += logprobs
        return self.before + orjson.dumps(text) + b',"logprobs":' + orjson.dumps(logprobs) + b"}"

    def annotate(self, annotation: Any) -> bytes:
        """Return the line of one more annotation."""
        self.annotations.append(annotation)
        return render(
            "response.output_text.annotation.added",
            **self._where,
            annotation_index=len(self.annotations) - 1,
            annotation=annotation,
        )

    def value(self) -> dict[str, Any]:
        """Return the part as far as it has come."""
        value: dict[str, Any] = {"type": self.kind.type, self.kind.text: self.pieces.text}
        if self.kind is TEXT:
            value |= {"annotations": self.annotations, "logprobs": self.logprobs}
        return value

    def done(self) -> list[bytes]:
        """Return the lines that end the part."""
        kind, value = self.kind, self.value()
        said = {kind.text: value[kind.text]}
        if kind is TEXT:
            said["logprobs"] = self.logprobs
        return [
            render(f"{kind.events}.done", **self._where, **said),
            render(f"{kind.part_events}.done", **self._where, part=value),
        ]


def text_message(item_id: str, text: str, status: Status) -> dict[str, Any]:
    """Return a message that came whole and has one text, as its parts and lines would have made it."""
    content = [{"type": TEXT.type, TEXT.text: text, "annotations": [], "logprobs": []}]
    return {"id": item_id, "type": "message", "status": status, "role": "assistant", "content": content}


class Item:
    """An item of any type. One of a type that is not known here does not grow."""

    def __init__(self, item: dict[str, Any], output_index: int) -> None:
        """Take the item as it is when it is added."""
        self.item = item
        self.output_index = output_index

    def added(self) -> bytes:
        """Return the line that adds the item."""
        return render("response.output_item.added", output_index=self.output_index, item=self.item)

    def close(self, status: Status | None) -> list[bytes]:
        """Return the lines that end the item, which is whole from here on. A status of None leaves the item's own."""
        if status is not None:
            self.item["status"] = status
        return [render("response.output_item.done", output_index=self.output_index, item=self.item)]


class TextItem(Item):
    """A message or reasoning: an item made of parts that come one after another."""

    def __init__(self, item: dict[str, Any], output_index: int) -> None:
        """Take the item without its parts."""
        super().__init__(item, output_index)
        self.part: Part | None = None

    def begin(self, kind: PartKind) -> tuple[Part, list[bytes]]:
        """Begin a part, and return it with the lines that end the one before it and add it."""
        lines = self.end_part()
        index = len(self.item.get(kind.place) or ())
        part = self.part = Part(kind, self.item["id"], self.output_index, index)
        return part, [*lines, part.added()]

    def end_part(self) -> list[bytes]:
        """Return the lines that end the open part, if there is one."""
        part, self.part = self.part, None
        if part is None:
            return []
        lines = part.done()
        self.item[part.kind.place] = [*(self.item.get(part.kind.place) or ()), part.value()]
        return lines

    def take_whole(self, part: dict[str, Any]) -> list[bytes]:
        """Return the lines of a part that comes whole: its text, if it has any, is of a type without events."""
        lines = self.end_part()
        content = self.item.setdefault("content", [])
        where = {"item_id": self.item["id"], "output_index": self.output_index, "content_index": len(content)}
        content.append(part)
        return [*lines, *(render(f"response.content_part.{step}", **where, part=part) for step in ("added", "done"))]

    def close(self, status: Status | None) -> list[bytes]:
        """Return the lines that end the open part and the item."""
        return [*self.end_part(), *super().close(status)]


@dataclass(frozen=True, slots=True)
class CallKind:
    """A kind of call: the names that OpenAI gives it."""

    type: str
    text: str
    """The item's field that holds what the tool is called with."""
    events: str


FUNCTION: Final = CallKind("function_call", "arguments", "response.function_call_arguments")
CUSTOM: Final = CallKind("custom_tool_call", "input", "response.custom_tool_call_input")
CALL_KINDS: Final = {kind.type: kind for kind in (FUNCTION, CUSTOM)}


class CallItem(Item):
    """A call of a function or of a custom tool."""

    def __init__(self, item: dict[str, Any], output_index: int) -> None:
        """Take the item with nothing to call it with yet."""
        super().__init__(item, output_index)
        self.kind = CALL_KINDS[item["type"]]
        self.pieces = TextBuffer()
        self._where = {"item_id": item["id"], "output_index": output_index}
        self._before = render(f"{self.kind.events}.delta", **self._where)[:-1] + b',"delta":'

    def delta(self, text: str) -> bytes:
        """Return the line of more text of what the tool is called with."""
        self.pieces.add(text)
        return self._before + orjson.dumps(text) + b"}"

    def close(self, status: Status | None) -> list[bytes]:
        """Return the lines that end the call."""
        text = self.item[self.kind.text] = self.pieces.text
        said = {"name": self.item.get("name") or ""} if self.kind is FUNCTION else {}
        done = render(f"{self.kind.events}.done", **self._where, **said, **{self.kind.text: text})
        return [done, *super().close(status)]


def item_of(item: dict[str, Any], output_index: int) -> Item:
    """Return an item that has been added, by its type."""
    if item.get("type") in ("message", "reasoning"):
        return TextItem(item, output_index)
    return CallItem(item, output_index) if item.get("type") in CALL_KINDS else Item(item, output_index)


def whole(item: dict[str, Any], output_index: int) -> list[bytes]:
    """Return all lines of an item that is whole already. Its texts come in one delta each."""
    text_item = item.get("type") in ("message", "reasoning")
    call = CALL_KINDS.get(item.get("type", ""))
    places = [name for name in ("summary", "content") if text_item and isinstance(item.get(name), list)]
    emptied: dict[str, Any] = {name: [] for name in places} if call is None else {call.text: ""}
    if "status" in item:
        emptied["status"] = "in_progress"
    grown = item_of({**item, **emptied}, output_index)
    lines = [grown.added()]
    if isinstance(grown, TextItem):
        for part in (part for name in places for part in item[name]):
            lines += _whole_part(grown, part)
    elif isinstance(grown, CallItem) and item[grown.kind.text]:
        lines.append(grown.delta(item[grown.kind.text]))
    return lines + grown.close(item.get("status"))


def _whole_part(item: TextItem, part: dict[str, Any]) -> list[bytes]:
    kind = PART_KINDS.get(part.get("type", ""))
    if kind is None:
        return item.take_whole(part)
    grown, lines = item.begin(kind)
    logprobs = part.get("logprobs") or ()
    if part[kind.text]:
        lines.append(grown.delta(part[kind.text], logprobs))
    else:
        grown.logprobs += logprobs
    return lines + [grown.annotate(annotation) for annotation in part.get("annotations") or ()]
