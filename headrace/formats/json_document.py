"""JSON that clients send, parsed with a bound on how much it may hold, and with errors for the client.

Twenty megabytes of text are parsed quickly. Twenty megabytes of empty objects become a gigabyte of Python objects, so
the number of values is bounded before a document is parsed, by counting brackets and commas in its bytes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import orjson

from headrace.errors import InvalidRequestError, shorten

MOST_VALUES = 100_000
"""Values in one document, at any depth: those of objects and arrays, not their keys."""
MAX_NESTING = 200
"""Levels of arrays and objects. orjson writes 254 at most, and what is parsed is written again inside other objects."""

# Bytes of a document that cannot hold too many values.
_FEW_BYTES = 2 * MOST_VALUES
# The characters of the longest integer of 64 bits.
_LONGEST_INTEGER = 20
# The beginning of an integer that may be beyond 64 bits. To search for it takes longer than all else that is done with
# a document, so the run of digits is searched for first, and before it the run's traces in every sixth byte.
_LONG_NUMBER = re.compile(rb"[:,\[\s]-?[0-9]{19}")
_DIGITS = bytes(ord("0") if chr(byte) in "0123456789" else ord(" ") for byte in range(256))
_RUN, _TRACES, _STEP = b"0" * 19, b"000", 6
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEPS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}


def parse_json(text: bytes) -> Any:
    """Return the value of a document: objects, arrays, strings, finite floats and integers of 64 bits.

    A string with half a surrogate pair is refused.

    Raises:
        InvalidRequestError: The document is not JSON, or holds too much: `code` is `invalid_json` or `too_many_values`.
            Or it has a number that is not finite, or an integer beyond 64 bits: `param` is the number's path.
    """
    check_bounds(text)
    try:
        document = orjson.loads(text)
        # orjson reads an integer of more bits as a float, which is another number.
        if has_long_number(text) and (error := _bad_number(text)) is not None:
            raise error
        return document
    except orjson.JSONDecodeError as error:
        raise _bad_number(text) or InvalidRequestError(
            f"We could not parse the JSON body of your request: {shorten(str(error))}.", code="invalid_json"
        ) from None


def has_long_number(text: bytes) -> bool:
    """Return whether a document may have an integer beyond 64 bits, in or outside its strings."""
    if _TRACES not in text[::_STEP].translate(_DIGITS) or _RUN not in text.translate(_DIGITS):
        return False
    return _LONG_NUMBER.search(text) is not None


def check_bounds(text: bytes) -> None:
    """Check how much a document holds, before it is known to be JSON.

    Raises:
        InvalidRequestError: The document has too many values, or is nested too deeply.
    """
    opening = text.count(b"[") + text.count(b"{")
    few = len(text) <= _FEW_BYTES or opening + text.count(b",") < MOST_VALUES
    if few and opening <= MAX_NESTING:
        return
    # Most of the brackets and commas may be in strings.
    outside = _outside_strings(text, most_quotes=4 * MOST_VALUES)
    opening = outside.count(b"[") + outside.count(b"{")
    if opening + outside.count(b",") >= MOST_VALUES:
        raise _too_many_values()
    if opening > MAX_NESTING and _depth(outside) > MAX_NESTING:
        raise InvalidRequestError(
            f"The JSON body of your request is nested too deeply: more than {MAX_NESTING} levels.", code="invalid_json"
        )


def is_too_deep(text: bytes) -> bool:
    """Return whether a document has more than `MAX_NESTING` levels of arrays and objects. It need not be JSON."""
    if text.count(b"[") + text.count(b"{") <= MAX_NESTING:
        return False
    return _depth(_outside_strings(text, most_quotes=len(text))) > MAX_NESTING


def _outside_strings(text: bytes, *, most_quotes: int) -> bytes:
    text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    if text.count(b'"') > most_quotes:  # a value has at most one key, and each of both has two quotes
        raise _too_many_values()
    return b"".join(text.split(b'"')[::2])


def _depth(outside: bytes) -> int:
    brackets = outside.translate(None, _NOT_BRACKETS)
    opening = brackets.count(b"[") + brackets.count(b"{")
    # A document has as many closing brackets. A parser refuses what has more, but may count its levels first.
    return max(accumulate(map(_STEPS.__getitem__, brackets[: 2 * opening])), default=0)


def _too_many_values() -> InvalidRequestError:
    return InvalidRequestError(
        f"The JSON body of your request has more than {MOST_VALUES} values.", code="too_many_values"
    )


def _bad_number(text: bytes) -> InvalidRequestError | None:
    """Return the error for the first number that is not finite or an integer beyond 64 bits, or None."""
    bad, long = object(), object()

    def number(written: str) -> object:
        return 0 if math.isfinite(float(written)) else bad

    def integer(written: str) -> object:
        fits = len(written) <= _LONGEST_INTEGER and -(2**63) <= int(written) < 2**64
        return 0 if fits else long if math.isfinite(float(written)) else bad

    try:
        document = json.loads(text, parse_int=integer, parse_float=number, parse_constant=lambda _: bad)
    except ValueError:
        return None
    wrong = next(((path, value) for path, value in _leaves(document, ()) if value is bad or value is long), None)
    if wrong is None:
        return None
    path, expected = render_path(wrong[0]), "a finite number" if wrong[1] is bad else "an integer of at most 64 bits"
    return InvalidRequestError(
        f"Invalid '{path}': expected {expected}." if path else f"The body is not {expected}.",
        param=path or None,
        code="invalid_value",
    )


def _leaves(value: object, path: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], object]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _leaves(item, (*path, index))
    else:
        yield path, value


def render_path(path: Sequence[str | int]) -> str:
    """Return the path of a value as its client would write it: `messages[0].content[1].image_url.url`."""
    rendered = ""
    for key in path:
        if isinstance(key, int):
            rendered += f"[{key}]"
        elif re.fullmatch(r"[\w-]{1,64}", key):
            rendered += f".{key}" if rendered else key
        else:
            rendered += f"['{shorten(key)}']"
    return rendered
