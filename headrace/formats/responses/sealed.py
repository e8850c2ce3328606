"""What a model wants back in the next turn, as the `encrypted_content` of a reasoning item: its thoughts.

A client keeps it without reading it. It is JSON in base64: nothing in it is a secret of Headrace's.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import orjson

from headrace.formats.lenient import parse_lenient_json

PLAIN_THOUGHTS = ("reasoning_content", "reasoning")
"""The fields of a chat message with what the model thought, as a text; some servers write it into both."""

_PREFIX = "hr1."


def seal(fields: Mapping[str, Any]) -> str:
    """Return fields of an assistant's chat message, such as `thinking_blocks`, as one opaque string."""
    return _PREFIX + base64.b64encode(orjson.dumps(fields)).decode()


def open_sealed(text: str) -> dict[str, Any] | None:
    """Return the fields of a string that `seal` made, or None for any other string, such as another server's."""
    if not text.startswith(_PREFIX):
        return None
    try:
        fields = parse_lenient_json(base64.b64decode(text[len(_PREFIX) :], validate=True))
    except ValueError:
        return None
    return fields if isinstance(fields, dict) else None
