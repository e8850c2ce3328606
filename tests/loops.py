"""The kinds of event loop that tests run on, and a loop that stands still."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Mapping

import uvloop


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run each test on both loops. A directory's `conftest.py` imports this hook for its tests."""
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


class _Standing(asyncio.Protocol):
    """Keeps the loop busy for some seconds where it reads a byte."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.over = asyncio.get_running_loop().create_future()

    def data_received(self, _data: bytes) -> None:
        """Stand still."""
        time.sleep(self._seconds)
        self.over.set_result(None)


async def stand_still(seconds: float) -> None:
    """Have uvloop run timers that are `seconds` late before it reads, as it does when its process was frozen."""
    loop, (near, far) = asyncio.get_running_loop(), socket.socketpair()
    with far:
        transport, standing = await loop.create_connection(lambda: _Standing(seconds), sock=near)
        far.send(b"x")
        await standing.over
        transport.close()
