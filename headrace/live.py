"""The live wire: events of jobs over Redis pub/sub. It may lose anything at any time; Postgres has the truth.

A worker publishes frames, many jobs together in one command. A job's frames go to the job's own channel, for whoever
watches, and to the channel of the API process whose client waits for the job, packed with those of its other clients'
jobs. That client's answer then costs no subscription and one message serves many streams.

A frame is a header line, `job attempt first_seq kind count`, and `count` lines of JSON. Kinds:

* `started`, `retrying`: no lines
* `delta`: chunks, numbered from `first_seq` on
* `completed`, `failed`, `cancelled`, `expired`: two lines, the response or the error and what it is charged with,
  unless they are large: then none
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from headrace import redis_url
from headrace.clock import now
from headrace.ids import new_id
from headrace.redis_url import AWAY

log = logging.getLogger(__name__)

_CANCEL_CHANNEL = "headrace:cancel"
_CHECK_KEY = "headrace:check"
_PUBLISH = "for i = 1, #ARGV, 2 do redis.call('PUBLISH', ARGV[i], ARGV[i + 1]) end"
# A larger end is read from Postgres: pub/sub buffers count against Redis's memory.
_LARGEST_END = 256 * 1024


def job_channel(job_id: str) -> str:
    """Return the channel of those who watch a job."""
    return f"headrace:job:{job_id}"


def connect(url: str) -> Redis:
    """Return a client that never waits long: a Redis that is away must slow nobody down."""
    return redis_url.connect(
        url,
        socket_timeout=2,
        socket_connect_timeout=1,
        health_check_interval=5,
        max_connections=64,
        retry=Retry(NoBackoff(), 0),
    )


async def answers(redis: Redis) -> bool:
    """Tell whether Redis takes writes: one that is full, read-only or loading is of as little use as none."""
    try:
        await redis.set(_CHECK_KEY, 1, ex=60)
    except AWAY:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Frame:
    """One event of a job, or several deltas in a row."""

    job_id: str
    attempt: int
    first_seq: int
    kind: str
    lines: Sequence[bytes]

    def pack(self) -> bytes:
        """Return the frame as it travels."""
        head = f"{self.job_id} {self.attempt} {self.first_seq} {self.kind} {len(self.lines)}\n".encode()
        return head + b"\n".join(self.lines) + b"\n" if self.lines else head


def unpack(message: bytes) -> Iterable[Frame]:
    """Yield the frames of a message.

    Raises:
        ValueError: It is not made of frames.
    """
    lines = message.split(b"\n")
    at, end = 0, len(lines) - 1
    while at < end:
        job_id, attempt, first_seq, kind, count = lines[at].split(b" ")
        at += 1
        upto = at + int(count)
        yield Frame(job_id.decode(), int(attempt), int(first_seq), kind.decode(), lines[at:upto])
        at = upto


class Publisher:
    """The worker's end: sends frames soon, many at a time, and drops them while Redis is unavailable."""

    def __init__(self, redis: Redis, *, interval_seconds: float) -> None:
        """Let a frame leave at once, unless one just did: then those of `interval_seconds` leave together."""
        self._redis = redis
        self._interval = interval_seconds
        self._pending: list[tuple[float, str | None, Frame]] = []
        self._task: asyncio.Task[None] | None = None
        self._away = False

    def publish(self, frame: Frame, *, origin: str | None, until: float = math.inf) -> None:
        """Send a frame to those who watch the job and to the API process that waits for it, if one does.

        After `until`, a time of `headrace.clock`, it is dropped: the job may be another's then.
        """
        self._pending.append((until, origin, frame))
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    async def flush(self) -> None:
        """Wait until every frame has been sent, or dropped."""
        if self._task is not None:
            await self._task

    async def cancel(self, job_id: str) -> None:
        """Tell every worker to stop a job. One that does not hear it finds out at its next heartbeat."""
        with contextlib.suppress(*AWAY):
            await self._redis.publish(_CANCEL_CHANNEL, job_id)

    async def _run(self) -> None:
        try:
            while self._pending:
                batch, self._pending = self._pending, []
                await self._send(batch)
                await asyncio.sleep(self._interval)
        finally:
            self._task = None

    async def _send(self, batch: Sequence[tuple[float, str | None, Frame]]) -> None:
        channels: dict[str, list[bytes]] = defaultdict(list)
        time = now()
        for until, origin, frame in batch:
            if time > until:
                continue
            packed = frame.pack()
            if origin is not None:
                channels[origin].append(packed if len(packed) <= _LARGEST_END else _without_lines(frame).pack())
            # Those who watch read a job's end from Postgres.
            channels[job_channel(frame.job_id)].append(
                packed if frame.kind == "delta" else _without_lines(frame).pack()
            )
        arguments = [part for channel, frames in channels.items() for part in (channel, b"".join(frames))]
        if not arguments:
            return
        try:
            await self._redis.eval(_PUBLISH, 0, *arguments)
            self._away = False
        except AWAY as error:
            if not self._away:
                log.warning("Redis is unavailable, readers fall back to Postgres: %s", error)
            self._away = True


def _without_lines(frame: Frame) -> Frame:
    return Frame(frame.job_id, frame.attempt, frame.first_seq, frame.kind, ())


class _Subscription:
    """A pub/sub connection that comes back by itself, with its channels."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._pubsub: PubSub | None = None
        self._channels: dict[str, asyncio.Event] = {}
        self.connected = False

    async def subscribe(self, channel: str) -> None:
        """Subscribe, and wait for Redis to say so; while it is away, return at once."""
        confirmed = self._channels.setdefault(channel, asyncio.Event())
        if (pubsub := self._alive()) is not None and not confirmed.is_set():
            with _lost_meanwhile():
                await pubsub.subscribe(channel)
                async with asyncio.timeout(2):
                    await confirmed.wait()

    async def unsubscribe(self, channel: str) -> None:
        self._channels.pop(channel, None)
        if (pubsub := self._alive()) is not None:
            with _lost_meanwhile():
                await pubsub.unsubscribe(channel)

    def _alive(self) -> PubSub | None:
        """Return the connection, unless it is being lost: redis-py would make it anew, and `messages` never know."""
        pubsub = self._pubsub
        connection: Any = pubsub and pubsub.connection
        return pubsub if self.connected and connection is not None and connection.is_connected else None

    async def messages(self) -> AsyncIterator[bytes | None]:
        """Yield what is published; None each time the connection was made anew and something may have been missed."""
        while True:
            try:
                async with self._redis.pubsub() as self._pubsub:
                    before = set(self._channels)
                    await self._pubsub.subscribe(*before)
                    self.connected = True
                    if joined := self._channels.keys() - before:
                        await self._pubsub.subscribe(*joined)
                    if gone := before - self._channels.keys():
                        await self._pubsub.unsubscribe(*gone)
                    yield None
                    while True:
                        message: dict[str, Any] | None = await self._pubsub.get_message(timeout=5)
                        if message is None:
                            continue
                        if message["type"] == "message":
                            yield message["data"]
                        elif message["type"] == "subscribe":
                            self._confirm(message["channel"].decode())
            except Exception as error:  # noqa: BLE001  # whatever it is, the answer is to connect again
                if self.connected:
                    log.warning("lost the live wire: %r", error)
                self._disconnected()
                await asyncio.sleep(0.5)

    def _confirm(self, channel: str) -> None:
        if channel in self._channels:
            self._channels[channel].set()

    def _disconnected(self) -> None:
        self.connected = False
        self._pubsub = None
        for confirmed in self._channels.values():
            confirmed.clear()


@contextlib.contextmanager
def _lost_meanwhile() -> Iterator[None]:
    """Let `messages` deal with a connection that breaks, which then fails in more ways than redis-py has errors for."""
    try:
        yield
    except Exception as error:  # noqa: BLE001
        log.debug("the live wire broke under a subscription: %r", error)


async def cancelled_jobs(redis: Redis) -> AsyncIterator[str]:
    """Yield the ids of jobs that somebody cancels, for as long as it is asked."""
    subscription = _Subscription(redis)
    await subscription.subscribe(_CANCEL_CHANNEL)
    async for message in subscription.messages():
        if message is not None:
            yield message.decode()


class ListenerClosedError(Exception):
    """Nobody wants what this reader reads any more."""


class Listener:
    """One reader of one job's frames, with a bounded buffer."""

    def __init__(self, job_id: str, *, own: bool, limit_bytes: int, patience_seconds: float) -> None:
        """Hold up to `limit_bytes`; a reader that leaves more unread is told to replay instead."""
        self.job_id = job_id
        self.waits = own
        """Whether its client waits for an answer, which no other process can give it."""
        self.refused = False
        """Whether it was closed because its client may not read any longer."""
        self.position = (0, 0)
        self.patience_seconds = patience_seconds
        self._limit = limit_bytes
        self._frames: deque[Frame] = deque()
        self._size = 0
        self._stale = False
        self._closed = False
        self._waiter: asyncio.Future[None] | None = None

    def put(self, frame: Frame) -> None:
        """Hand the reader a frame."""
        self._size += sum(map(len, frame.lines)) + 64
        if self._size > self._limit:
            self.miss()
            return
        self._frames.append(frame)
        self._wake()

    def miss(self) -> None:
        """Tell the reader that it may have missed something: what is buffered is dropped, Postgres has it all."""
        self._frames.clear()
        self._size = 0
        self._stale = True
        self._wake()

    def put_back(self, frames: Sequence[Frame]) -> None:
        """Leave frames for later, before those that came meanwhile."""
        self._frames.extendleft(reversed(frames))

    def check(self, position: tuple[int, int], *, ended: bool) -> None:
        """Compare with where Postgres stands: a reader that has nothing to read but is behind missed something."""
        if not self._frames and (ended or position > self.position):
            self.miss()

    def close(self) -> None:
        """Tell the reader that nobody wants what it reads any more."""
        self._closed = True
        self._wake()

    def refuse(self) -> None:
        """Close the listener of a client whose key is valid no longer."""
        self.refused = True
        self.close()

    async def get(self) -> list[Frame] | None:
        """Return the frames since the last call, none after `patience_seconds`, or None if it is time to replay.

        Raises:
            ListenerClosedError: It was closed.
        """
        if not (self._frames or self._stale or self._closed):
            loop = asyncio.get_running_loop()
            self._waiter = loop.create_future()
            timer = loop.call_later(self.patience_seconds, self._wake)
            try:
                await self._waiter
            finally:
                timer.cancel()
        if self._closed:
            raise ListenerClosedError
        if self._stale:
            self._stale = False
            return None
        frames = list(self._frames)
        self._frames.clear()
        self._size = 0
        return frames

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Hub:
    """The API's end: one pub/sub connection, from which every reader in this process is served."""

    def __init__(self, redis: Redis, *, buffer_bytes: int, patience_seconds: float) -> None:
        """Readers hold `buffer_bytes` each before they are sent back to Postgres, and hear of silences so long."""
        self.origin = f"headrace:api:{new_id('api')}"
        self.doubt = asyncio.Event()
        """Set when the wire was cut and is back: whoever looks after readers has to look now."""
        self.ending = asyncio.Event()
        """Set when this process is to end, and lets go of those who watch."""
        self._over = False
        self._buffer_bytes = buffer_bytes
        self._patience = patience_seconds
        self._subscription = _Subscription(redis)
        self._listeners: dict[str, set[Listener]] = {}
        self._watched: dict[str, int] = defaultdict(int)

    @property
    def connected(self) -> bool:
        """Tell whether the live wire works; while it does not, readers poll Postgres."""
        return self._subscription.connected

    @property
    def followed(self) -> list[str]:
        """The jobs that somebody in this process follows."""
        return list(self._listeners)

    def check(self, job_id: str, position: tuple[int, int], *, ended: bool) -> None:
        """Tell the readers of a job how far Postgres is: attempt and sequence number, and whether it has ended."""
        for listener in self._listeners.get(job_id, ()):
            listener.check(position, ended=ended)

    def end_waiting(self) -> None:
        """Let go of everybody, and of whoever comes yet: this process cannot wait any longer."""
        self._over = True
        self._let_go()

    def end_watching(self) -> None:
        """Let go of those who watch, also of those yet to come: they come back, elsewhere, and miss nothing."""
        self.ending.set()
        self._let_go()

    def _let_go(self) -> None:
        for listeners in self._listeners.values():
            for listener in listeners:
                self._close_if_ending(listener)

    def _close_if_ending(self, listener: Listener) -> None:
        if self._over or (self.ending.is_set() and not listener.waits):
            listener.close()

    async def run(self) -> None:
        """Serve readers until cancelled."""
        await self._subscription.subscribe(self.origin)
        async for message in self._subscription.messages():
            if message is None:
                self.doubt.set()
                continue
            try:
                for frame in unpack(message):
                    for listener in self._listeners.get(frame.job_id, ()):
                        listener.put(frame)
            except ValueError:
                log.exception("skipped a message that is not made of frames")

    @contextlib.asynccontextmanager
    async def listen(self, job_id: str, *, own: bool, waits: bool = False) -> AsyncIterator[Listener]:
        """Give a reader its frames from now on. With `own` they come by themselves, as the job names us its origin.

        Its client `waits` for an answer, and does if it is `own`; else it watches, and comes back if it is let go of.
        """
        listener = Listener(job_id, own=own, limit_bytes=self._buffer_bytes, patience_seconds=self._patience)
        listener.waits = own or waits
        self._close_if_ending(listener)
        self._listeners.setdefault(job_id, set()).add(listener)
        try:
            if not own:
                self._watched[job_id] += 1
                await self._subscription.subscribe(job_channel(job_id))
            yield listener
        finally:
            listeners = self._listeners[job_id]
            listeners.discard(listener)
            if not listeners:
                del self._listeners[job_id]
            if not own:
                await self._unwatch(job_id)

    async def _unwatch(self, job_id: str) -> None:
        self._watched[job_id] -= 1
        if not self._watched[job_id]:
            del self._watched[job_id]
            await self._subscription.unsubscribe(job_channel(job_id))
