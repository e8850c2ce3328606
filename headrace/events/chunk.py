"""A delta as Postgres stores it and the live wire carries it: one chunk of an answer, as one line of JSON."""

from __future__ import annotations

from collections.abc import Mapping

import orjson

# The API adds these to each chunk that it sends.
_FROM_JOB = frozenset({"id", "object", "created"})


def render_chunk(chunk: Mapping[str, object]) -> bytes:
    """Return the line of a chunk, without the keys that come from the job."""
    line = orjson.dumps({key: value for key, value in chunk.items() if key not in _FROM_JOB})
    return bytes(memoryview(line))  # a copy: orjson's result keeps the kilobytes that it was written into
