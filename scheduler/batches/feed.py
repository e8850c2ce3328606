"""Makes jobs of a batch's lines, as many at a time as the batch's share of the window allows.

One statement turns a slice of lines into jobs and moves the batch's place in its input past them. So no line is run
twice or left out, whichever process dies.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import orjson

from headrace.batches.endpoints import ENDPOINTS, Endpoint
from headrace.batches.lines import RawLine
from headrace.ids import AGENT_PREFIX, new_id
from headrace.jobs.records import NewLine
from headrace.jobs.sql.lines import feed_lines
from headrace.queue import LINES, JobQueue
from headrace.runtime.offload import offloaded
from headrace.stores.connections import Row
from headrace.stores.database import Database
from headrace.telemetry import rates
from headrace.telemetry.metrics import BATCH_LINES
from scheduler.batches.agents import BatchAgents
from scheduler.batches.input import read_input
from scheduler.batches.pace import Pace

# Lines and bytes of requests in one statement.
_MOST_LINES = 250
_MOST_BYTES = 2 * 1024 * 1024


class _Taken(NamedTuple):
    """A line that is about to become a job, and the offset of the next line in the input."""

    new: NewLine
    end: int


class Feeder:
    """Feeds one batch, and keeps its input open between two calls of `feed`: it holds a chunk of the file alone."""

    def __init__(self, database: Database, queue: JobQueue, batch: Row, *, pace: Pace | None = None) -> None:
        """Begin at the batch's place. With a pace, lines wait for the rates of its key and account.

        A line that waits stays in the file, as it may have 20 MB and many batches may wait.
        """
        self._database = database
        self._queue = queue
        self._batch = batch
        self._endpoint = ENDPOINTS[batch.endpoint]
        self._offset: int = batch.next_offset
        self._lines = read_input(database, batch.input_file_id, offset=self._offset, number=batch.next_line)
        self._pace = pace
        self._waits = False

    @property
    def offset(self) -> int:
        """The offset of the next line in the input, in bytes."""
        return self._offset

    async def feed(self, count: int, *, parcel: str | None = None) -> bool:
        """Make jobs of the next `count` lines. Wake workers for them, unless a parcel takes them to a provider.

        Returns False if the caller needs a new feeder for the next lines: they wait, or another scheduler has moved the
        batch's place.
        """
        while count > 0 and not self._waits:
            taken = await self._take(min(count, _MOST_LINES))
            if not taken:
                return False
            start, end = self._offset, taken[-1].end
            lines = [line.new for line in taken]
            fed = await feed_lines(
                self._database,
                self._batch.id,
                lines,
                start=start,
                end=end,
                next_line=lines[-1].line + 1,
                parcel=parcel,
            )
            if not fed:
                return False
            BATCH_LINES.inc(len(lines))
            rates.count("submitted", len(lines))
            self._offset = end
            if parcel is None:
                self._queue.wake([line.id for line in lines], tier=LINES)
            count -= len(lines)
            del taken, lines  # the next slice may be as large
        return not self._waits

    async def close(self) -> None:
        """Close the input."""
        await self._lines.aclose()

    async def _take(self, count: int) -> list[_Taken]:
        """Return the next lines; no lines if they have to wait for a rate, or the input has ended."""
        pace, batch = self._pace, self._batch
        bounds = None if pace is None else await pace.bounds(batch)
        ask = None if pace is None else pace.waiting(batch, self._offset)
        taken: list[_Taken] = []
        if pace is not None and bounds is not None and ask is not None:
            self._waits = not await pace.admits(batch, bounds, ask)
        agents, size = BatchAgents(self._database, batch), 0
        while not self._waits and len(taken) < count and size < _MOST_BYTES:
            line = await anext(self._lines, None)
            if line is None:
                break
            next_line = await self._new_line(line, agents, new_id("job") if ask is None else ask.job_id)
            ask = None
            new = next_line.new
            if pace is not None and bounds is not None:
                offset = taken[-1].end if taken else self._offset
                self._waits = not await pace.allows(batch, bounds, offset, new.id, new.request)
            if not self._waits:
                taken.append(next_line)
                size += len(new.request)
        return taken

    async def _new_line(self, raw: RawLine, agents: BatchAgents, job_id: str) -> _Taken:
        assert raw.text is not None  # validation has checked it
        line = await offloaded(len(raw.text), orjson.loads, raw.text)
        body = line["body"]
        asked, metadata = await agents.resolve(body), body.get("metadata")
        agent_id = body["model"] if body["model"].startswith(AGENT_PREFIX) else None
        new = NewLine(
            id=job_id,
            line=raw.number,
            custom_id=line["custom_id"],
            model=asked["model"],
            request=await offloaded(len(raw.text), _render, self._endpoint, asked, job_id),
            metadata=orjson.dumps(metadata).decode() if metadata else None,
            timeout_seconds=asked.get("timeout"),
            agent_id=agent_id,
            agent_version=None if agent_id is None else self._batch.agents[agent_id],
            format=self._endpoint.format,
        )
        return _Taken(new, raw.end)


def _render(endpoint: Endpoint, asked: dict[str, Any], job_id: str) -> str:
    return orjson.dumps(endpoint.stored(asked, job_id)).decode()
