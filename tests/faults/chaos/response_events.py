"""The events of a response, read as strictly as OpenAI documents their order."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from tests.faults.chaos.notes import ENDS, calls_in
from tests.faults.chaos.turns import said_by

Json = dict[str, Any]

_OPENING = ("response.created", "response.queued", "response.in_progress")
_PLACES = {"response.content_part": "content", "response.reasoning_summary_part": "summary"}
_INDEXES = {"content": "content_index", "summary": "summary_index"}


@dataclass(slots=True)
class Item:
    """An item that was added, as far as it has come."""

    id: str
    texts: dict[str, list[str]] = field(default_factory=lambda: {"content": [], "summary": []})
    """The text of each part."""
    arguments: str = ""
    part: str | None = None
    """Where the part is that is open."""
    said: bool = False
    """The whole text of the open part was told, or all arguments."""
    done: Json | None = None

    def take(self, kind: str, data: Json) -> str:
        """Take an event of the item; return what is wrong with it, if anything."""
        group, _, step = kind.rpartition(".")
        if self.done is not None or data.get("item_id", data.get("item", {}).get("id")) != self.id:
            return "it is of an item that is done, or has another id"
        if kind == "response.output_item.done":
            return self._end(data["item"])
        if group in _PLACES:
            return self._take_part(_PLACES[group], step, data)
        if group == "response.function_call_arguments":
            return self._take_text(step, data, "arguments")
        return self._take_text(step, data, "text")

    def _take_part(self, place: str, step: str, data: Json) -> str:
        texts, at = self.texts[place], data[_INDEXES[place]]
        if step == "added":
            if self.part is not None or at != len(texts):
                return "a part begins within another one"
            self.part, self.said = place, False
            texts.append("")
            return ""
        if self.part != place or at != len(texts) - 1 or not self.said or data["part"]["text"] != texts[-1]:
            return f"a part ends that is not open, or with another text than {texts}"
        self.part = None
        return ""

    def _take_text(self, step: str, data: Json, name: str) -> str:
        if self.said or (name == "text") == (self.part is None):
            return "more text of a part that is closed"
        if name == "text" and data[_INDEXES[self.part or "content"]] != len(self.texts[self.part or "content"]) - 1:
            return "text of another part"
        so_far = self.arguments if name == "arguments" else self.texts[self.part or "content"][-1]
        if step == "done":
            self.said = True
            return "" if data[name] == so_far else f"its deltas are {so_far!r}"
        if name == "arguments":
            self.arguments += data["delta"]
        else:
            self.texts[self.part or "content"][-1] += data["delta"]
        return ""

    def _end(self, item: Json) -> str:
        self.done = item
        if self.part is not None:
            return "an item ends before its part"
        told = [self.arguments] if "arguments" in item else [*self.texts["summary"], *self.texts["content"]]
        if said_by(item) != told:
            return f"its deltas are {told}"
        if len(calls_in(" ".join(told))) > 1:
            return "one item has text of several attempts"
        return ""


@dataclass(slots=True)
class EventLog:
    """All events of one response, from number 0 on."""

    items: list[Item] = field(default_factory=list)
    final: Json | None = None
    wrong: list[str] = field(default_factory=list)
    _kinds: list[str] = field(default_factory=list)

    def take(self, event: str) -> None:
        """Take the next event."""
        fields = dict(line.partition(": ")[::2] for line in event.split("\n"))
        data = json.loads(fields["data"])
        kind, number = data["type"], data["sequence_number"]
        problem = ""
        if number != len(self._kinds) or fields["event"] != kind or fields.get("id", str(number)) != str(number):
            problem = f"not number {len(self._kinds)}"
        elif self.final is not None:
            problem = "after the end"
        elif kind in ENDS:
            problem = self._end(kind, data["response"])
        elif kind in _OPENING:
            problem = "" if self._kinds == [opening for opening in _OPENING if opening in self._kinds] else "too late"
        elif kind == "response.output_item.added":
            self.items.append(Item(data["item"]["id"]))
            problem = "" if data["output_index"] == len(self.items) - 1 else "an item out of order"
        elif not 0 <= data["output_index"] < len(self.items):
            problem = "of an item that was not added"
        else:
            problem = self.items[data["output_index"]].take(kind, data)
        self._kinds.append(kind)
        if problem:
            self.wrong.append(f"event {number}: {problem}: {event[:500]}")

    @property
    def left(self) -> list[Item]:
        """The items that are not in the final output: those of attempts that were lost."""
        output = {item["id"] for item in (self.final or {}).get("output", ())}
        return [item for item in self.items if item.id not in output]

    def _end(self, kind: str, response: Json) -> str:
        self.final = response
        status = response["status"]
        if kind != f"response.{'failed' if status == 'cancelled' else status}":
            return f"a response that is {status}"
        if status in {"failed", "cancelled"}:
            return "" if response["output"] == [] else "an output"
        if any(item.done is None for item in self.items):
            return "before the end of its items"
        output = [item.done for item in self.items if item not in self.left]
        if response["output"] != output:
            return f"its items are {output}"
        if len(calls_in(" ".join(text for item in response["output"] for text in said_by(item)))) != 1:
            return "its output is of several attempts"
        return self._check_left()

    def _check_left(self) -> str:
        # Reasoning that its provider has ended has no status with some providers.
        ended = [item.done for item in self.left if item.done is not None]
        statuses = {item.get("status") for item in ended if item["type"] != "reasoning" or "status" in item}
        return "" if statuses <= {"incomplete", "completed"} else f"items of lost attempts are {statuses}"
