"""The pool's thread beside the main thread, in this process."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import threading
from collections.abc import AsyncIterator

from tests.waiting import eventually
from worker.pool import AsyncioPool

_LONGEST_SECONDS = 20.0


class Pool(AsyncioPool):
    """Gets a signal in its own thread while the main thread waits for its end, and ends once that has handled it."""

    handled: asyncio.Event

    @contextlib.asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        self.handled = asyncio.Event()
        yield
        main = threading.main_thread().ident
        assert main is not None
        await eventually(lambda: sys._current_frames()[main].f_globals is vars(threading), "the main thread to wait")
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.handled.wait(), _LONGEST_SECONDS)

    def handle(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self.handled.set)


def test_a_signal_is_handled_while_the_main_thread_waits_for_the_end() -> None:
    pool = Pool(limit=1)
    before = signal.signal(signal.SIGUSR1, pool.handle)
    try:
        pool.on_start()
        pool.on_stop()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert pool.handled.is_set()
