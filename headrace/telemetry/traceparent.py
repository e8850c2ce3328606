"""The header `traceparent` of a client's trace, as https://www.w3.org/TR/trace-context/ defines it."""

from __future__ import annotations

import re

_HEADER = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?P<more>-.*)?")


def trace_id(header: str) -> str | None:
    """Return the trace id of a `traceparent`; None if the header is malformed.

    Version 00 has four fields. A later version may add others, which are not read.
    """
    found = _HEADER.fullmatch(header)
    if found is None or (found["more"] is not None and header.startswith("00")):
        return None
    return found[1]
