"""The items of an answer while they arrive: what has been said of each, so that nothing is said twice or lost.

A stream says everything several times: in pieces, in the events that end a part or an item, and in the response at the
end. Servers leave out some of these, so each is asked for what the earlier ones did not have.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from headrace.formats.text_buffer import TextBuffer

Json = dict[str, Any]

CALLS: Mapping[str, tuple[str, str]] = {
    "function_call": ("function", "arguments"),
    "custom_tool_call": ("custom", "input"),
}
"""The kinds of items that call a tool of the client's: the type of the call, and the field of its arguments."""


def kind_of(item: Json) -> str:
    """Return the type of an item. A message may lack it."""
    return str(item.get("type") or "message")


class Text:
    """A part of an item: its text so far, and where it begins in the whole."""

    __slots__ = ("_pieces", "annotations", "start")

    def __init__(self, start: int) -> None:
        self.start = start
        """Characters of the content before the part."""
        self.annotations = 0
        """Annotations of the part that have been passed on."""
        self._pieces = TextBuffer()

    def add(self, piece: str) -> None:
        """Take the next piece."""
        self._pieces.add(piece)

    @property
    def so_far(self) -> str:
        """All pieces."""
        return self._pieces.text

    def rest_of(self, whole: str) -> str:
        """Return what the whole text has beyond the pieces; nothing where it does not begin with them."""
        said = self.so_far
        return whole[len(said) :] if whole.startswith(said) else ""


class Item:
    """An item of the output, as far as it has arrived."""

    __slots__ = ("call", "id", "kind", "over", "sealed", "texts", "thought")

    def __init__(self, kind: str, name: str | None) -> None:
        self.kind = kind
        self.id = name
        self.texts: dict[tuple[str, int], Text] = {}
        """The parts, by the field of the message that they go to and their place in the item."""
        self.thought: str | None = None
        """Which of both forms of its thoughts a reasoning item has passed on: the summary, or the text itself."""
        self.call: int | None = None
        """The place of a call among the calls, once its name is known."""
        self.sealed = False
        """Whether the encrypted thoughts have been passed on."""
        self.over = False
        """Whether the item has ended."""


class Items:
    """The items of one answer, found by whatever a server names them by."""

    def __init__(self) -> None:
        self._placed: dict[tuple[int, str], Item] = {}
        self._all: list[Item] = []

    def begin(self, index: Any, kind: str, name: Any) -> Item:
        """Return a new item, or the one that goes on at this place and under this id."""
        known = self._placed.get((index, kind)) if type(index) is int else None
        if known is not None and not known.over and name in (None, known.id):
            return known
        return self._add(index, kind, name)

    def find(self, index: Any, kind: str, name: Any) -> Item:
        """Return the item of a kind at a place of the output, else the one with this id, else a new one."""
        if type(index) is int:
            return self._placed.get((index, kind)) or self._add(index, kind, name)
        for item in reversed(self._all):
            if item.kind == kind and name in (None, item.id):
                return item
        return self._add(None, kind, name)

    def match(self, output: list[Any]) -> Iterator[tuple[Item, Json]]:
        """Yield the items of a whole output with what is known of each: new items only where there are more than known.

        Some servers give items other ids in the whole output than in the stream, or leave some out there.
        """
        left: defaultdict[str, list[Item]] = defaultdict(list)
        for item in self._all:
            left[item.kind].append(item)
        output = [said for said in output if isinstance(said, dict)]
        to_come = Counter(kind_of(said) for said in output)
        for index, said in enumerate(output):
            kind = kind_of(said)
            known, more = left[kind], to_come[kind] > len(left[kind])
            to_come[kind] -= 1
            same = next((item for item in known if item.id is not None and item.id == said.get("id")), None)
            if same is None and known and not more:
                same = known[0]
            if same is None:
                placed = self._placed.get((index, kind))
                same = placed if placed in known else self._add(index, kind, said.get("id"))
            if same in known:
                known.remove(same)
            yield same, said

    def _add(self, index: Any, kind: str, name: Any) -> Item:
        item = Item(kind, name if isinstance(name, str) else None)
        self._all.append(item)
        if type(index) is int:
            self._placed[index, kind] = item
        return item
