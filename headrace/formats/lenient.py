"""JSON as providers write it: what a strict parser refuses need not lose an answer."""

from __future__ import annotations

import json
import math
from typing import Any

import orjson

from headrace.errors import UpstreamError
from headrace.formats.json_document import has_long_number, is_too_deep


def parse_lenient_json(data: bytes) -> Any:
    """Return the document. Numbers that are none, as `-Infinity`, are null, and halves of a character are U+FFFD.

    An integer beyond 64 bits is an `orjson.Fragment`, which is written as it was read.

    Raises:
        ValueError: It is not JSON even so, or is nested too deeply.
    """
    _check_depth(data)
    try:
        document = orjson.loads(data)
        if not has_long_number(data):  # orjson reads an integer beyond 64 bits as a float
            return document
    except orjson.JSONDecodeError:
        pass
    text = data.decode(json.detect_encoding(data), "surrogatepass" if data.isascii() else "replace")
    _check_depth(text.encode("utf-8", "replace"))  # `data` may be in UTF-16 or UTF-32
    loose = json.loads(text, strict=False, parse_constant=lambda _: None, parse_float=_finite, parse_int=_integer)
    return _storable(loose)


def _check_depth(text: bytes) -> None:
    if is_too_deep(text):
        raise ValueError("It is nested too deeply.")


def parse_object(data: bytes, nonsense: str) -> dict[str, Any]:
    """Return a document that is an object.

    Raises:
        UpstreamError: It is not JSON, or not an object: then `nonsense` is the message.
    """
    try:
        document = parse_lenient_json(data)
    except ValueError:
        raise UpstreamError("The model's provider answered with something that is not JSON.") from None
    if not isinstance(document, dict):
        raise UpstreamError(nonsense)
    return document


def _integer(text: str) -> int | orjson.Fragment:
    number = int(text) if len(text) < 1000 else None
    if number is not None and -(2**63) <= number < 2**64:
        return number
    return orjson.Fragment(text.encode())


def _finite(text: str) -> float | None:
    number = float(text)
    return number if math.isfinite(number) else None


def _storable(value: Any) -> Any:
    """Return a document whose strings can be written in UTF-8: two surrogates in a row are one character."""
    match value:
        case str():
            return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        case list():
            return [_storable(item) for item in value]
        case dict():
            return {_storable(name): _storable(item) for name, item in value.items()}
        case _:
            return value
