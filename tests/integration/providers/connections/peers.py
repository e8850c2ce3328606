"""Servers on loopback that answer with bytes as a test wants them, and calls to them."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from socket import SO_LINGER, SOL_SOCKET
from typing import Any, Self

import pytest

from headrace.catalogue.models import Provider
from headrace.errors import UpstreamError
from headrace.providers.client import ProviderClient, Upload
from tests.waiting import PATIENCE

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
STREAM = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"

Handler = Callable[["Peer"], Awaitable[None]]


class Peer:
    """The server's side of one connection."""

    def __init__(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.number = number
        self.reader = reader
        self.writer = writer
        self.requests: list[tuple[bytes, bytes]] = []

    async def request(self) -> bytes:
        """Read a request, and return its body."""
        head = await self.head()
        body = await self.reader.readexactly(length_of(head))
        self.requests.append((head, body))
        return body

    async def head(self) -> bytes:
        """Read the head of a request."""
        return await self.reader.readuntil(b"\r\n\r\n")

    async def send(self, data: bytes) -> None:
        """Send bytes."""
        self.writer.write(data)
        await self.writer.drain()

    async def gone(self) -> None:
        """Wait until the client has closed the connection."""
        with contextlib.suppress(ConnectionError):
            while await self.reader.read(65536):
                pass

    def reset(self) -> None:
        """Reset the connection."""
        self.writer.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


def length_of(head: bytes) -> int:
    """Return the length of the body behind a head."""
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


class Server:
    """A server whose connections all run one handler."""

    def __init__(self, handler: Handler, tls: ssl.SSLContext | None) -> None:
        self.peers: list[Peer] = []
        self._handler = handler
        self._tls = tls
        self._tasks: set[asyncio.Task[None]] = set()
        self.provider: Provider

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        port = self._server.sockets[0].getsockname()[1]
        base = f"https://localhost:{port}/v1" if self._tls else f"http://127.0.0.1:{port}/v1"
        self.provider = Provider(kind="openai", base_url=base, connect_timeout=PATIENCE, read_timeout=PATIENCE)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        peer = Peer(len(self.peers), reader, writer)
        self.peers.append(peer)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await self._handler(peer)
        finally:
            writer.close()
            self._tasks.discard(task)


def serving(handler: Handler, tls: ssl.SSLContext | None = None) -> Server:
    """Return a server to enter."""
    return Server(handler, tls)


def replying(*replies: bytes) -> Handler:
    """Answer the requests of a connection with these replies, and close it behind the last one."""

    async def handle(peer: Peer) -> None:
        for reply in replies:
            await peer.request()
            await peer.send(reply)

    return handle


async def answering(peer: Peer) -> None:
    """Answer every request."""
    while True:
        await peer.request()
        await peer.send(OK)


async def ask(
    client: ProviderClient,
    provider: Provider,
    body: bytes | Upload = b"{}",
    *,
    headers: Mapping[str, str] | None = None,
    **options: Any,
) -> bytes:
    """Return what the provider answers."""
    async with client.call(provider, url=provider.base_url, headers=headers or {}, body=body, **options) as answer:
        await answer.is_stream()
        return await answer.read()


async def failure_of(client: ProviderClient, provider: Provider, body: bytes | Upload = b"{}", **options: Any) -> str:
    """Return the detail of the error that a call ends with."""
    with pytest.raises(UpstreamError) as raised:
        await ask(client, provider, body, **options)
    return raised.value.detail or ""


async def pieces_of(body: bytes, size: int = 100_000) -> AsyncIterator[bytes]:
    """Yield a body in pieces."""
    for at in range(0, len(body), size):
        yield body[at : at + size]
