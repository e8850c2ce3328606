"""The readers of one API process, and the subscription that serves them."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict

from redis.asyncio import Redis

from headrace.events.listener import Listener
from headrace.events.subscription import Subscription
from headrace.events.wire import job_channel, unpack
from headrace.ids import new_id
from headrace.runtime.chores import next_tick
from headrace.runtime.flag import Flag
from headrace.stores.namespace import prefix_in

log = logging.getLogger(__name__)

# Subscribers that replay at the same time. After an interruption all of them replay, and other requests of this
# process need connections to Postgres meanwhile.
_REPLAYS = 4
# Seconds between two looks for readers that have waited for their patience.
_LOOK_SECONDS = 1.0


class Hub:
    """The API's end: one pub/sub connection, from which every reader in this process is served."""

    def __init__(self, redis: Redis, *, buffer_bytes: int, patience_seconds: float) -> None:
        """Buffer `buffer_bytes` for each reader before it replays.

        A reader gets a `Silence` after `patience_seconds` without an event, or up to a second later.
        """
        self._prefix = prefix_in(redis)
        self.origin = f"{self._prefix}headrace:api:{new_id('api')}"
        self.interrupted = asyncio.Event()
        """Set when the live wire is back after an interruption: `compare_readers` then asks Postgres at once."""
        self.ending = asyncio.Event()
        """Set when this process is about to end, and disconnects subscribers."""
        self.has_readers = Flag()
        """Set while there are readers, and for up to a second longer."""
        self._over = False
        self._buffer_bytes = buffer_bytes
        self._patience = patience_seconds
        self._subscription = Subscription(redis)
        self._listeners: dict[str, set[Listener]] = {}
        self._turns = asyncio.Semaphore(_REPLAYS)
        self._watched: dict[str, int] = defaultdict(int)

    @property
    def connected(self) -> bool:
        """Whether the live wire works; while it does not, readers poll Postgres."""
        return self._subscription.connected

    @property
    def followed(self) -> list[str]:
        """The jobs that readers in this process follow."""
        return list(self._listeners)

    def check(self, job_id: str, position: tuple[int, int], *, ended: bool) -> None:
        """Tell the readers of a job how far Postgres is: attempt and sequence number, and whether it has ended."""
        for listener in self._listeners.get(job_id, ()):
            listener.check(position, ended=ended)

    def end_waiting(self) -> None:
        """Close every listener, and those yet to come: this process cannot wait any longer."""
        self._over = True
        self._close_ending()

    def end_watching(self) -> None:
        """Disconnect subscribers, and those yet to come: they reconnect to another process and miss no event."""
        self.ending.set()
        self._close_ending()

    def _close_ending(self) -> None:
        for listeners in self._listeners.values():
            for listener in listeners:
                self._close_if_ending(listener)

    def _close_if_ending(self, listener: Listener) -> None:
        if self._over or (self.ending.is_set() and not listener.waits):
            listener.close()

    async def run(self) -> None:
        """Serve readers until cancelled."""
        await self._subscription.subscribe(self.origin)
        await self._subscription.run(self._take)

    async def end_silences(self) -> None:
        """Tell readers of silence, until cancelled. A look at all of them takes less than a timer for each."""
        loop = asyncio.get_running_loop()
        while True:
            await self.has_readers.wait()
            await next_tick(_LOOK_SECONDS)
            if not self._listeners:
                self.has_readers.clear()
            now = loop.time()
            for listeners in self._listeners.values():
                for listener in listeners:
                    listener.end_silence(now)

    def _take(self, message: bytes | None) -> None:
        """Give each frame of a message to the readers of its job."""
        if message is None:
            self.interrupted.set()
            return
        try:
            for frame in unpack(message):
                for listener in self._listeners.get(frame.job_id, ()):
                    listener.put(frame)
        except ValueError:
            log.exception("skipped a message that is not made of frames")

    def listen(self, job_id: str, *, own: bool) -> Listening:
        """Return the context in which a reader gets its frames."""
        return Listening(self, self.listener(job_id, own=own))

    def listener(self, job_id: str, *, own: bool, waits: bool = False) -> Listener:
        """Return the listener of a reader, who gets frames once it joins.

        With `own` they need no subscription: this process is the job's origin. Its client `waits` for an answer, always
        if the job is `own`; any other client reconnects when it is disconnected.
        """
        listener = Listener(job_id, own=own, limit_bytes=self._buffer_bytes, patience_seconds=self._patience)
        listener.waits = own or waits
        if not listener.waits:
            listener.turn = self._turns
        return listener

    async def join(self, listener: Listener) -> None:
        """Begin to serve a listener."""
        self._close_if_ending(listener)
        self._listeners.setdefault(listener.job_id, set()).add(listener)
        self.has_readers.set()
        if not listener.own:
            self._watched[listener.job_id] += 1
            await self._subscription.subscribe(job_channel(listener.job_id, self._prefix))

    async def leave(self, listener: Listener) -> None:
        """Serve a listener no longer."""
        job_id = listener.job_id
        listeners = self._listeners[job_id]
        listeners.discard(listener)
        if not listeners:
            del self._listeners[job_id]
        if listener.own:
            return
        self._watched[job_id] -= 1
        if not self._watched[job_id]:
            del self._watched[job_id]
            self._subscription.unsubscribe(job_channel(job_id, self._prefix))


class Listening:
    """The context of a listener. A generator would take five times the memory of this for each reader."""

    __slots__ = ("_hub", "_listener")

    def __init__(self, hub: Hub, listener: Listener) -> None:
        self._hub = hub
        self._listener = listener

    async def __aenter__(self) -> Listener:
        """Begin to listen."""
        try:
            await self._hub.join(self._listener)
        except BaseException:
            await self._hub.leave(self._listener)
            raise
        return self._listener

    async def __aexit__(self, *_: object) -> None:
        """Stop listening."""
        await self._hub.leave(self._listener)
