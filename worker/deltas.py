"""Deltas to Postgres: segments of every running attempt, all in one statement, a few times a second."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from sqlalchemy.exc import SQLAlchemyError

from headrace.database import Database
from headrace.jobs import queries
from worker.attempt import Attempt

log = logging.getLogger(__name__)

# Between two writes, however many attempts begin: one statement for all of them.
_PAUSE_SECONDS = 0.02


class DeltaWriter:
    """Keeps what attempts append. What could not be written stays with its attempt and goes with the next segment."""

    def __init__(self, database: Database, *, interval_seconds: float) -> None:
        """Write every `interval_seconds` while there is something to write."""
        self._database = database
        self._interval = interval_seconds
        self._soon = asyncio.Event()
        self._dirty: set[Attempt] = set()
        self._writing: set[Attempt] = set()
        self._written: asyncio.Future[None] | None = None

    def touch(self, attempt: Attempt) -> None:
        """Note that an attempt has deltas to keep; its first ones soon, as they tell that its client has text."""
        self._dirty.add(attempt)
        if not attempt.kept:
            self._soon.set()

    async def settle(self, attempt: Attempt) -> None:
        """Return once no write of this attempt's deltas is under way; those still unkept go with its end."""
        self._dirty.discard(attempt)
        while attempt in self._writing and self._written is not None:
            await asyncio.shield(self._written)

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._interval):
                    await self._soon.wait()
            self._soon.clear()
            if self._dirty:
                await self._write()
                await asyncio.sleep(_PAUSE_SECONDS)

    async def _write(self) -> None:
        self._writing, self._dirty = self._dirty, set()
        self._written = asyncio.get_running_loop().create_future()
        segments = {attempt: segment for attempt in self._writing if (segment := attempt.segment()) is not None}
        try:
            await queries.append_segments(self._database, list(segments.values()))
        except SQLAlchemyError as error:
            log.warning("could not keep deltas, trying again: %s", error)
            self._dirty |= segments.keys()
        else:
            for attempt, segment in segments.items():
                attempt.saved(segment.last_seq)
        finally:
            self._writing = set()
            self._written.set_result(None)
