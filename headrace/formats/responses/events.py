"""The events of a response that are not of its output, and every event as it is sent.

A *line* is an event's JSON with `type` first and without `sequence_number`: what a job's log has of its output. Event
number 0 and the next one or two open a stream, the lines of the log follow, and one event ends it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from headrace.formats.responses.output import whole
from headrace.formats.responses.response import skeleton, status_of

_HEAD = len(b'{"type":"')
_ENDS = {"completed": b"response.completed", "incomplete": b"response.incomplete"}


def _number(number: int) -> bytes:
    """Return what stands between an event's head and the rest of its line."""
    return b'%d\ndata: {"sequence_number":%d,' % (number, number)


# Those of most streams, in 36 KB: to make them takes a third of the time of rendering.
_NUMBERS = [_number(number) for number in range(512)]


def base(background: bool) -> int:
    """Return how many events open a stream, which is the number of the log's first line."""
    return 3 if background else 2


def opening(document: Mapping[str, Any], *, job_id: str, created: int, background: bool) -> list[bytes]:
    """Return the lines that open the stream of a stored request, in the order of their numbers.

    The last one tells that the response is in progress. A job that ends before its first attempt does not have it.
    """
    response = skeleton(document, job_id=job_id, created=created, background=background, status="in_progress")
    running = orjson.dumps(response)
    if not background:
        return [_line(b"response.created", running), _line(b"response.in_progress", running)]
    queued = orjson.dumps(response | {"status": "queued"})
    return [
        _line(b"response.created", queued),
        _line(b"response.queued", queued),
        _line(b"response.in_progress", running),
    ]


def terminal(response: bytes | Mapping[str, Any]) -> bytes:
    """Return the line that ends a stream, for the final response object or its stored JSON.

    A cancelled response fails too: OpenAI has no event of its own for it.
    """
    body = response if isinstance(response, bytes) else orjson.dumps(response)
    return _line(_ENDS.get(status_of(body), b"response.failed"), body)


def render_line(line: bytes, number: int) -> bytes:
    """Return the server-sent event of a line. Its number is its id too, from which a client resumes."""
    return render_lines((line,), number)


def render_lines(lines: Sequence[bytes], first: int) -> bytes:
    """Return the events of lines in a row, as `render_line` does; the first of them has the number `first`."""
    upto = first + len(lines)
    numbers = _NUMBERS[first:upto] if upto <= len(_NUMBERS) else map(_number, range(first, upto))
    parts: list[bytes] = []
    kind = head = b'"'  # no line's kind begins so
    for number, line in zip(numbers, lines, strict=True):
        if not line.startswith(kind, _HEAD):  # nearly all have the kind of the line before
            kind = line[_HEAD : line.index(b'"', _HEAD) + 1]
            head = b"event: %b\nid: " % kind[:-1]
        parts += (head, number, line[1:], b"\n\n")
    return b"".join(parts)


def lines_of(response: Mapping[str, Any]) -> list[bytes]:
    """Return the log of a whole response, as a stream could have had it: the same lines at each call."""
    return [line for index, item in enumerate(response.get("output") or ()) for line in whole(item, index)]


def _line(kind: bytes, response: bytes) -> bytes:
    return b'{"type":"%b","response":%b}' % (kind, response)
