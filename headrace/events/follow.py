"""Following one job: replay from Postgres, then live, without a gap and without an event twice.

A reader subscribes first, then replays, then goes live. A jump in the sequence, a lost connection or an overflow sends
it back to Postgres, which has every delta within a fraction of a second.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import Self

import orjson
from sqlalchemy.exc import SQLAlchemyError

from headrace.errors import NotFoundError
from headrace.events.job_events import START, Cursor, Deltas, Ended, Event, Retrying, Silence, Started
from headrace.events.listener import Listener
from headrace.events.wire import PAST_ALL, Frame
from headrace.formats.chat.support import Format
from headrace.formats.registry import CLIENT_FORMATS
from headrace.jobs.records import Progress
from headrace.jobs.sql.read import UNBOUNDED, read_deltas, read_log, read_log_length, read_positions, read_progress
from headrace.jobs.state import State
from headrace.stores.database import Database
from headrace.usage.spent import Charge

log = logging.getLogger(__name__)

# Seconds between two looks for missed deltas, which reach Postgres within `segment_seconds`.
_SEGMENT_WAIT_SECONDS = 0.1
# Bytes of lines or of an answer that a reader takes from Postgres at a time, rounded up to whole segments. That is what
# it holds for a client that does not read.
_PAGE_BYTES = 256 * 1024
# Seconds between two tries of a replay while Postgres is unavailable.
_DATABASE_WAIT_SECONDS = 0.5
_WITHOUT_LINES = frozenset({"started", "retrying"})


Write = Callable[[Deltas], bool]
"""Writes deltas to a client at once; returns False if that has to wait."""


class _Follower:
    """A reader's position, and the events that each replay or frame adds for it.

    It is an iterator and no generator, which would take half a kilobyte more for each reader.
    """

    __slots__ = ("_next", "_replays", "ahead", "cursor", "database", "job_id", "listener", "over", "void", "write")

    def __init__(
        self, database: Database, listener: Listener, after: Cursor, *, replay: bool = True, write: Write | None = None
    ) -> None:
        self._next: list[Event] = []
        """The next events, the last one first."""
        self._replays = replay
        """Whether the reader replays before it listens: at first, and while Postgres has more than a page."""
        self.database = database
        self.listener = listener
        self.job_id = listener.job_id
        self.write = write
        self.cursor = after
        self.over = False
        self.void = False
        # Whether the reader has deltas of the attempt that came before Postgres had them.
        self.ahead = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        """Return the next event, once there is one."""
        while not self._next:
            if self.over:
                raise StopAsyncIteration
            replays, self._replays = self._replays, False
            write = None if self.write is None else self.write_next
            self._next = await self._events_of(None if replays else await self.listener.get(write))
        return self._next.pop()

    async def _events_of(self, frames: list[Frame] | None) -> list[Event]:
        """Return the events of frames, the last one first; without frames, those of a replay."""
        events: list[Event]
        if frames is None:
            events = await _replay(self.listener, self)
        elif not frames:
            events = [Silence()]
        else:
            events, missed = self.take_all(frames)
            if missed:
                self.listener.put_back(missed)
                await asyncio.sleep(_SEGMENT_WAIT_SECONDS)
                events += await _replay(self.listener, self)
        self.listener.position = self.position
        return events[::-1]

    @property
    def position(self) -> tuple[int, int]:
        """The reader's position to compare with Postgres; past all deltas of an attempt that is void."""
        return self.cursor.attempt, PAST_ALL if self.void else self.cursor.seq

    async def replay(self) -> list[Event]:
        """Return the events that Postgres has past the cursor, or the first of many: then it is to be called again."""
        progress = await _progress_of(self.database, self.job_id, most_bytes=_PAGE_BYTES)
        attempt = progress.attempt
        if _is_whole(progress):
            chunks = _chunks_of(progress)
            events = [*self._move_to(attempt), *self._deltas(attempt, 1, chunks)]
            return [*events, *self._end(progress, _end_of(progress, len(chunks)))]
        # The reader may have an end outside of an attempt. The cursor stays until all is read: Postgres may fail.
        past = 0 if attempt > self.cursor.attempt else self.cursor.seq if attempt == self.cursor.attempt else PAST_ALL
        kept, more = await read_deltas(self.database, self.job_id, attempt, after=past, most_bytes=_PAGE_BYTES)
        events = self._move_to(attempt)
        for _, first_seq, lines in kept:
            events += self._deltas(attempt, first_seq, lines)
        if more or (events and progress.lacks_answer):
            self._replays = True  # when the client has read these
            return events
        if progress.lacks_answer:
            progress = replace(progress, response=(await _progress_of(self.database, self.job_id)).response)
        if progress.state is State.QUEUED and attempt:
            events += self._start_over(attempt)
        if progress.state.is_final:
            events += self._end(progress, _end_of(progress, progress.delta_count))
        return events

    def write_next(self, frame: Frame) -> bool:
        """Write the deltas that come next to the client at once; False for any other frame, and if that has to wait."""
        attempt, seq = self.cursor
        if frame.kind != "delta" or frame.attempt != attempt or frame.first_seq != seq + 1 or self.void:
            return False
        lines = frame.lines
        if self.write is None or not lines or not self.write(Deltas(Cursor(attempt, seq + 1), lines)):
            return False
        self.ahead = True
        self.listener.position = self.cursor = Cursor(attempt, seq + len(lines))
        return True

    def take_all(self, frames: list[Frame]) -> tuple[list[Event], list[Frame]]:
        """Return the events that live frames add, and the frames from the first one on that follows a gap."""
        events: list[Event] = []
        for index, frame in enumerate(frames):
            if self.over:
                break
            if frame.attempt > self.cursor.attempt:
                events += self._move_to(frame.attempt)
            elif frame.attempt < self.cursor.attempt or (self.void and frame.kind == "delta"):
                continue  # the worker of a void attempt does not know yet that it lost the job
            if frame.kind == "retrying":
                events += self._start_over(frame.attempt)
            if frame.kind in _WITHOUT_LINES:
                continue
            if frame.first_seq > self.cursor.seq + 1 or not frame.lines:
                if frame.kind == "delta" and frame.first_seq <= self.cursor.seq:
                    continue  # too large for a message, and read from Postgres, which has all of its lines or none
                return events, frames[index:]
            if frame.kind == "delta":
                self.ahead = True
                events += self._deltas(frame.attempt, frame.first_seq, frame.lines)
            else:
                events.append(self._live_end(frame))
        return events, []

    def _live_end(self, frame: Frame) -> Ended:
        state = State(frame.kind)
        completed = state is State.COMPLETED
        self.over = True
        self.cursor = Cursor(frame.attempt, frame.first_seq)
        return Ended(
            self.cursor,
            state,
            response=frame.lines[0] if completed else None,
            error=None if completed else frame.lines[0],
            charge=Charge.unpack(frame.lines[1]),
        )

    def _move_to(self, attempt: int) -> list[Event]:
        if attempt <= self.cursor.attempt:
            return []
        events = self._start_over(self.cursor.attempt) if self.cursor.attempt else []
        self.void = self.ahead = False
        self.cursor = Cursor(attempt, 0)
        return [*events, Started(self.cursor)]

    def _start_over(self, attempt: int) -> list[Event]:
        """Return, once for each attempt, the event that it is void; nothing if the reader has a later one."""
        if self.void or attempt < self.cursor.attempt:
            return []
        self.void = True
        return [Retrying(attempt)]

    def _deltas(self, attempt: int, first_seq: int, chunks: Sequence[bytes]) -> list[Event]:
        known = self.cursor.seq + 1 - first_seq
        if known > 0:
            chunks, first_seq = chunks[known:], first_seq + known
        if not chunks:
            return []
        self.cursor = Cursor(attempt, first_seq + len(chunks) - 1)
        return [Deltas(Cursor(attempt, first_seq), chunks)]

    def _end(self, progress: Progress, end: Cursor) -> list[Event]:
        self.over = True
        if self.cursor == end:
            return []  # the reader has it all
        self.cursor = end
        response = None if progress.response is None else progress.response.encode()
        error = None if progress.error is None else progress.error.encode()
        return [Ended(self.cursor, progress.state, response, error, progress.charge)]


class _LogFollower(_Follower):
    """A reader of a job whose format keeps its log: numbers go on over all attempts."""

    __slots__ = ()

    async def replay(self) -> list[Event]:
        """Return the events that Postgres has past the cursor, or the first of many: then it is to be called again."""
        progress = await _progress_of(self.database, self.job_id, most_bytes=_PAGE_BYTES)
        attempt, place = progress.attempt, self.cursor
        if _is_whole(progress):
            lines = _chunks_of(progress)
            kept, more, length = [(attempt, 1, lines)], False, len(lines)
        else:
            kept, more = await read_log(self.database, self.job_id, after=self.cursor.seq, most_bytes=_PAGE_BYTES)
            length = kept[-1][1] + len(kept[-1][2]) - 1 if kept else await read_log_length(self.database, self.job_id)
        events: list[Event] = []
        for of, first_seq, lines in kept:
            events += [*self._move_to(of), *self._deltas(self.cursor.attempt, first_seq, lines)]
        if more or (events and progress.lacks_answer):
            self._replays = True  # when the client has read these
            return events
        if progress.lacks_answer:
            progress = replace(progress, response=(await _progress_of(self.database, self.job_id)).response)
        events += self._move_to(attempt)
        if progress.state is State.QUEUED and attempt:
            events += self._start_over(attempt)
        if not progress.state.is_final:
            self.ahead |= self.cursor.seq > length
        elif not self.ahead and _has_end(place, _log_end(progress, length)):
            self.over = True
        else:
            # A reader may have lines that Postgres never got. For it the end comes after them.
            events += self._end(progress, _log_end(progress, max(length, self.cursor.seq)))
        return events

    def _start_over(self, attempt: int) -> list[Event]:
        return [] if not super()._start_over(attempt) else [Retrying(attempt, kept=not self.ahead)]

    def _move_to(self, attempt: int) -> list[Event]:
        seq = self.cursor.seq
        events = super()._move_to(attempt)
        if events:
            self.cursor = Cursor(self.cursor.attempt, seq)
        return events


async def _progress_of(database: Database, job_id: str, *, most_bytes: int = UNBOUNDED) -> Progress:
    """Return where a job stands, without a streamed answer of more than `most_bytes`.

    Raises:
        NotFoundError: The job was deleted.
    """
    progress = await read_progress(database, job_id, most_bytes=most_bytes)
    if progress is None:
        raise NotFoundError(f"The job '{job_id}' was deleted.")
    return progress


def _end_of(progress: Progress, delta_count: int) -> Cursor:
    """Return the id of the end: after an attempt's deltas, or, outside of an attempt, after every attempt."""
    if progress.in_attempt:
        return Cursor(progress.attempt, delta_count + 1)
    return Cursor(progress.attempt + 1, 0)


def _log_end(progress: Progress, length: int) -> Cursor:
    """Return the id of the end of a job whose log has `length` lines."""
    return Cursor(progress.attempt if progress.in_attempt else progress.attempt + 1, length + 1)


def _has_end(place: Cursor, end: Cursor) -> bool:
    """Return whether a reader at `place` has the end of a log. A place without an attempt is a line's number alone."""
    return place >= end if place.attempt else place.seq >= end.seq


def _is_whole(progress: Progress) -> bool:
    """Return whether the job has a whole answer, and so no stored deltas."""
    return progress.state is State.COMPLETED and progress.delta_count == 0


def _chunks_of(progress: Progress) -> list[bytes]:
    """Return the lines of a whole answer, as a stream would have had them: the same ones at each call."""
    return CLIENT_FORMATS[progress.format].lines_of(orjson.loads(progress.response or "{}"))


async def furthest_cursor(database: Database, job_id: str) -> Cursor:
    """Return the id of the last event that Postgres has of a job.

    Raises:
        NotFoundError: The job was deleted.
    """
    progress = await _progress_of(database, job_id, most_bytes=0)
    if CLIENT_FORMATS[progress.format].KEEPS_LOG:
        whole = _is_whole(progress)
        length = len(_chunks_of(progress)) if whole else await read_log_length(database, job_id)
        return _log_end(progress, length) if progress.state.is_final else Cursor(progress.attempt, length)
    if not progress.state.is_final and not progress.in_attempt:
        # Between two attempts: readers may have any delta of the first, though Postgres has deleted them.
        return Cursor(progress.attempt, PAST_ALL) if progress.attempt else START
    if not progress.state.is_final:
        positions = await read_positions(database, [job_id])
        return Cursor(positions[0].attempt, positions[0].last_seq)
    deltas = len(_chunks_of(progress)) if _is_whole(progress) else progress.delta_count
    return _end_of(progress, deltas)


def follow(
    listener: Listener,
    database: Database,
    *,
    after: Cursor = START,
    replay: bool = True,
    format: Format = "chat",  # noqa: A002  (the word for it everywhere)
    write: Write | None = None,
) -> AsyncIterator[Event]:
    """Return the events of the listener's job past `after`, in order and each once, up to its end.

    Deltas that `write` takes while their reader waits for the next event are left out: no task wakes up for them.
    Without `replay` it goes live at once: for a job that is being submitted. `format` is the job's; if it keeps a log,
    the attempt of `after` does not matter. While Postgres is unavailable the reader waits. The next event may raise
    NotFoundError: the job was deleted meanwhile; or ListenerClosedError: the listener was closed.
    """
    if replay:
        listener.position = PAST_ALL, PAST_ALL  # unknown until it has replayed, so `watch` need not compare it
    follower = _LogFollower if CLIENT_FORMATS[format].KEEPS_LOG else _Follower
    return follower(database, listener, after, replay=replay, write=write)


async def _replay(listener: Listener, follower: _Follower) -> list[Event]:
    """Return what Postgres has past the reader's position, when it is its turn and Postgres is available."""
    async with listener.turn:
        while True:
            listener.begin_replay()
            try:
                return await follower.replay()
            except SQLAlchemyError as error:
                log.warning("a reader waits for Postgres: %s", error)
                await asyncio.sleep(_DATABASE_WAIT_SECONDS)
