"""Celery's consumer, whose messages come on the pool's event loop.

Celery still connects, reconnects and shuts down in the main thread. Only its reading is replaced: its own loop would
wake for each message, read it with kombu, and hand it to the thread of the event loop, which costs each job a tenth of
its CPU, and idling two wake-ups a second. Here the main thread sleeps until a signal comes or the connection breaks.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import Any

from celery.worker import consumer, state
from redis.exceptions import ConnectionError as RedisConnectionError

from headrace.runtime.chores import wait_for
from headrace.stores.namespace import NamespacedRedis
from headrace.stores.redis import REDIS_UNAVAILABLE, connect_redis
from headrace.stores.redis_pipe import RedisPipe
from worker.pool import AsyncioPool

# Seconds for which Redis holds a question for messages, and seconds more until the connection counts as dead.
_BLOCK_SECONDS = 10
_GRACE_SECONDS = 5
# Seconds that the end of reading may take, and seconds between two demands that Redis end the question.
_END_SECONDS = 5
_AGAIN_SECONDS = 0.1


class Consumer(consumer.Consumer):  # type: ignore[misc]  # Celery has no types
    """A consumer of the queues of an `AsyncioPool`'s worker."""

    pool: AsyncioPool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take the arguments that Celery gives every consumer."""
        super().__init__(*args, **kwargs)
        self.loop = self._consume

    def loop_args(self) -> tuple[()]:
        """Return no argument for `loop`."""
        return ()

    def _consume(self) -> None:
        """Have messages read until the worker is told to stop; raise the error of a connection that breaks."""
        conf = self.app.conf
        queues = [queue.name for queue in self.task_consumer.queues]
        redis = connect_redis(conf["headrace_redis_url"], conf["headrace_namespace"])
        reader = _Reader(self.pool, redis, queues)
        try:
            self.pool.call(reader.open()).result()
            reading = self.pool.call(reader.run())
            self.on_ready()
            _sleep_until_done(reading)
            reading.result()
        finally:
            self.pool.call(reader.stop()).result()


def _sleep_until_done(reading: Future[None]) -> None:
    """Sleep until reading ends, or raise Celery's `WorkerShutdown` once a signal has told the worker to stop."""
    receiver, waker = socket.socketpair()
    with receiver, waker:
        waker.setblocking(False)
        before = signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
        try:
            reading.add_done_callback(lambda _: _wake(waker))
            while not reading.done():
                state.maybe_shutdown()
                receiver.recv(64)
        finally:
            signal.set_wakeup_fd(before)


def _wake(waker: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the main thread no longer sleeps
        waker.send(b".")


class _Reader:
    """Takes messages off the queues, the first queue's first, and gives them to the pool, on its loop."""

    def __init__(self, pool: AsyncioPool, redis: NamespacedRedis, queues: Sequence[str]) -> None:
        self._pool = pool
        self._redis = redis
        self._queues = {f"{redis.prefix}{queue}".encode(): queue for queue in queues}
        self._pipe: RedisPipe | None = None
        self._client = 0
        self._stopping = False
        self._ended = asyncio.Event()
        self._ended.set()

    async def open(self) -> None:
        """Connect.

        Raises:
            redis.exceptions.ConnectionError: Redis is unavailable.
        """
        patience = _BLOCK_SECONDS + _GRACE_SECONDS
        with _translated():
            self._pipe = await RedisPipe.open(self._redis.connection_pool, patience_seconds=patience)
            self._client = await self._pipe.ask("CLIENT ID")

    async def run(self) -> None:
        """Read until stopped, once connected.

        Raises:
            redis.exceptions.ConnectionError: Redis is unavailable.
        """
        assert self._pipe is not None
        self._ended.clear()
        self._pool.set_reading(True)
        try:
            while not self._stopping:
                with _translated():
                    found = await self._pipe.ask("BRPOP", *self._queues, _BLOCK_SECONDS)
                if found is not None:
                    key, message = found
                    await self._pool.take(self._queues[key], message)
        finally:
            self._ended.set()

    async def stop(self) -> None:
        """End reading, and close. Redis first ends the question that it holds, so that its answer loses no message."""
        self._stopping = True
        self._pool.set_reading(False)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_END_SECONDS):
                while not self._ended.is_set():
                    with contextlib.suppress(*REDIS_UNAVAILABLE):
                        await self._redis.client_unblock(self._client)
                    await wait_for(self._ended, _AGAIN_SECONDS)
        if self._pipe is not None:
            self._pipe.close()
        await self._redis.aclose()


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Raise what means that Redis is unavailable as an error after which Celery connects again."""
    try:
        yield
    except REDIS_UNAVAILABLE as error:
        raise RedisConnectionError(f"lost the queues: {error}") from error
