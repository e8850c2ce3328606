"""One reader's buffer of events, and how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext

from headrace.events.wire import Frame

_AT_ONCE: AbstractAsyncContextManager[None] = nullcontext()

PassOn = Callable[[Frame], bool]
"""Passes a frame on to the reader's client at once; returns False if the reader has to take it instead."""


class ListenerClosedError(Exception):
    """The reader has to stop: its client left, its key became invalid, or this process ends."""


def _size_of(frame: Frame) -> int:
    """Return the bytes that a frame takes in a buffer."""
    return sum(map(len, frame.lines)) + 64


class Listener:
    """One reader of one job's frames, with a bounded buffer."""

    __slots__ = (
        "_closed",
        "_frames",
        "_limit",
        "_pass_on",
        "_since",
        "_size",
        "_stale",
        "_waiter",
        "job_id",
        "own",
        "patience_seconds",
        "position",
        "refused",
        "turn",
        "waits",
    )

    def __init__(
        self,
        job_id: str,
        *,
        own: bool,
        limit_bytes: int,
        patience_seconds: float,
    ) -> None:
        """Hold up to `limit_bytes`; a reader that leaves more unread replays from Postgres instead."""
        self.job_id = job_id
        self.turn = _AT_ONCE
        """What the reader waits for before it replays: few of a process's subscribers replay at the same time."""
        self.own = own
        """Whether this process is the job's origin."""
        self.waits = own
        """Whether its client waits for an answer, which only this process can give."""
        self.refused = False
        """Whether it was closed because its client may not read any longer."""
        self.position = (0, 0)
        self.patience_seconds = patience_seconds
        """Seconds after which the reader hears of silence."""
        self._limit = limit_bytes
        self._frames: list[Frame] = []
        self._size = 0
        self._stale = False
        self._closed = False
        self._waiter: asyncio.Future[None] | None = None
        self._pass_on: PassOn | None = None
        # Since when the reader has waited, by the loop's time.
        self._since = 0.0

    def put(self, frame: Frame) -> None:
        """Pass a frame on at once if the reader waits and allows it, or add it to the buffer."""
        waiter = self._waiter
        if self._pass_on is not None and waiter is not None and not waiter.done():
            try:
                if self._pass_on(frame):
                    self._since = waiter.get_loop().time()
                    return
            except Exception as error:  # noqa: BLE001  (it fails the reader, and no other one)
                waiter.set_exception(error)
                return
        self._size += _size_of(frame)
        if self._size > self._limit:
            self.miss()
            return
        self._frames.append(frame)
        self._wake()

    def miss(self) -> None:
        """Have the reader replay, as it may have missed events. The buffer is dropped: Postgres has every event."""
        self._frames = []
        self._size = 0
        self._stale = True
        self._wake()

    def begin_replay(self) -> None:
        """Note that the reader replays from now on: the replay covers what it has missed so far.

        Raises:
            ListenerClosedError: The listener was closed while it waited for its turn.
        """
        if self._closed:
            raise ListenerClosedError
        self._stale = False

    def put_back(self, frames: Sequence[Frame]) -> None:
        """Put frames back into the buffer, before those that came meanwhile."""
        self._frames[:0] = frames
        self._size += sum(map(_size_of, frames))

    def check(self, position: tuple[int, int], *, ended: bool) -> None:
        """Compare with the position in Postgres: a reader that is behind with an empty buffer missed events."""
        if not self._frames and (ended or position > self.position):
            self.miss()

    def close(self) -> None:
        """End the reader: `get` raises from now on."""
        self._closed = True
        self._wake()

    def refuse(self) -> None:
        """Close the listener of a client whose key is no longer valid."""
        self.refused = True
        self.close()

    async def get(self, pass_on: PassOn | None = None) -> list[Frame] | None:
        """Return the frames since the last call, no frame after `patience_seconds`, or None if it is time to replay.

        Frames that `pass_on` takes while this waits are not returned, and are no silence.

        Raises:
            ListenerClosedError: The listener was closed.
        """
        if not (self._frames or self._stale or self._closed):
            loop = asyncio.get_running_loop()
            self._waiter = loop.create_future()
            self._since = loop.time()
            self._pass_on = pass_on
            try:
                await self._waiter
            finally:
                self._pass_on = None
        if self._closed:
            raise ListenerClosedError
        if self._stale:
            self._stale = False
            return None
        frames, self._frames = self._frames, []
        self._size = 0
        return frames

    def end_silence(self, now: float) -> None:
        """Wake a reader that has waited for its patience; `now` is the event loop's time."""
        if now - self._since >= self.patience_seconds:
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
