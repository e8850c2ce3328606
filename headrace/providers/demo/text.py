"""Texts that fit a format or a pattern of a JSON Schema, made up for the demo models. Pure."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence

# Python has no public parser of patterns. Reading a pattern takes time in proportion to its length, where matching one
# may never end.
from re import _constants as ops
from re import _parser as reader
from typing import Any

_FORMATS: Mapping[str, Callable[[int], str]] = {
    "date-time": lambda nth: f"2026-01-{nth % 28 + 1:02}T12:00:00Z",
    "date": lambda nth: f"2026-01-{nth % 28 + 1:02}",
    "time": lambda nth: f"12:{nth % 60:02}:00Z",
    "duration": lambda nth: f"P{nth + 1}D",
    "email": lambda nth: f"user{nth + 1}@example.com",
    "idn-email": lambda nth: f"user{nth + 1}@example.com",
    "hostname": lambda nth: f"host{nth + 1}.example.com",
    "idn-hostname": lambda nth: f"host{nth + 1}.example.com",
    "ipv4": lambda nth: f"192.0.2.{nth % 254 + 1}",
    "ipv6": lambda nth: f"2001:db8::{nth % 0xFFFF + 1:x}",
    "uri": lambda nth: f"https://example.com/{nth + 1}",
    "uri-reference": lambda nth: f"/example/{nth + 1}",
    "iri": lambda nth: f"https://example.com/{nth + 1}",
    "iri-reference": lambda nth: f"/example/{nth + 1}",
    "uri-template": lambda nth: f"https://example.com/{nth + 1}/{{id}}",
    "url": lambda nth: f"https://example.com/{nth + 1}",
    "uuid": lambda nth: f"00000000-0000-4000-8000-{nth:012x}",
    "json-pointer": lambda nth: f"/example/{nth}",
    "relative-json-pointer": lambda nth: f"{nth}/example",
    "regex": lambda nth: f"example{nth}",
    "byte": lambda _: "ZXhhbXBsZQ==",
    "binary": lambda _: "ZXhhbXBsZQ==",
    "base64": lambda _: "ZXhhbXBsZQ==",
    "base64url": lambda _: "ZXhhbXBsZQ==",
}
_CHARACTERS = string.ascii_lowercase + string.ascii_uppercase + string.digits + string.punctuation + " \t\n"
_CATEGORIES: Mapping[Any, Callable[[str], bool]] = {
    ops.CATEGORY_DIGIT: str.isdigit,
    ops.CATEGORY_NOT_DIGIT: lambda character: not character.isdigit(),
    ops.CATEGORY_SPACE: str.isspace,
    ops.CATEGORY_NOT_SPACE: lambda character: not character.isspace(),
    ops.CATEGORY_WORD: lambda character: character.isalnum() or character == "_",
    ops.CATEGORY_NOT_WORD: lambda character: not (character.isalnum() or character == "_"),
}
_REPEATS = (ops.MAX_REPEAT, ops.MIN_REPEAT, ops.POSSESSIVE_REPEAT)
# As ECMAScript names a group.
_NAMED_GROUP = re.compile(r"\(\?<(?![=!])")


def text_of_format(name: str | None, nth: int) -> str | None:
    """Return the `nth` example of a format, or None if that is unknown."""
    make = _FORMATS.get(name or "")
    return None if make is None else make(nth)


def text_of_pattern(pattern: str, nth: int, *, least: int, longest: int) -> str | None:
    """Return a text of `least` to `longest` characters that fits a regular expression, or None if none was found."""
    try:
        parsed = reader.parse(_NAMED_GROUP.sub("(?P<", pattern))
    except (re.error, OverflowError, RecursionError):
        return None
    # Repeating as little as possible first, then so often that the text becomes long enough.
    for repeats in (1, 0, *((2**power) for power in range(1, 14)), least):
        writer = _Writer(nth, repeats, longest)
        try:
            text = writer.write(parsed)
        except _UnwritableError:
            continue
        if not ("$" in pattern or "\\Z" in pattern):  # what comes after does not matter
            text = f"{text}{nth}".ljust(least, "0")[: max(len(text), longest)]
        if least <= len(text) <= longest:
            return text
        if len(text) > longest and repeats > 1:
            break
    return None


class _UnwritableError(Exception):
    """The pattern has what cannot be written, or its text would be too long."""


class _Writer:
    """Writes one text that fits a parsed pattern, with about so many `repeats` where it leaves the number open."""

    def __init__(self, nth: int, repeats: int, longest: int) -> None:
        self._nth = nth
        self._repeats = repeats
        self._left = 2 * longest
        self._groups: dict[int, str] = {}
        self._characters: dict[int, str] = {}

    def write(self, parsed: Iterable[tuple[Any, Any]]) -> str:
        """Return the text of a sequence of operations."""
        return "".join(self._write(operation, argument) for operation, argument in parsed)

    def _write(self, operation: Any, argument: Any) -> str:
        self._left -= 1
        if self._left < 0:
            raise _UnwritableError
        if operation is ops.LITERAL:
            return _character(argument)
        if operation is ops.NOT_LITERAL:
            return self._find_character([(ops.NEGATE, None), (ops.LITERAL, argument)])
        if operation is ops.ANY:
            return "a"
        if operation is ops.IN:
            return self._character(argument)
        if operation in _REPEATS:
            least, most, repeated = argument
            count = min(int(most), max(int(least), self._repeats))
            return "".join(self.write(repeated) for _ in range(count))
        if operation is ops.SUBPATTERN:
            number, _, _, within = argument
            text = self.write(within)
            self._groups[number] = text
            return text
        if operation is ops.ATOMIC_GROUP:
            return self.write(argument)
        if operation is ops.BRANCH:
            _, branches = argument
            return self.write(branches[self._nth % len(branches)])
        if operation is ops.GROUPREF and argument in self._groups:
            return self._groups[argument]
        if operation is ops.AT and argument not in (ops.AT_BOUNDARY, ops.AT_NON_BOUNDARY):
            return ""
        raise _UnwritableError

    def _character(self, members: Sequence[tuple[Any, Any]]) -> str:
        """Return one of the characters of a set, always the same for the same set."""
        found = self._characters.get(id(members))
        if found is None:
            found = self._characters[id(members)] = self._find_character(members)
        return found

    def _find_character(self, members: Sequence[tuple[Any, Any]]) -> str:
        negated = members[0][0] is ops.NEGATE
        fitting = [one for one in _CHARACTERS if any(_fits(one, member) for member in members) is not negated]
        if fitting:
            return fitting[self._nth % len(fitting)]
        for operation, argument in members:
            if operation is ops.LITERAL and not negated:
                return _character(argument)
            if operation is ops.RANGE and not negated:
                return _character(argument[0])
        raise _UnwritableError


def _character(code: int) -> str:
    if 0xD800 <= code <= 0xDFFF:
        raise _UnwritableError  # half of a pair, which JSON in UTF-8 has no form for
    return chr(code)


def _fits(character: str, member: tuple[Any, Any]) -> bool:
    operation, argument = member
    if operation is ops.LITERAL:
        return bool(ord(character) == argument)
    if operation is ops.RANGE:
        return bool(argument[0] <= ord(character) <= argument[1])
    return bool(operation is ops.CATEGORY and _CATEGORIES[argument](character))
