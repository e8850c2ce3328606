"""A Celery pool that runs tasks on an asyncio event loop in a thread: hundreds of calls in flight in one process.

Celery's consumer stays in the main thread; a task's coroutine runs on the loop; what Celery is to be told of it goes
back through a pipe that its hub watches, so that Celery's state is touched by Celery's thread alone, and at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from typing import Any

import uvloop
from celery.concurrency.base import BasePool
from kombu.serialization import loads

log = logging.getLogger(__name__)


class AsyncioPool(BasePool):  # type: ignore[misc]  # Celery has no types
    """Runs tasks that are coroutine functions. A subclass's `lifespan` surrounds them all."""

    signal_safe = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take what Celery gives every pool."""
        super().__init__(*args, **kwargs)
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._run_loop, name="asyncio", daemon=True)
        self._ready: Future[None] = Future()
        self._stopping = asyncio.Event()
        self._done: deque[Callable[[], None]] = deque()
        self._pipe = os.pipe()
        os.set_blocking(self._pipe[0], False)
        os.set_blocking(self._pipe[1], False)

    @contextlib.asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Open what tasks need, on the loop, before the first; close it after the last."""
        yield

    def on_start(self) -> None:
        """Start the loop; raises what its start-up raised."""
        self._thread.start()
        self._ready.result()

    def register_with_event_loop(self, hub: Any) -> None:
        """Let Celery's hub wake up when a task is done."""
        hub.add_reader(self._pipe[0], self._report)

    def on_apply(
        self, _target: object, args: Any = None, _kwargs: object = None, callback: Any = None, **_: object
    ) -> None:
        """Run a task's coroutine; Celery acknowledges its message when that is done."""
        name, _task_id, _request, body, content_type, encoding = args
        task = self.app.tasks[name]
        arguments, options, _embed = loads(body, content_type, encoding, accept={content_type})  # type: ignore[no-untyped-call]

        async def run() -> None:
            started = time.monotonic()
            try:
                await task.run(*arguments, **options)
            except Exception:
                log.exception("a task broke")
            self._done.append(lambda: callback((0, None, time.monotonic() - started)))
            # A full pipe already wakes the hub.
            with contextlib.suppress(BlockingIOError):
                os.write(self._pipe[1], b"\0")

        asyncio.run_coroutine_threadsafe(run(), self._loop)

    def on_stop(self) -> None:
        """Leave the lifespan, and with it let running work end, then stop the loop."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join()

    on_terminate = on_stop

    def _report(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._pipe[0], 65536)
        while self._done:
            self._done.popleft()()

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
