"""Deltas on their way to Postgres: segments of every running attempt, all in one statement, a few times a second."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Sequence
from itertools import islice

from sqlalchemy.exc import SQLAlchemyError

from headrace.jobs.records import Segment
from headrace.jobs.sql.run import append_segments
from headrace.stores.database import Database
from headrace.stores.group_commit import fitting
from headrace.telemetry.metrics import GROUP_COMMIT

log = logging.getLogger(__name__)

# Seconds between two writes, however many attempts begin: one statement for all of them.
_PAUSE_SECONDS = 0.02
# Seconds that a delta waits for Postgres where readers get it only after that write: the stream still looks fluent.
_READERS_WAIT_SECONDS = 0.1


class Deltas:
    """The deltas of one attempt: counted since its start, and held until Postgres has them."""

    __slots__ = (
        "_attempt", "_before", "_first_at", "_held", "_job_id", "_once", "_saved", "_taken", "on_first", "on_saved",
        "seq",
    )  # fmt: skip

    def __init__(
        self,
        job_id: str,
        attempt: int,
        *,
        on_saved: Callable[[Segment], None] | None = None,
        once: bool = False,
    ) -> None:
        """Start without deltas. `on_saved` is called with each segment that Postgres has.

        With `once` it is called when Postgres has the first segment: with that one, and with the deltas since.
        """
        self.seq = 0
        """The number of the last delta, 0 before the first."""
        self.on_saved = on_saved
        self.on_first: Callable[[], None] | None = None
        """Called without arguments when the first delta comes."""
        self._once = once
        self._job_id = job_id
        self._attempt = attempt
        self._first_at: float | None = None
        self._before = self._saved = 0
        # One buffer, as an object for each delta would take many times its bytes: each delta and a line end.
        self._held = bytearray()
        self._taken = 0

    def resume(self, seq: int) -> None:
        """Continue after delta `seq`, the last one of an earlier attempt."""
        self.seq = self._saved = self._before = seq

    def append(self, lines: Sequence[bytes]) -> bytes:
        """Count deltas, one JSON object a line, and hold them. Returns them with the line ends."""
        if self._first_at is None:
            self._first_at = time.monotonic()
            if self.on_first is not None:
                self.on_first()
        body = b"\n".join((*lines, b""))
        self._held += body
        self.seq += len(lines)
        return body

    @property
    def size(self) -> int:
        """Bytes of the deltas that are held."""
        return len(self._held)

    def segment(self) -> Segment | None:
        """Return all held deltas, or None if Postgres has every one."""
        self._taken = len(self._held)
        if not self._taken:
            return None
        return Segment(self._job_id, self._attempt, self._saved + 1, self.seq, self._held[:-1].decode())

    def saved(self, segment: Segment) -> None:
        """Drop the deltas of the last segment taken, which Postgres has now."""
        del self._held[: self._taken]
        self._taken = 0
        self._saved = segment.last_seq
        if self.on_saved is None:
            return
        self.on_saved(segment)
        if self._once:
            if (rest := self.segment()) is not None:
                self.on_saved(rest)
            self.on_saved = None

    @property
    def kept(self) -> bool:
        """Return whether Postgres has any delta of this attempt."""
        return self._saved > self._before

    @property
    def first_at(self) -> float | None:
        """When the first delta came, by `time.monotonic`; None before it."""
        return self._first_at

    def seconds_since_first(self) -> float | None:
        """Return how long ago the first delta came, in seconds."""
        return None if self._first_at is None else time.monotonic() - self._first_at


class DeltaWriter:
    """Writes the deltas that attempts hold. If a write fails they stay with their attempts and go with the next."""

    def __init__(self, database: Database, *, interval_seconds: float) -> None:
        """Write within `interval_seconds` what attempts hold, and nothing while they hold no deltas."""
        self._database = database
        self._interval = interval_seconds
        self._sizes = GROUP_COMMIT.labels("deltas")
        self._soon = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        """Sets `_soon` when the deltas that attempts hold are due; None while no write is due."""
        self._dirty: dict[Deltas, None] = {}
        """Those that hold deltas, in the order in which they are written."""
        self._writing: Collection[Deltas] = ()
        self._written: asyncio.Future[None] | None = None

    def touch(self, deltas: Deltas) -> None:
        """Note that an attempt holds deltas; its first ones are written soon, as they show that its client has text."""
        if deltas in self._dirty:  # its write is due already
            return
        self._dirty[deltas] = None
        if not deltas.kept:
            self._soon.set()
        elif deltas.on_saved is not None:
            self._write_within(_READERS_WAIT_SECONDS)
        elif self._timer is None:
            self._write_within(self._interval)

    def _write_within(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        at = loop.time() + seconds
        if self._timer is not None:
            if self._timer.when() <= at:
                return
            self._timer.cancel()
        self._timer = loop.call_at(at, self._soon.set)

    async def settle(self, deltas: Deltas) -> None:
        """Return once no write of an attempt's deltas is under way; those still held go with its end."""
        self._dirty.pop(deltas, None)
        while deltas in self._writing and self._written is not None:
            await asyncio.shield(self._written)

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._soon.wait()
            self._soon.clear()
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if self._dirty:
                await self._write()
                await asyncio.sleep(_PAUSE_SECONDS)

    async def _write(self) -> None:
        count = fitting(deltas.size for deltas in self._dirty)
        self._writing = set(islice(self._dirty, count))
        for deltas in self._writing:
            del self._dirty[deltas]
        rest = bool(self._dirty)
        self._written = asyncio.get_running_loop().create_future()
        segments = {deltas: segment for deltas in self._writing if (segment := deltas.segment()) is not None}
        self._sizes.observe(len(segments))
        try:
            await append_segments(self._database, list(segments.values()))
        except SQLAlchemyError as error:
            log.warning("could not write deltas, trying again: %s", error)
            self._dirty |= dict.fromkeys(segments)
            self._write_within(self._interval)
        else:
            for deltas, segment in segments.items():
                deltas.saved(segment)
            if rest:
                self._soon.set()
        finally:
            self._writing = ()
            self._written.set_result(None)
