"""A Celery pool that runs tasks on an asyncio event loop in a thread: hundreds of calls in flight in one process.

Messages come on the loop too (`worker/consumer.py`), so no thread hands them to another. Nothing is acknowledged. When
the loop has as many tasks as the pool's limit, it reads no further message, and those in Redis stay there for another
worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

import uvloop
from celery.concurrency.base import BasePool

from headrace.queue import read_message

log = logging.getLogger(__name__)

Result = TypeVar("Result")

# Seconds between two looks: while the worker takes no message, at whether it takes one; while it ends, for signals.
_LOOK_SECONDS = 0.1


class AsyncioPool(BasePool):  # type: ignore[misc]  # Celery has no types
    """Runs tasks that are coroutine functions, each with the name of its message's `queue` as a keyword argument.

    A subclass's `lifespan` surrounds them all.
    """

    signal_safe = False
    unbounded_tasks: frozenset[str] = frozenset()
    """Tasks that may be many and wait for long: they take no room, so that no other task waits behind them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take the arguments that Celery gives every pool."""
        super().__init__(*args, **kwargs)
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._run_loop, name="asyncio", daemon=True)
        self._ready: Future[None] = Future()
        self._stopping = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._room = self.limit
        self._moved = asyncio.Event()
        """Set when a task has ended, or no further message is read."""
        self._reading = False

    @contextlib.asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Open what tasks need before the first one starts, and close it after the last, on the loop."""
        yield

    def takes(self) -> bool:
        """Return whether the worker takes messages now."""
        return True

    def hand_back(self, queue: str, args: list[Any]) -> None:
        """Give back the arguments of a message that came while the worker takes none."""
        raise NotImplementedError

    def on_start(self) -> None:
        """Start the loop; raise what its start-up raised."""
        self._thread.start()
        self._ready.result()

    def on_apply(self, *_: Any, **__: Any) -> None:
        """Refuse a task of Celery's own consumer: `take` starts them."""
        raise NotImplementedError

    def call(self, coroutine: Coroutine[Any, Any, Result]) -> Future[Result]:
        """Run a coroutine on the loop, from another thread."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    async def take(self, queue: str, message: bytes) -> None:
        """Start a message's task; wait first while there are too many, unless reading ends.

        Redis no longer has the message, so its task hands back the jobs that it cannot run. A message that comes while
        the worker takes none is handed back at once, and reading goes on when it takes some, so that the others stay in
        Redis.
        """
        running: Coroutine[Any, Any, None] | None = None
        try:
            name, args = read_message(message)
            if self.takes():
                running = self.app.tasks[name].run(*args, queue=queue)
            else:
                self.hand_back(queue, args)
        except (ValueError, LookupError, TypeError):
            log.warning("skipped a message in %s that Headrace did not write", queue)
            return
        if running is None:
            while self._reading and not self.takes():  # noqa: ASYNC110  (either may end it)
                await asyncio.sleep(_LOOK_SECONDS)
            return
        if name not in self.unbounded_tasks:
            while self._reading and self._room <= 0:
                self._moved.clear()
                await self._moved.wait()
            self._room -= 1
        task = self._loop.create_task(running, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def set_reading(self, reading: bool) -> None:
        """Note whether messages are read: if not, `take` waits no longer."""
        self._reading = reading
        self._moved.set()

    def on_stop(self) -> None:
        """Leave the lifespan, which lets running tasks end, then stop the loop."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopping.set)
        # A signal that comes as the main thread begins to wait, or to another thread, does not end a wait.
        while self._thread.is_alive():
            self._thread.join(_LOOK_SECONDS)

    on_terminate = on_stop

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.get_name() not in self.unbounded_tasks:
            self._room += 1
            self._moved.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a task failed", exc_info=error)

    def _run_loop(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._live())

    async def _live(self) -> None:
        try:
            async with self.lifespan():
                self._ready.set_result(None)
                await self._stopping.wait()
        except BaseException as error:
            if self._ready.done():
                raise
            self._ready.set_exception(error)
