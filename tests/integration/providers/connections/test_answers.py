"""How answers are read, whole and broken."""

from __future__ import annotations

import asyncio
import contextvars
import gzip
import zlib
from collections.abc import Callable

import pytest

from headrace.catalogue.models import Provider
from headrace.errors import UpstreamError, UpstreamRefusedError, UpstreamTooLargeError
from headrace.providers.client import ProviderClient
from headrace.providers.connection import LARGEST_HEAD
from tests.integration.providers.connections.peers import STREAM, Peer, ask, failure_of, replying, serving

BODY = b'{"answer": "' + b"x" * 20 + b'"}'

LENGTH = b"content-length: %d\r\n" % len(BODY)
ANSWERS = {
    "a length": b"HTTP/1.1 200 OK\r\n" + LENGTH + b"\r\n" + BODY,
    "chunks": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    + b"".join(b"%x;ext=1\r\n%b\r\n" % (len(part), part) for part in (BODY[:5], BODY[5:]))
    + b"0\r\ntrailer: of no use\r\n\r\n",
    "interim answers": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\nHTTP/1.1 200 OK\r\n"
    + LENGTH
    + b"\r\n"
    + BODY,
    "bare line feeds": b"HTTP/1.1 200 OK\n" + LENGTH.replace(b"\r", b"") + b"\n" + BODY,
    "gzip": b"HTTP/1.1 200 OK\r\ncontent-encoding: GZIP\r\ncontent-length: %d\r\n\r\n%b"
    % (len(gzip.compress(BODY)), gzip.compress(BODY)),
}


@pytest.mark.parametrize("name", ANSWERS)
async def test_an_answer_is_the_same_wherever_it_is_cut(client: ProviderClient, name: str) -> None:
    reply = ANSWERS[name]

    async def cut(peer: Peer) -> None:
        for at in range(len(reply)):
            await peer.request()
            await peer.send(reply[:at])
            for _ in range(3):  # the client's turn to read
                await asyncio.sleep(0)
            await peer.send(reply[at:])

    async with serving(cut) as server:
        for _ in range(len(reply)):
            assert await ask(client, server.provider) == BODY
        assert len(server.peers) == 1


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
async def test_an_answer_without_length_ends_with_its_connection(client: ProviderClient, version: bytes) -> None:
    async with serving(replying(b"HTTP/%b 200 OK\r\n\r\n%b" % (version, BODY))) as server:
        assert await ask(client, server.provider) == BODY
        assert await ask(client, server.provider) == BODY
        assert len(server.peers) == 2


BROKEN = {
    "nothing": b"",
    "half a head": b"HTTP/1.1 200 OK\r\ncontent-le",
    "half a body": b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n{}",
    "half a chunk": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\n{}",
    "no last chunk": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n",
    "a chunk's length": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nno\r\n{}\r\n",
    "a length and chunks": b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n"
    b"2\r\n{}\r\n0\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 1\r\n\r\n{}",
    "another protocol": b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n{}",
}


@pytest.mark.parametrize("name", BROKEN)
async def test_a_broken_answer_is_an_error_and_frees_its_connection(client: ProviderClient, name: str) -> None:
    async with serving(replying(BROKEN[name])) as server:
        for _ in range(3):  # more than the client has connections
            assert (await failure_of(client, server.provider)).startswith(server.provider.base_url[:-3])
        assert len(server.peers) == 3


CODED = {
    "half of gzip": (b"gzip", gzip.compress(BODY)[:20]),
    "no gzip": (b"gzip", b"{}"),
    "an unknown encoding": (b"br", b"{}"),
}


@pytest.mark.parametrize("name", CODED)
async def test_an_answer_that_is_compressed_wrongly_is_an_error(client: ProviderClient, name: str) -> None:
    encoding, body = CODED[name]
    reply = b"HTTP/1.1 200 OK\r\ncontent-encoding: %b\r\ncontent-length: %d\r\n\r\n%b" % (encoding, len(body), body)
    async with serving(replying(*[reply] * 3)) as server:
        for _ in range(3):
            assert "compress" in await failure_of(client, server.provider)
        assert len(server.peers) == 1


@pytest.mark.parametrize("encoding", [b"identity", b"Identity", b"none", b""])
async def test_an_answer_that_is_not_compressed_may_say_so(client: ProviderClient, encoding: bytes) -> None:
    reply = b"HTTP/1.1 200 OK\r\ncontent-encoding: %b\r\ncontent-length: 2\r\n\r\n{}" % encoding
    async with serving(replying(reply)) as server:
        provider = server.provider
        async with client.call(provider, url=provider.base_url, headers={}) as answer:
            assert await answer.read() == b"{}"


@pytest.mark.parametrize("text", [b"data: {}", b"event: x", b": nothing", b"\xef\xbb\xbfdata: {}", b"\n data: {}"])
@pytest.mark.parametrize("cut", [1, 2, 4])
async def test_a_stream_is_known_however_its_first_bytes_are_cut(client: ProviderClient, text: bytes, cut: int) -> None:
    first, rest = text[:cut], text[cut:]
    reached = asyncio.Event()

    async def handle(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n" + first)
        await reached.wait()
        await peer.send(rest + b"\n\n")

    async with serving(handle) as server:
        provider = server.provider
        async with client.call(provider, url=provider.base_url, headers={}) as answer:
            reached.set()
            assert await answer.is_stream()
            await answer.read()


async def test_a_reset_in_the_middle_is_an_error(client: ProviderClient) -> None:
    reached = asyncio.Event()

    async def handle(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\n\r\n{")
        await reached.wait()
        peer.reset()

    async with serving(handle) as server:
        provider = server.provider
        async with client.call(provider, url=provider.base_url, headers={}) as answer:
            assert not await answer.is_stream()
            reached.set()
            with pytest.raises(UpstreamError):  # though its body has no length
                await answer.read()


HEADS = {
    "a head": (b"HTTP/1.1 200 OK\r\n", b"x: " + b"y" * 1000 + b"\r\n"),
    "a header": (b"HTTP/1.1 200 OK\r\nx: ", b"y" * 1000),
    "interim answers": (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 40),
    "trailers": (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nx: ", b"y" * 1000),
    "an extension": (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2;", b"y" * 1000),
}


@pytest.mark.parametrize("name", HEADS)
async def test_a_head_without_end_is_given_up(client: ProviderClient, name: str) -> None:
    start, more = HEADS[name]

    async def handle(peer: Peer) -> None:
        await peer.request()
        await peer.send(start)
        while True:
            await peer.send(more)

    async with serving(handle) as server:
        assert str(LARGEST_HEAD) in await failure_of(client, server.provider)


async def test_compressed_zeros_are_given_up(client: ProviderClient) -> None:
    packed = zlib.compress(bytes(70 * 1024 * 1024))
    head = b"HTTP/1.1 200 OK\r\ncontent-encoding: deflate\r\ncontent-length: %d\r\n\r\n" % len(packed)
    async with serving(replying(head + packed)) as server:
        with pytest.raises(UpstreamTooLargeError):
            await ask(client, server.provider)


async def test_a_refusal_is_read_whatever_follows_it(client: ProviderClient) -> None:
    body = b'{"error": {"message": "no such thing"}}'
    head = b"HTTP/1.1 400 Bad\r\ncontent-length: %d\r\n\r\n" % len(body)
    async with serving(replying(head + body, head + body[:5])) as server:
        with pytest.raises(UpstreamRefusedError, match="no such thing"):
            await ask(client, server.provider)
        with pytest.raises(UpstreamRefusedError):
            await ask(client, server.provider)
        assert len(server.peers) == 1


Variable = contextvars.ContextVar("Variable", default="")


async def streaming(peer: Peer) -> None:
    """Stream events without end."""
    await peer.request()
    await peer.send(STREAM)
    while True:
        await peer.send(b"8\r\ndata: x\n\r\n")
        await asyncio.sleep(0)


async def pass_on(client: ProviderClient, provider: Provider, take: Callable[[bytes], object]) -> None:
    """Pass a stream on to `take`."""
    async with client.call(provider, url=provider.base_url, headers={}) as answer:
        assert await answer.is_stream()
        await answer.pass_on(take)


async def test_pieces_are_taken_in_the_context_of_their_call(client: ProviderClient) -> None:
    async def read(name: str) -> set[str]:
        Variable.set(name)
        seen: list[str] = []

        def take(_: bytes) -> bool:
            seen.append(Variable.get())
            return len(seen) == 10

        await pass_on(client, server.provider, take)
        return set(seen)

    async with serving(streaming) as server:
        assert list(await asyncio.gather(read("a"), read("b"))) == [{"a"}, {"b"}]
        assert await read("c") == {"c"}


@pytest.mark.parametrize("at", [1, 2, 5])
async def test_what_a_taker_raises_ends_the_call(client: ProviderClient, at: int) -> None:
    async with serving(streaming) as server:
        for _ in range(3):
            seen = 0

            def take(_: bytes) -> None:
                nonlocal seen
                seen += 1
                if seen == at:
                    raise LookupError("not here")

            with pytest.raises(LookupError, match="not here"):
                await pass_on(client, server.provider, take)
            assert seen == at
        assert len(server.peers) == 3


async def test_a_compressed_stream_need_not_end_behind_its_last_event(client: ProviderClient) -> None:
    packer = zlib.compressobj(wbits=31)
    body = packer.compress(b"data: x\ndata: y\n") + packer.flush(zlib.Z_SYNC_FLUSH)
    reply = STREAM.replace(b"\r\n\r\n", b"\r\ncontent-encoding: gzip\r\n\r\n") + b"%x\r\n" % len(body)
    end = b"\r\n0\r\n\r\n"

    async def handle(peer: Peer) -> None:
        await peer.request()
        await peer.send(reply + body[:20])
        await asyncio.sleep(0)
        await peer.send(body[20:] + end)

    seen: list[bytes] = []

    def take(piece: bytes) -> bool:
        seen.append(piece)
        return b"".join(seen).endswith(b"y\n")

    async with serving(handle) as server:
        await pass_on(client, server.provider, take)
    assert b"".join(seen) == b"data: x\ndata: y\n"


async def test_what_came_before_a_loss_is_passed_on(client: ProviderClient) -> None:
    async with serving(replying(STREAM + b"8\r\ndata: x\n\r\n")) as server:
        seen: list[bytes] = []
        with pytest.raises(UpstreamError):
            await pass_on(client, server.provider, seen.append)
        assert b"".join(seen) == b"data: x\n"


async def test_a_slow_reader_slows_the_provider(client: ProviderClient) -> None:
    written, total = 0, 64

    async def handle(peer: Peer) -> None:
        nonlocal written
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (total * 1024 * 1024))
        for _ in range(total):
            await peer.send(bytes(1024 * 1024))
            written += 1

    async with (
        serving(handle) as server,
        client.call(server.provider, url=server.provider.base_url, headers={}, method="GET") as answer,
    ):
        before = -1
        while before != written:  # until a while passes in which nothing is written
            before = written
            await asyncio.sleep(0.05)
        assert written < total
        size = 0
        async for piece in answer.unhurried():
            size += len(piece)
        assert size == total * 1024 * 1024
