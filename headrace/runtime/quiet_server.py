"""uvicorn's server, made quiet: its own loop wakes ten times a second to see whether it is told to exit."""

from __future__ import annotations

import asyncio
import contextlib
from types import FrameType

import uvicorn

from headrace.runtime.chores import until_tick

TICK_SECONDS = 1.0
"""Seconds between two calls of `on_tick`."""
# uvicorn counts tenths of a second, and sets the `date` of its answers at each tenth.
_TENTHS = round(TICK_SECONDS * 10)


class QuietServer(uvicorn.Server):
    """A server that ticks once a second. Call `exit`, as setting `should_exit` alone waits for the next tick."""

    def __init__(self, config: uvicorn.Config) -> None:
        """Serve as the configuration says."""
        super().__init__(config)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._told = asyncio.Event()

    def exit(self) -> None:
        """Have the server exit, from its own thread or any other."""
        self.should_exit = True
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._told.set)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Exit after a signal."""
        super().handle_exit(sig, frame)
        self.exit()

    async def main_loop(self) -> None:
        """Serve until told to exit."""
        self._loop, tenths = asyncio.get_running_loop(), 0
        while not await self.on_tick(tenths):
            tenths += _TENTHS
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(until_tick(TICK_SECONDS)):
                    await self._told.wait()
