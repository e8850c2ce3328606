"""Reading server-sent events as strictly as the contract words them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from tests.fakes.provider import Json

FINAL = frozenset({"job.completed", "job.failed", "job.cancelled", "job.expired"})


@dataclass(frozen=True)
class Event:
    """One event of a stream. `data` is its parsed JSON, or the text `[DONE]`."""

    id: str | None
    name: str | None
    data: Any

    @property
    def attempt(self) -> int:
        """The attempt that the id names."""
        return int((self.id or "").partition("-")[0])


class EventStream:
    """The events of a response, in order. Comments are counted, everything else must be as the contract says."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self.comments: list[str] = []
        self._blocks = self._read()

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        async for block in self._blocks:
            if block.startswith("retry: "):
                assert block.removeprefix("retry: ").isdecimal()
                continue
            while block.startswith(":"):
                comment, _, block = block.partition("\n")  # noqa: PLW2901
                self.comments.append(comment[1:].strip())
            if block:
                return _parse(block)
        raise StopAsyncIteration

    async def comment(self) -> str:
        """Read up to the next comment and return it; no event may come before it."""
        block = await anext(self._blocks)
        assert block.startswith(":"), f"expected a comment, got {block!r}"
        return block[1:].strip()

    async def rest(self) -> list[Event]:
        """Read to the end."""
        return [event async for event in self]

    async def up_to(self, name: str) -> list[Event]:
        """Read up to and with the next event of this name."""
        events = []
        async for event in self:
            events.append(event)
            if event.name == name:
                return events
        raise AssertionError(f"the stream ended without {name}: {[event.name for event in events]}")

    async def _read(self) -> AsyncIterator[str]:
        pending = ""
        async for text in self.response.aiter_text():
            pending += text
            *blocks, pending = pending.split("\n\n")
            for block in blocks:
                yield block
        assert not pending, f"the stream ended inside an event: {pending!r}"


def _parse(block: str) -> Event:
    fields: dict[str, str] = {}
    for line in block.split("\n"):
        name, colon, value = line.partition(": ")
        assert colon, f"not a field: {line!r}"
        assert name in {"id", "event", "data"}, f"unknown field: {line!r}"
        assert name not in fields, f"an event has one {name} line: {block!r}"
        fields[name] = value
    assert "data" in fields, f"an event without data is dropped by clients: {block!r}"
    data = fields["data"]
    return Event(fields.get("id"), fields.get("event"), data if data == "[DONE]" else json.loads(data))


async def chunks_of(response: httpx.Response) -> list[Json]:
    """Return the chunks of a chat completion's stream, which must end with `[DONE]` and have no names or errors."""
    events = await EventStream(response).rest()
    assert events, "the stream is empty"
    assert events[-1].data == "[DONE]", events[-1]
    chunks = [event.data for event in events[:-1]]
    assert all(event.name is None for event in events), "OpenAI's streams have no event names"
    assert all("error" not in chunk for chunk in chunks), chunks
    return chunks


def text_of(chunks: Iterable[Json], index: int = 0) -> str:
    """Join up the content of one choice."""
    return "".join(
        choice["delta"].get("content") or ""
        for chunk in chunks
        for choice in chunk["choices"]
        if choice["index"] == index
    )


def deltas_of(chunks: Iterable[Json], key: str) -> list[Any]:
    """Return every value that a choice's delta has under a key, in order."""
    return [
        choice["delta"][key] for chunk in chunks for choice in chunk["choices"] if choice["delta"].get(key) is not None
    ]


def outline(events: Sequence[Event]) -> list[tuple[str | None, str | None]]:
    """Return ids and names: what must be the same however and whenever a job is read."""
    return [(event.id, event.name) for event in events]
