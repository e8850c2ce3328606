"""uvicorn's server, made quiet: its own loop wakes ten times a second, for the date and to see if it is to exit."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from email.utils import formatdate
from types import FrameType
from typing import Any, ClassVar

import uvicorn
from uvicorn.server import ServerState

from headrace.runtime.chores import going_on, next_tick
from headrace.runtime.flag import Flag

log = logging.getLogger(__name__)

TICK_SECONDS = 1.0
"""Seconds between two calls of `tick`."""

_Headers = list[tuple[bytes, bytes]]


class _Connections(set[Any]):
    """The connections of a server."""

    def __init__(self) -> None:
        self.any = Flag()
        """Set while there are connections, and until the next tick."""

    def add(self, connection: Any) -> None:
        """Add a connection, and have the server tick."""
        super().add(connection)
        self.any.set()


class _State(ServerState):
    """The state of a server that makes the date when an answer needs it."""

    def __init__(self) -> None:
        super().__init__()
        self.connections: _Connections = _Connections()
        self._second = 0
        self._dated: _Headers = []

    @property
    def default_headers(self) -> _Headers:
        """The headers of every answer: no other is configured."""
        second = int(time.time())
        if second != self._second:
            self._dated = [(b"date", formatdate(second, usegmt=True).encode())]
            self._second = second
        return self._dated

    @default_headers.setter
    def default_headers(self, headers: _Headers) -> None:
        """Take what uvicorn sets at first: no header."""


class QuietServer(uvicorn.Server):
    """A server that ticks while it has connections. Call `exit`, as setting `should_exit` does not wake the server."""

    ready: ClassVar[str | None] = None
    """The line that the server logs when it serves, with `%s` for its URL; None logs none."""

    def __init__(self, config: uvicorn.Config) -> None:
        """Serve as the configuration says."""
        super().__init__(config)
        self.server_state: _State = _State()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._told = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and log the addresses that the server listens on."""
        await super().startup(sockets)
        if self.started and self.ready is not None:
            for listener in sockets or ():
                host, port, *_ = listener.getsockname()
                log.info(self.ready, f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")

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
        self._loop = asyncio.get_running_loop()
        async with going_on(self._keep_ticking):
            if not self.should_exit:
                await self._told.wait()

    def tick(self) -> None:
        """Do what is due once a second while there are connections; nothing here."""

    async def _keep_ticking(self) -> None:
        connections = self.server_state.connections
        while True:
            await connections.any.wait()
            await next_tick(TICK_SECONDS)
            if not connections:
                connections.any.clear()
            self.tick()
