"""The calls of one choice, made OpenAI's: pieces find their call, and each call has one id, type and name.

OpenAI's specification describes chunks of functions alone. A piece of a custom tool's call has the shape that the
specification gives the whole call, `custom` with `name` and `input`: none of the shapes for chunks can carry it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import orjson

from headrace.formats.text_buffer import TextBuffer
from headrace.ids import new_id


def call_ids(request: Mapping[str, Any]) -> list[str]:
    """Return the ids of the tool calls in the conversation of a checked request."""
    return [call["id"] for message in request.get("messages") or () for call in message.get("tool_calls") or ()]


class ToolCalls:
    """The tool calls that one choice has had so far."""

    __slots__ = ("_calls", "_places", "_taken")

    def __init__(self, taken: dict[str, None]) -> None:
        """`taken` has the ids that the conversation and other choices have; each new one is added."""
        self._taken = taken
        self._calls: list[_Call] = []
        self._places: dict[int, _Call] = {}

    def __bool__(self) -> bool:
        return bool(self._calls)

    def exact(self, calls: Any, *, whole: bool = False) -> list[dict[str, Any]]:
        """Return a list of pieces, each of which has the `index` of its call. A `whole` one is a call of its own."""
        pieces = calls if isinstance(calls, list) else [calls]
        found: list[_Call] = []
        exact = []
        for number, piece in enumerate(pieces):
            if not whole and isinstance(piece, dict) and self._is_more(piece):
                exact.append(piece)
            elif isinstance(piece, dict) and piece:
                kind, said = _called(piece)
                if whole:
                    call = self._add(_given(piece))
                else:
                    call = self._find(piece, said, found, number if len(pieces) > 1 else None)
                found.append(call)
                exact.append(call.exact(piece, kind, said))
        return exact

    def _is_more(self, piece: dict[str, Any]) -> bool:
        """Take a piece that is exact already, as nearly all are: more arguments of a call by its index."""
        said, index = piece.get("function"), piece.get("index")
        if len(piece) != 2 or type(said) is not dict or len(said) != 1 or type(index) is not int:
            return False
        text, call = said.get("arguments"), self._places.get(index)
        return type(text) is str and call is not None and call.number == index and call.add(text)

    def rest(self) -> list[dict[str, Any]]:
        """Return what completes the calls of a choice that has ended: `{}` for a function without arguments."""
        return [
            {"index": call.number, "function": {"arguments": "{}"}} for call in self._calls if call.lacks_arguments()
        ]

    def _find(self, piece: Mapping[str, Any], said: Mapping[str, Any], found: list[_Call], number: int | None) -> _Call:
        """Return the call that a piece is of; `found` are those of the pieces beside it, `number` is its place there.

        A piece with a name and an unknown id begins another call, whatever its index. Without a name it is more of the
        call at its index: some servers say the id late, or make up one for each piece.
        """
        place, given = _place(piece.get("index")), _given(piece)
        named = bool(said.get("name"))
        call = None if place is None else self._places.get(place)
        if given is None:
            if place is None:
                call = self._continued(said, named, number)
        elif call is None or call.given != given:
            known = next((known for known in reversed(self._calls) if known.given == given), None)
            if known is not None and not (named and place is not None and known.is_over()):
                call = known
            elif named:
                call = None
            elif call is None and self._calls:
                call = self._calls[-1]
        if call is None or (named and any(call is other for other in found)):
            call = self._add(given)
        if place is not None:
            self._places[place] = call
        call.given = call.given or given
        return call

    def _continued(self, said: Mapping[str, Any], named: bool, number: int | None) -> _Call | None:
        """Return the call that goes on in a piece without index and id: that at its place in the list, or the last."""
        if number is not None and not named and number < len(self._calls):
            return self._calls[number]
        last = self._calls[-1] if self._calls else None
        return None if last is not None and said.get("name") and last.is_over() else last

    def _add(self, given: str | None) -> _Call:
        name = given if given is not None and given not in self._taken else f"call_{new_id('call')[5:]}"
        self._taken[name] = None
        call = _Call(len(self._calls), given, name)
        self._calls.append(call)
        return call


class CalledFunction:
    """What is said of one function or tool: its name once, and what it is called with, a string."""

    __slots__ = ("_key", "_named", "_pieces", "_told")

    def __init__(self, key: str = "arguments") -> None:
        self._key = key
        self._named = self._told = False
        self._pieces = TextBuffer()

    def exact(self, said: Mapping[str, Any]) -> dict[str, Any]:
        """Return a piece, made of the one that came."""
        key = self._key
        text = said.get(key)
        if not isinstance(text, str):
            # An empty object at the beginning stands for arguments that are yet to come.
            text = "" if text is None or text == {} else render_arguments(text)
        part = {name: value for name, value in said.items() if name not in ("name", key)}
        if not self._named and (said.get("name") or not self._told):
            part = {"name": str(said.get("name") or ""), **part}
            self._named = bool(part["name"])
        self._told = True
        if self.repeats(text):
            text = ""
        self.add(text)
        part[key] = text
        return part

    def repeats(self, text: str) -> bool:
        """Return whether a piece is all arguments once more, which are whole: some servers send them in each piece."""
        return text[:1] == "{" and bool(self._pieces) and text == self._pieces.text and _is_json(text)

    def add(self, text: str) -> None:
        """Take more of what it is called with."""
        if text:
            self._pieces.add(text)

    def lacks_arguments(self) -> bool:
        """Return whether it is a function that is called with nothing at all, which is no JSON."""
        return self._told and self._key == "arguments" and not self._pieces

    def is_over(self) -> bool:
        """Return whether it has a name, and all of its arguments as far as can be seen."""
        return self._named and _is_json(self._pieces.text)


class _Call:
    """A tool call that is being told."""

    __slots__ = ("_function", "_kind", "given", "id", "number")

    def __init__(self, number: int, given: str | None, name: str) -> None:
        self.number = number
        self.given = given
        self.id = name
        self._kind = ""
        self._function: CalledFunction | None = None

    def exact(self, piece: Mapping[str, Any], kind: str, said: Mapping[str, Any]) -> dict[str, Any]:
        exact = {name: value for name, value in piece.items() if name not in ("index", "id", "type", kind)}
        exact["index"] = self.number
        function = self._function
        if function is None:
            function = self._function = CalledFunction("input" if kind == "custom" else "arguments")
            self._kind = kind
            exact["id"], exact["type"] = self.id, kind
        exact[self._kind] = function.exact(said)
        return exact

    def add(self, text: str) -> bool:
        """Take more arguments; return False where the piece has to be made exact first."""
        if self._kind != "function" or self._function is None or self._function.repeats(text):
            return False
        self._function.add(text)
        return True

    def is_over(self) -> bool:
        return self._function is not None and self._function.is_over()

    def lacks_arguments(self) -> bool:
        return self._function is not None and self._function.lacks_arguments()


def render_arguments(arguments: Any) -> str:
    """Return arguments that came as JSON and not as a string of it; numbers of any size stay as they were written."""
    return json.dumps(arguments, ensure_ascii=False, default=_number)


def _number(fragment: orjson.Fragment) -> int:
    return int(orjson.dumps(fragment))  # an integer beyond 64 bits, as `headrace.formats.lenient` leaves it


def _called(piece: dict[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Return whether a function or a custom tool is called, and what is said of it; some servers say it flat."""
    kind = "custom" if piece.get("type") == "custom" or isinstance(piece.get("custom"), dict) else "function"
    said = piece.get(kind)
    if isinstance(said, dict):
        return kind, said
    return kind, {name: piece.pop(name) for name in ("name", "arguments", "input") if name in piece}


def _given(piece: Mapping[str, Any]) -> str | None:
    """Return the id that a provider gave a call."""
    given = piece.get("id")
    return given if isinstance(given, str) and given else None


def _place(index: Any) -> int | None:
    if type(index) is int:
        return index
    if isinstance(index, float) and index.is_integer():
        return int(index)
    return int(index) if isinstance(index, str) and index.isdecimal() and len(index) < 9 else None


def _is_json(text: str) -> bool:
    try:
        orjson.loads(text or "{}")
    except orjson.JSONDecodeError:
        return False
    return True
