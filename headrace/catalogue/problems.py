"""The problems of a configuration file, each with its line and perhaps a suggestion, in an operator's words."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

Place = tuple[str | int, ...]
"""A place in the document: keys, and indexes in lists."""

_TOML_PLACE = re.compile(r"^(?P<what>.*) \(at (?:line (?P<line>\d+), column (?P<column>\d+)|end of document)\)$")


@dataclass(frozen=True, slots=True)
class Problem:
    """An error, or a warning if it is not `fatal`. Lines and columns count from 1."""

    place: Place
    message: str
    suggestion: str | None = None
    fatal: bool = True
    line: int | None = None
    column: int | None = None

    @classmethod
    def of_toml(cls, error: tomllib.TOMLDecodeError, text: str) -> Problem:
        """Return the problem of a text that is not TOML."""
        match = _TOML_PLACE.match(str(error))
        if match is None or match["line"] is None:
            return cls((), str(error), line=text.rstrip().count("\n") + 1)
        return cls((), match["what"], line=int(match["line"]), column=int(match["column"]))

    @classmethod
    def unknown(cls, place: Place, what: str, name: str, known: Iterable[str]) -> Problem:
        """Return the problem of a name that `known` does not have, with the most similar name as a suggestion."""
        return cls(place, f"{what} '{name}', which does not exist", _nearest(name, known))

    @property
    def path(self) -> str:
        """The place as text, such as `models."gpt-4o".routes[0]`."""
        text = ""
        for part in self.place:
            if isinstance(part, int):
                text += f"[{part}]"
            else:
                bare = re.fullmatch(r"[A-Za-z0-9_-]+", part)
                text += ("." if text else "") + (part if bare else f'"{part}"')
        return text

    def render(self, file: Path) -> str:
        """Return a line of text: file, line, column, and the message with its suggestion."""
        where = f"{file}:{self.line}" if self.line is not None else str(file)
        where += f":{self.column}" if self.column is not None else ""
        text = f"{self.path}: {self.message}" if self.place else self.message
        warning = "" if self.fatal else "warning: "
        return f"{where}: {warning}{text}" + (f". Did you mean '{self.suggestion}'?" if self.suggestion else "")


def problems_of(error: ValidationError, model: type[BaseModel]) -> list[Problem]:
    """Return pydantic's errors in a document of `model` as problems, in an operator's words."""
    found = []
    for problem in error.errors():
        if _is_other_branch(problem):
            continue
        place = tuple(part for part in problem["loc"] if not _is_branch(part))
        name = str(place[-1]) if place else ""
        match problem["type"]:
            case "extra_forbidden":
                known = _fields_at(model, place[:-1])
                translated = Problem(place, "there is no such key", _nearest(name, known))
            case "missing":
                translated = Problem(place[:-1], f"'{name}' is missing")
            case "model_type" | "dict_type":
                translated = Problem(place, f"{problem['input']!r} is not a table")
            case "string_pattern_mismatch" if name == "base_url":
                translated = Problem(place, f"{problem['input']!r} is not an http or https URL")
            case "string_pattern_mismatch" | "string_type" if place[-2:-1] == ("routes",) or name == "route":
                translated = Problem(place, f"{problem['input']!r} is not 'provider/model'")
            case _:
                translated = Problem(place, problem["msg"].lower() if place else problem["msg"])
        if translated not in found:
            found.append(translated)
    return found


def _is_other_branch(problem: ErrorDetails) -> bool:
    """Return whether a problem concerns the other form of a route: the table form of a route that is text."""
    branch, written = problem["loc"][-1:], problem["input"]
    if branch == ("RouteOptions",):
        return not isinstance(written, dict)
    return isinstance(written, dict) and any(_is_branch(part) for part in branch)


def _is_branch(part: str | int) -> bool:
    """Return whether a part of pydantic's place names a branch of a union rather than a key."""
    return isinstance(part, str) and (part == "RouteOptions" or part.startswith("constrained-str"))


def _fields_at(model: type[BaseModel], place: Place) -> list[str]:
    """Return the keys that the table at a place may have; empty if the place leads to no known table."""
    current: Any = model
    for part in place:
        if isinstance(current, type) and issubclass(current, BaseModel):
            field = current.model_fields.get(str(part))
            current = None if field is None else field.annotation
        else:
            current = next(reversed(get_args(current)), None)
    for candidate in (current, *get_args(current)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return list(candidate.model_fields)
    return []


def _nearest(name: str, known: Iterable[str]) -> str | None:
    return next(iter(difflib.get_close_matches(name, list(known), n=1)), None)


def locate(text: str, problems: Iterable[Problem]) -> list[Problem]:
    """Return the problems with their lines in a valid TOML text, in the order of the lines.

    A missing key and an item of a list have no line of their own: they get the line of their table or list.
    """
    lines = dict(_keys(text))
    located = []
    for problem in problems:
        place = tuple(part for part in problem.place if isinstance(part, str))
        while place and place not in lines:
            place = place[:-1]
        located.append(replace(problem, line=lines.get(place)))
    return sorted(located, key=lambda problem: problem.line or 0)


_KEY_PART = re.compile(r"""\s*(?:"((?:[^"\\]|\\.)*)"|'([^']*)'|([A-Za-z0-9_-]+))\s*""")
_OPENERS = re.compile(r'"""|\'\'\'|"(?:[^"\\]|\\.)*"|\'[^\']*\'|#.*|[\[\]{}]')


def _keys(text: str) -> Iterator[tuple[tuple[str, ...], int]]:
    """Yield the keys and tables of a valid TOML text with their lines; the parents of a table come before it."""
    table: tuple[str, ...] = ()
    depth = 0
    quote: str | None = None
    for number, line in enumerate(text.splitlines(), 1):
        if depth == 0 and quote is None:
            stripped = line.strip()
            if stripped.startswith("["):
                table = tuple(_key_parts(stripped.strip("[").strip()))
                for length in range(1, len(table) + 1):
                    yield table[:length], number
                continue
            if stripped and not stripped.startswith("#"):
                key = (*table, *_key_parts(stripped))
                for length in range(len(table) + 1, len(key) + 1):
                    yield key[:length], number
        quote, depth = _nesting(line, quote, depth)


def _key_parts(text: str) -> Iterator[str]:
    position = 0
    while match := _KEY_PART.match(text, position):
        double, single, bare = match.groups()
        yield tomllib.loads(f'x = "{double}"')["x"] if double is not None else single if single is not None else bare
        if text[match.end() : match.end() + 1] != ".":
            return
        position = match.end() + 1


def _nesting(line: str, quote: str | None, depth: int) -> tuple[str | None, int]:
    """Return the quote of the multi-line string that is open after a line, or None, and the number of open brackets."""
    position = 0
    while True:
        if quote is not None:
            end = line.find(quote, position)
            if end < 0:
                return quote, depth
            position, quote = end + 3, None
        match = _OPENERS.search(line, position)
        if match is None:
            return None, depth
        mark, position = match[0], match.end()
        if mark in ('"""', "'''"):
            quote = mark
        elif mark in "[{":
            depth += 1
        elif mark in "]}":
            depth -= 1
