"""Server-sent events as bytes come in: https://html.spec.whatwg.org/multipage/server-sent-events.html, read 2026-11."""

from __future__ import annotations

from headrace.errors import UpstreamError

# A single event beyond this is no completion chunk any more.
_LARGEST_EVENT = 4 * 1024 * 1024


class EventReader:
    """Cuts a stream of bytes, however it is split, into the data of its events. Names, ids and comments are skipped."""

    def __init__(self) -> None:
        self._rest: bytes = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Return the data of the events that these bytes complete.

        Raises:
            UpstreamError: An event is larger than any that a provider sends.
        """
        buffer = self._rest + data
        if b"\r" in buffer:
            # A carriage return at the very end may be the first half of a line end.
            held = b"\r" if buffer.endswith(b"\r") else b""
            buffer = buffer[: len(buffer) - len(held)].replace(b"\r\n", b"\n").replace(b"\r", b"\n") + held
        events = buffer.split(b"\n\n")
        self._rest = events.pop()
        if len(self._rest) > _LARGEST_EVENT:
            raise UpstreamError("The model's provider sent an event that is too large.")
        return [content for event in events if (content := _data(event)) is not None]

    def close(self) -> list[bytes]:
        """Return the data of a last event that the stream ended without a blank line after."""
        data = _data(self._rest.strip(b"\r\n"))
        self._rest = b""
        return [] if data is None else [data]


def _data(event: bytes) -> bytes | None:
    if event.startswith(b"data: ") and b"\n" not in event:
        return event[6:]
    lines = [line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None
