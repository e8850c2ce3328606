"""JSON as providers write it: what a strict parser refuses need not lose an answer."""

from __future__ import annotations

import json
import math
from typing import Any

import orjson


def parse_json(data: bytes) -> Any:
    """Return the document. Numbers that are none, as `-Infinity`, are null, and halves of a character are U+FFFD.

    Raises:
        ValueError: It is not JSON even so.
    """
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        try:
            document = json.loads(data, parse_constant=lambda _: None, parse_float=_finite)
        except RecursionError:
            raise ValueError("It is nested too deeply.") from None
        return _storable(document)


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
