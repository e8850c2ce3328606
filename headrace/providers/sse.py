"""Server-sent events as bytes come in: https://html.spec.whatwg.org/multipage/server-sent-events.html, read 2026-11."""

from __future__ import annotations

import re

from headrace.errors import UpstreamTooLargeError

LARGEST_EVENT = 4 * 1024 * 1024
"""Bytes of one event: an image or a recording in base64 fits, and nothing else is nearly as large."""

# Where an event may end, in a stream with any kind of line end.
_BLANK_LINE = re.compile(rb"\n\n|\r\r|\n\r")
# Pieces of an event that are held before they are joined: each costs some bytes of its own.
_MOST_HELD = 1024

# Names of events that only keep a connection open.
_IDLE = frozenset({b"ping", b"keepalive", b"keep-alive", b"heartbeat"})
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

Event = tuple[bytes, bytes]
"""The name of an event, empty where it has none, and its data."""


class EventReader:
    """Cuts a stream of bytes, however it is split, into events. Ids and comments are skipped."""

    def __init__(self) -> None:
        self._held: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> list[Event]:
        """Return the events that these bytes complete.

        Raises:
            UpstreamTooLargeError: An event is larger than any that a provider sends.
        """
        if not data:  # held, it would hide how the piece before it ended
            return []
        alone = not self._held and data.startswith(b"data: ") and data.endswith(b"\n\n") and b"\r" not in data
        if alone and data.find(b"\n") == len(data) - 2:  # one line, as when each event comes by itself
            return [(b"", data[6:-2])]
        if self._held:
            before = self._held[-1][-1:]
            self._hold(data)
            # Joining what is held at every piece would take a large event's time squared.
            if before != b"\r" and len(self._held) < _MOST_HELD and not _BLANK_LINE.search(before + data):
                return []
            data = self._take()
        if b"\r" in data:
            # A carriage return at the very end may be the first half of a line end.
            last = b"\r" if data.endswith(b"\r") else b""
            data = data[: len(data) - len(last)].replace(b"\r\n", b"\n").replace(b"\r", b"\n") + last
        if data.endswith(b"\n\n"):
            lines = data.split(b"\n")  # takes half as long as a split at blank lines
            if not any(lines[1::2]):  # each event is one line
                return [
                    event
                    for line in lines[:-1:2]
                    if (event := (b"", line[6:]) if line.startswith(b"data: ") else _read(line)) is not None
                ]
        events = data.split(b"\n\n")
        if rest := events.pop():
            self._hold(rest)
        return [read for event in events if (read := _read(event)) is not None]

    def _hold(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > LARGEST_EVENT:
            raise UpstreamTooLargeError("The model's provider sent an event that is too large.")
        self._held.append(data)

    def _take(self) -> bytes:
        held = b"".join(self._held)
        self._held.clear()
        self._size = 0
        return held

    def close(self) -> list[Event]:
        """Return a last event that the stream ended without a blank line after."""
        event = _read(self._take().strip(b"\r\n"))
        return [] if event is None else [event]


def _read(event: bytes) -> Event | None:
    if event.startswith(b"data: ") and b"\n" not in event:
        return b"", event[6:]
    name, data = b"", []
    for line in event.removeprefix(_BYTE_ORDER_MARK).split(b"\n"):
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            data.append(value)
        elif field == b"event":
            name = value
        elif field == b"error":  # llama.cpp's, of before 2026
            name = field
            data.append(value)
    if not data and event.startswith((b"{", b"\n{", _BYTE_ORDER_MARK + b"{")):
        # JSON without a field's name: an error from a proxy in between, or a whole answer behind comments.
        data.append(event.removeprefix(_BYTE_ORDER_MARK))
    return (name, b"\n".join(data)) if data and name not in _IDLE else None
