"""Writing server-sent events: https://html.spec.whatwg.org/multipage/server-sent-events.html, read 2026-11.

An event's data is one line, and an event is written whole. Events that arrive together are written together, in pieces
that a client gets in one read.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from typing import Any

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.http.connection import Client
from headrace.errors import HeadraceError
from headrace.events.job_events import Deltas

# Bytes of events that are written together at most.
_LARGEST_WRITE = 16 * 1024
PING = b": ping\n\n"
# In streams of responses, whose events have ids: OpenAI's Python client keeps the last id, and so takes a blank line
# behind a comment for one more event, without data, at which it fails.
PING_AFTER_ID = b": ping\n"

# U+2028, U+2029 and U+0085 do not end a line of an event, but many clients, Python's among them, split lines there.
# They stand in JSON strings, so they are escaped.
_LINE_ENDS = {b"\xe2\x80\xa8": b"\\u2028", b"\xe2\x80\xa9": b"\\u2029", b"\xc2\x85": b"\\u0085"}

_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache, no-transform",  # a proxy that compresses events delays them
    "x-accel-buffering": "no",  # nginx would otherwise buffer events
}


def render_event(data: bytes, *, name: str | None = None, event_id: str | None = None) -> bytes:
    """Return one event; `data` is JSON on one line, and name and id contain no line end."""
    head = b""
    if name is not None:
        head += b"event: " + name.encode() + b"\n"
    if event_id is not None:
        head += b"id: " + event_id.encode() + b"\n"
    return head + b"data: " + data + b"\n\n"


def render_error_event(error: HeadraceError, *, name: str | None = None) -> bytes:
    """Return an error as an event, in OpenAI's shape."""
    return render_event(orjson.dumps({"error": error.body()}), name=name)


Write = Callable[[list[bytes]], Awaitable[None]]
"""Writes the next events of a stream."""
Tell = Callable[[Write], Coroutine[Any, Any, None]]
"""Writes the events of a stream up to its end."""


class EventStream(Response):
    """A response of server-sent events, which `tell` writes.

    It sends the headers alone. `RequestScope` calls `tell` when everything else of the request has ended.
    """

    def __init__(
        self,
        tell: Tell,
        headers: Mapping[str, str] | None = None,
        *,
        give_up: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Take `headers` that are added to those of every event stream.

        `give_up` is called in the place of `tell` if they cannot be sent.
        """
        super().__init__(headers={**_HEADERS, **(headers or {})})
        del self.headers["content-length"]
        self._tell = tell
        self._give_up = give_up

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  (ASGI's signature)
        """Send the headers, and leave what writes the events in the state of the request."""
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        except BaseException:
            if self._give_up is not None:
                await self._give_up()
            raise
        scope["state"]["tell"] = self._tell


class EventWriter:
    """Writes events as the body of an answer whose headers have been sent."""

    __slots__ = ("_send",)

    def __init__(self, send: Send) -> None:
        self._send = send

    async def write(self, events: list[bytes]) -> None:
        """Write the next events."""
        for piece in _pieces(events):
            await self._send({"type": "http.response.body", "body": piece, "more_body": True})

    async def end(self) -> None:
        """End the answer."""
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})


class LiveEvents:
    """Writes the deltas of a job to its stream as they come, without waking the task that writes the other events.

    It may be called only while that task has written all it had, and waits for the next event.
    """

    __slots__ = ("_client", "_render")

    def __init__(self, client: Client, render: Callable[[Deltas], list[bytes]]) -> None:
        self._client = client
        self._render = render

    def __call__(self, deltas: Deltas) -> bool:
        """Write deltas; False, and nothing is rendered, if the client does not read fast enough for it."""
        client = self._client
        if not client.takes_more:
            return False
        for piece in _pieces(self._render(deltas)):
            client.write(piece)
        return True


def _pieces(events: list[bytes]) -> Iterator[bytes]:
    """Return events joined to pieces of up to `_LARGEST_WRITE` bytes; a larger event is a piece of its own.

    Each piece is cut when the one before is written: a client that does not read holds no copy of the rest.
    """
    joined = b"".join(events)
    if not joined.isascii():
        for end, escape in _LINE_ENDS.items():
            joined = joined.replace(end, escape)
    at, size = 0, len(joined)
    while at < size:
        upto = size
        if size - at > _LARGEST_WRITE:  # a blank line ends each event, and none has one inside
            blank = joined.rfind(b"\n\n", at, at + _LARGEST_WRITE)
            upto = (blank if blank >= 0 else joined.index(b"\n\n", at)) + 2
        yield joined[at:upto]
        at = upto
