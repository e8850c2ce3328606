"""Requests that stay open, thousands at a time: raw HTTP, so that this end costs next to nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Sequence
from typing import Any, cast

from bench.systems import System

# Connections that are opened at the same time.
_AT_ONCE = 100
# Clients for each address on loopback: an address has about 28,000 ports, of which closed connections keep some.
_CLIENTS_PER_ADDRESS = 5000


def request(system: System, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> bytes:
    """Return a request to a path below `/api/v1` as it travels."""
    content = b"" if body is None else json.dumps(body).encode()
    lines = {
        "host": f"127.0.0.1:{system.port}",
        "authorization": f"Bearer {system.key}",
        "content-type": "application/json",
        "content-length": str(len(content)),
        **(headers or {}),
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"{method} /api/v1{path} HTTP/1.1\r\n{head}\r\n".encode() + content


class Held(asyncio.Protocol):
    """One request that stays open, of which nothing is kept but whether its answer has begun."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.begun = asyncio.Event()
        """Set when the first piece of the body has arrived, or the connection was lost."""
        self.ok = self.lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport. The class of uvloop's transports does not derive from asyncio's, but has its methods."""
        self.transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Note that the answer has ended."""
        self.lost = True
        self.begun.set()

    def data_received(self, data: bytes) -> None:
        """Note that the answer has begun: an event ends with an empty line, and no line of it with CR LF."""
        self.ok = self.ok or data.startswith(b"HTTP/1.1 200")
        if self.ok and b"\n\n" in data:
            self.begun.set()

    def close(self) -> None:
        """Leave."""
        if self.transport is not None:
            self.transport.close()


async def connect(port: int, number: int, held: Held) -> None:
    """Connect client `number` to the API, from an address of its own group."""
    address = f"127.0.0.{1 + number // _CLIENTS_PER_ADDRESS % 200}"
    await asyncio.get_running_loop().create_connection(
        lambda: held, "127.0.0.1", port, local_addr=(address, 0) if address != "127.0.0.1" else None
    )


async def hold(
    port: int, requests: Sequence[bytes], *, seconds: float, begun: bool = True, kind: Callable[[], Held] = Held
) -> list[Held]:
    """Send the requests, each on its own connection, and return them when the answers have `begun`, or are awaited."""
    gate, held = asyncio.Semaphore(_AT_ONCE), [kind() for _ in requests]

    async def open_one(number: int) -> None:
        async with gate:
            await connect(port, number, held[number])
            transport = held[number].transport
            assert transport is not None
            transport.write(requests[number])
            if begun:
                await held[number].begun.wait()

    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await asyncio.gather(*map(open_one, range(len(requests))))
    return held
