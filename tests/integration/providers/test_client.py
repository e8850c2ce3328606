"""Errors of failed connections to a provider: an operator understands them, and they hold no secret."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import pytest

from headrace.catalogue.models import Provider
from headrace.errors import UpstreamError, UpstreamTimeoutError
from headrace.providers.client import ProviderClient


@pytest.fixture
async def client() -> AsyncIterator[ProviderClient]:
    client = ProviderClient(connections=2)
    yield client
    await client.close()


async def failure_of(client: ProviderClient, url: str, **options: float) -> UpstreamError:
    provider = Provider(kind="openai", base_url=url, **options)
    with pytest.raises(UpstreamError) as raised:
        async with client.call(provider, url=url, headers={}, body=b"{}") as answer:
            await answer.read()
    return raised.value


async def serve(reply: bytes, *, silent: bool = False, heads: list[bytes] | None = None) -> asyncio.Server:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if heads is not None:
            heads.append(head)
        writer.write(reply)
        with contextlib.suppress(ConnectionError):
            await writer.drain()
            if silent:
                await reader.read()
        writer.close()

    return await asyncio.start_server(answer, "127.0.0.1", 0)


async def test_a_refused_connection_is_told_with_its_address_and_no_secret(client: ProviderClient) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    error = await failure_of(client, f"http://user:hunter2@127.0.0.1:{port}/v1/x?key=hunter2#hunter2")
    assert error.message == "The connection to the model's provider failed."
    assert error.detail is not None
    assert error.detail.startswith(f"http://127.0.0.1:{port}: ")
    assert "hunter2" not in error.detail
    assert error.detail in error.summary()


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer key"}])
async def test_the_user_of_a_url_is_sent_in_a_header(client: ProviderClient, headers: dict[str, str]) -> None:
    heads: list[bytes] = []
    async with await serve(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", heads=heads) as server:
        host, port = server.sockets[0].getsockname()
        url = f"http://me:p%40ss@{host}:{port}/v1"
        async with client.call(Provider(kind="openai", base_url=url), url=url, headers=headers) as answer:
            assert await answer.read() == b"{}"
    assert f"authorization: {headers.get('authorization', 'Basic bWU6cEBzcw==')}".encode().lower() in heads[0].lower()
    assert f"host: {host}:{port}".encode() in heads[0].lower()


async def test_a_name_without_an_address_is_told(client: ProviderClient) -> None:
    error = await failure_of(client, "http://provider.invalid:81/v1?key=hunter2")
    assert error.detail is not None
    assert error.detail.startswith("http://provider.invalid:81: ")
    assert "hunter2" not in error.detail


@pytest.mark.parametrize("reply", [b"", b"SSH-2.0-x\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"])
async def test_a_connection_that_breaks_is_told(client: ProviderClient, reply: bytes) -> None:
    async with await serve(reply) as server:
        host, port = server.sockets[0].getsockname()
        error = await failure_of(client, f"http://{host}:{port}/v1?key=hunter2")
    assert error.detail is not None
    assert error.detail.startswith(f"http://{host}:{port}: ")
    assert len(error.detail) > len(f"http://{host}:{port}: ")
    assert "hunter2" not in error.detail


@pytest.mark.parametrize("reply", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"])
async def test_a_silence_is_told_with_its_length(client: ProviderClient, reply: bytes) -> None:
    async with await serve(reply, silent=True) as server:
        host, port = server.sockets[0].getsockname()
        error = await failure_of(client, f"http://{host}:{port}/v1", connect_timeout=0.2, read_timeout=0.2)
    assert isinstance(error, UpstreamTimeoutError)
    assert error.detail is not None
    assert error.detail.startswith(f"http://{host}:{port}: nothing came for 0.")
