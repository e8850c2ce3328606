"""A Celery pool that runs tasks on an asyncio event loop in a thread: hundreds of calls in flight in one process.

Celery's consumer stays in the main thread and hands each task's coroutine to the loop. Nothing is acknowledged, so the
consumer does not wait for the task. When the loop has as many tasks as the pool's limit, the consumer waits, and the
messages in Redis stay there for another worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import Future
from typing import Any

import uvloop
from celery.concurrency.base import BasePool
from celery.worker import state
from kombu.serialization import loads

log = logging.getLogger(__name__)

# Seconds between two looks, while the pool is full, at whether the worker is to stop.
_PATIENCE_SECONDS = 0.5
# Seconds between two looks, while the worker takes no message, at whether it takes one.
_LOOK_SECONDS = 0.1


class AsyncioPool(BasePool):  # type: ignore[misc]  # Celery has no types
    """Runs tasks that are coroutine functions, each with the name of its message's `queue` as a keyword argument.

    A subclass's `lifespan` surrounds them all.
    """

    signal_safe = False
    patient: frozenset[str] = frozenset()
    """Tasks that may be many and wait for long: they take no room, so that no other task waits behind them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take the arguments that Celery gives every pool."""
        super().__init__(*args, **kwargs)
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._run_loop, name="asyncio", daemon=True)
        self._ready: Future[None] = Future()
        self._stopping = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._room = threading.Semaphore(self.limit)

    @contextlib.asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Open what tasks need before the first one starts, and close it after the last, on the loop."""
        yield

    def takes(self) -> bool:
        """Tell whether the worker takes messages now. A thread beside the loop asks."""
        return True

    def hand_back(self, queue: str, args: list[Any]) -> None:
        """Give back the arguments of a message that came while the worker takes none, on the loop."""
        raise NotImplementedError

    def on_start(self) -> None:
        """Start the loop; raise what its start-up raised."""
        self._thread.start()
        self._ready.result()

    def on_apply(
        self, _target: object, args: Any = None, _kwargs: object = None, callback: Any = None, **_: object
    ) -> None:
        """Start a task's coroutine; wait first while there are too many, unless this worker is to stop.

        Redis no longer has the message, so its task hands back the jobs that it cannot run. A message that comes while
        the worker takes none is handed back at once, and the consumer waits here, so that the others stay in Redis.
        """
        name, _task_id, request, body, content_type, encoding = args
        arguments, options, _embed = loads(  # type: ignore[no-untyped-call]
            body, content_type, encoding, accept={content_type}
        )
        queue = request["delivery_info"]["routing_key"]
        if not self.takes():
            self._loop.call_soon_threadsafe(self.hand_back, queue, arguments)
            while not self.takes() and not _is_stopping():
                time.sleep(_LOOK_SECONDS)
        else:
            while name not in self.patient and not self._room.acquire(timeout=_PATIENCE_SECONDS):
                if _is_stopping():
                    break
            run = self.app.tasks[name].run
            self._loop.call_soon_threadsafe(self._start, name, run, arguments, {**options, "queue": queue})
        callback((0, None, 0.0))  # Celery forgets the task: its outcome is in Postgres

    def on_stop(self) -> None:
        """Leave the lifespan, which lets running tasks end, then stop the loop."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join()

    on_terminate = on_stop

    def _start(
        self, name: str, run: Callable[..., Coroutine[Any, Any, None]], args: list[Any], kwargs: dict[str, Any]
    ) -> None:
        task = self._loop.create_task(run(*args, **kwargs), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.get_name() not in self.patient:
            self._room.release()
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


def _is_stopping() -> bool:
    return state.should_stop is not None or state.should_terminate is not None
