"""The trace context of a request, as https://www.w3.org/TR/trace-context/ defines it.

A job keeps its context as one text, and Headrace sends it on to the provider and to the receiver of the webhook: the
header `traceparent`, and after a line break the header `tracestate` if there is one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_PARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?P<more>-.*)?")
# A member of a `tracestate`, with the spaces around it.
_MEMBER = re.compile(
    r"[ \t]*(?:[a-z0-9][_0-9a-z\-*/]{0,255}(?:@[a-z][_0-9a-z\-*/]{0,13})?"
    r"=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e][ \t]*)?"
)
# Characters of a `traceparent` that this release can read; a later version may add others.
_KNOWN = 55
# Characters of the `tracestate` that are sent on. The standard asks for at least as many.
_LONGEST_STATE = 512


def read_context(parents: Sequence[str], states: Sequence[str]) -> str | None:
    """Return the trace context of a request with these headers, or None if it has no valid `traceparent`.

    Of a later version than 00, the fields that version 00 has are kept. An invalid or long `tracestate` is left out.
    """
    if len(parents) != 1:
        return None
    [parent] = parents
    found = _PARENT.fullmatch(parent)
    if found is None or (found["more"] is not None and parent.startswith("00")):
        return None
    context = f"00{parent[2:_KNOWN]}"
    state = ",".join(states).strip(" \t")
    if not state or len(state) > _LONGEST_STATE or not all(map(_MEMBER.fullmatch, state.split(","))):
        return context
    return f"{context}\n{state}"


def trace_id(context: str) -> str:
    """Return the id of the trace that a context belongs to."""
    return context[3:35]


def trace_headers(context: str | None) -> dict[str, str]:
    """Return the headers that send a context on; none for None."""
    if context is None:
        return {}
    parent, _, state = context.partition("\n")
    return {"traceparent": parent, "tracestate": state} if state else {"traceparent": parent}
