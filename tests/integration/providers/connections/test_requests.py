"""What a request has, and how it is sent."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from headrace.errors import UpstreamError
from headrace.providers.client import ProviderClient, Upload
from tests.integration.providers.connections.peers import (
    OK,
    Peer,
    answering,
    ask,
    failure_of,
    length_of,
    pieces_of,
    serving,
)
from tests.waiting import eventually


async def test_what_a_request_has(client: ProviderClient) -> None:
    async with serving(answering) as server:
        await ask(client, server.provider, headers={"X-Own": "1", "User-Agent": "mine"})
        await ask(client, server.provider, b"")
        await ask(client, server.provider, b"", method="GET")
        (head, body), (empty, _), (get, _) = server.peers[0].requests
    host = server.provider.base_url[7:-3].encode()
    assert body == b"{}"
    assert head.split(b"\r\n") == [
        b"POST /v1 HTTP/1.1",
        b"host: " + host,
        b"user-agent: mine",
        b"accept: */*",
        b"accept-encoding: identity",
        b"connection: keep-alive",
        b"content-type: application/json",
        b"x-own: 1",
        b"content-length: 2",
        b"",
        b"",
    ]
    assert b"content-length: 0\r\n" in empty
    assert b"content-type" not in empty
    assert get.startswith(b"GET /v1 HTTP/1.1\r\n")
    assert b"content-length" not in get


@pytest.mark.parametrize(
    "headers", [{"x-key": "sesame\r\nx-other: 1"}, {"x-key": "sesame\n"}, {"x-key": "sesame\0"}, {"x-sesame:": "1"}]
)
async def test_a_header_cannot_hold_another_one(client: ProviderClient, headers: dict[str, str]) -> None:
    async with serving(answering) as server:
        assert "sesame" not in await failure_of(client, server.provider, headers=headers)
        assert not server.peers


@pytest.mark.parametrize("path", ["/a b", "/a\r\nx: 1", "/é?q=\n"])
async def test_a_url_cannot_hold_a_header(client: ProviderClient, path: str) -> None:
    async with serving(answering) as server:
        provider = server.provider
        url = provider.base_url + path
        with contextlib.suppress(UpstreamError):
            async with client.call(provider, url=url, headers={}, body=b"{}") as answer:
                await answer.read()
        for peer in server.peers:
            ((head, _),) = peer.requests
            assert head.split(b"\r\n")[0].count(b" ") == 2
            assert b"\nx:" not in head


async def test_large_bodies_arrive_whole(client: ProviderClient) -> None:
    body = bytes(range(256)) * 20_000
    async with serving(answering) as server:
        await ask(client, server.provider, body)
        await ask(client, server.provider, Upload(len(body), pieces_of(body)))
        assert [sent == body for _, sent in server.peers[0].requests] == [True, True]


async def test_an_upload_waits_for_the_provider_to_take_it(client: ProviderClient) -> None:
    read, total, may_read = 0, 64, asyncio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal read
        for _ in range(total):
            read += 1
            yield bytes(1024 * 1024)

    async def handle(peer: Peer) -> None:
        head = await peer.head()
        await may_read.wait()
        await peer.reader.readexactly(length_of(head))
        await peer.send(OK)

    async with serving(handle) as server:
        upload = Upload(total * 1024 * 1024, pieces())
        call = asyncio.create_task(ask(client, server.provider, upload))
        await eventually(lambda: server.peers, "a connection")
        before = -1
        while before != read:  # until a while passes in which nothing is sent
            before = read
            await asyncio.sleep(0.05)
        assert read < total
        may_read.set()
        assert await call == b"{}"
        assert read == total


async def test_an_upload_ends_with_an_early_refusal(client: ProviderClient) -> None:
    sent = 0

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1
            yield bytes(100_000)
            await asyncio.sleep(0)

    async def handle(peer: Peer) -> None:
        await peer.head()
        await peer.send(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\n{}")
        await peer.gone()

    async with serving(handle) as server:
        for _ in range(3):
            with pytest.raises(UpstreamError) as raised:
                await ask(client, server.provider, Upload(10**12, pieces()))
            assert raised.value.status == 413
        assert len(server.peers) == 3


async def test_an_upload_ends_with_its_connection(client: ProviderClient) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        while True:
            yield bytes(100_000)

    async def handle(peer: Peer) -> None:
        await peer.head()
        peer.reset()

    async with serving(handle) as server:
        await failure_of(client, server.provider, Upload(10**12, pieces()))


async def test_a_request_that_has_been_sent_is_not_kept(client: ProviderClient) -> None:
    class Body(bytes):
        def __del__(self) -> None:
            freed.append(len(self))

    freed: list[int] = []
    async with serving(answering) as server:
        url = f"{server.provider.base_url}/answer"
        call = client.call(server.provider, url=url, headers={}, body=Body(b'{"a":1}'))
        async with call as answer:
            assert freed == [7]
            assert await answer.read() == b"{}"
