"""Which connection the next call gets, and what a cancelled call leaves behind."""

from __future__ import annotations

import asyncio

import pytest

from headrace.catalogue.models import Provider
from headrace.errors import UpstreamTimeoutError
from headrace.providers.client import ProviderClient, Upload
from tests.integration.providers.connections.peers import (
    OK,
    STREAM,
    Peer,
    answering,
    ask,
    failure_of,
    pieces_of,
    replying,
    serving,
)
from tests.resolver import resolving
from tests.waiting import PATIENCE, eventually


async def test_a_connection_is_used_again(client: ProviderClient) -> None:
    async with serving(answering) as server:
        for _ in range(5):
            await ask(client, server.provider)
        assert [len(peer.requests) for peer in server.peers] == [5]


ENDINGS = {
    "it says so": b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}",
    "HTTP/1.0": b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\n{}",
    "another answer follows": OK + OK,
    "bytes follow": OK + b"?",
    "bytes follow a close": b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}?",
}


@pytest.mark.parametrize("name", ENDINGS)
async def test_a_connection_that_cannot_be_used_again_is_closed(client: ProviderClient, name: str) -> None:
    async def handle(peer: Peer) -> None:
        await peer.request()
        await peer.send(ENDINGS[name])
        await peer.gone()

    async with serving(handle) as server:
        for _ in range(3):
            assert await ask(client, server.provider) == b"{}"
        assert [len(peer.requests) for peer in server.peers] == [1, 1, 1]


async def read_two_events(client: ProviderClient, provider: Provider) -> None:
    """Read a stream until its second event."""
    seen = b""

    def take(piece: bytes) -> bool:
        nonlocal seen
        seen += piece
        return seen.count(b"data") == 2

    async with client.call(provider, url=provider.base_url, headers={}) as answer:
        assert await answer.is_stream()
        await answer.pass_on(take)


EVENT = b"8\r\ndata: x\n\r\n"
RESTS = {
    "the end": (b"0\r\n\r\n", 1),
    "another event and the end": (EVENT + b"0\r\n\r\n", 1),
    "half of the end": (b"0\r", 3),
    "too much": (EVENT * 10_000, 3),
    "no HTTP": (b"?", 3),
    "another answer": (b"0\r\n\r\n" + OK, 3),
}


@pytest.mark.parametrize("name", RESTS)
async def test_a_stream_may_end_after_its_reader_has_enough(client: ProviderClient, name: str) -> None:
    rest, connections = RESTS[name]

    async def handle(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(STREAM + EVENT)
            await asyncio.sleep(0)
            await peer.send(EVENT)
            await enough.wait()
            enough.clear()
            await peer.send(rest)
            sent.set()

    enough, sent = asyncio.Event(), asyncio.Event()
    async with serving(handle) as server:
        for _ in range(3):
            await read_two_events(client, server.provider)
            sent.clear()
            enough.set()
            if connections == 1:
                await sent.wait()
            for _ in range(20):  # the rest lies in the client's socket: its turn to see it
                await asyncio.sleep(0)
        assert len(server.peers) == connections


async def test_a_kept_alive_connection_of_http_1_0_is_used_again(client: ProviderClient) -> None:
    reply = b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\n{}"
    async with serving(replying(reply, reply)) as server:
        for _ in range(2):
            await ask(client, server.provider)
        assert len(server.peers) == 1


@pytest.mark.parametrize("last_words", [b"", b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\n\r\n"])
async def test_a_connection_that_the_server_closed_while_idle_is_not_used(
    client: ProviderClient, last_words: bytes
) -> None:
    async def handle(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await done.wait()
        await peer.send(last_words)
        peer.writer.close()
        await peer.writer.wait_closed()
        closed.set()

    async with serving(handle) as server:
        for _ in range(3):
            done, closed = asyncio.Event(), asyncio.Event()
            await ask(client, server.provider)
            done.set()
            await closed.wait()
            for _ in range(20):  # the end of the file lies in the client's socket: its turn to see it
                await asyncio.sleep(0)
        assert len(server.peers) == 3


@pytest.mark.parametrize("lost", [b"", b"HTTP/1.1 200"])
async def test_a_get_that_got_no_answer_is_sent_once_more(client: ProviderClient, lost: bytes) -> None:
    async def handle(peer: Peer) -> None:
        if peer.number == 0:
            await peer.request()
            await peer.send(OK)
        await peer.request()
        if peer.number == 0:
            await peer.send(lost)
        else:
            await peer.send(OK)

    async with serving(handle) as server:
        await ask(client, server.provider)
        assert await ask(client, server.provider, b"", method="GET") == b"{}"
        assert len(server.peers) == 2


async def test_a_post_that_got_no_answer_is_not_sent_again(client: ProviderClient) -> None:
    async with serving(replying(OK, b"")) as server:
        await ask(client, server.provider)
        await failure_of(client, server.provider)
        assert len(server.peers) == 1


async def test_a_silence_on_a_used_connection_is_told(client: ProviderClient) -> None:
    async def handle(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await peer.request()
        await peer.gone()

    async with serving(handle) as server:
        await ask(client, server.provider)
        hasty = server.provider.model_copy(update={"connect_timeout": 0.1, "read_timeout": 0.1})
        with pytest.raises(UpstreamTimeoutError):
            await ask(client, hasty)


async def in_flight(client: ProviderClient, most: int) -> None:
    """Check that the client allows `most` calls at the same time, and no more."""
    go = asyncio.Event()

    async def handle(peer: Peer) -> None:
        while True:
            await peer.request()
            await go.wait()
            await peer.send(OK)

    async with serving(handle) as server:
        calls = [asyncio.create_task(ask(client, server.provider)) for _ in range(most + 2)]
        await eventually(lambda: len([peer for peer in server.peers if peer.requests]) == most, "all requests")
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(server.peers) == most
        go.set()
        assert await asyncio.gather(*calls) == [b"{}"] * (most + 2)
        assert len(server.peers) == most


@pytest.mark.parametrize("turns", range(40))
async def test_calls_cancelled_at_any_point_leave_the_pool_whole(client: ProviderClient, turns: int) -> None:
    async def slow(peer: Peer) -> None:
        while True:
            await peer.request()
            for byte in STREAM + b"2\r\n{}\r\n0\r\n\r\n":
                await peer.send(bytes([byte]))
                if byte == ord("\n"):
                    await asyncio.sleep(0)

    async with serving(slow) as server:
        large = bytes(300_000)
        bodies: list[bytes | Upload] = [b"{}", Upload(len(large), pieces_of(large)), b"{}", large, b"{}", b"{}"]
        calls = [asyncio.create_task(ask(client, server.provider, body)) for body in bodies]
        for number in range(turns):
            await asyncio.sleep(0.001 if number % 5 == 4 else 0)
            if number % 3 == 2:
                calls[number % len(calls)].cancel()
        for call in calls[turns % 2 :: 2]:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
    await in_flight(client, 2)


async def test_calls_wait_for_a_connection_in_order() -> None:
    client = ProviderClient(connections=1)
    order: list[int] = []

    async def call(number: int) -> None:
        await ask(client, server.provider)
        order.append(number)

    async with serving(answering) as server:
        await asyncio.gather(*(call(number) for number in range(5)))
        assert order == [0, 1, 2, 3, 4]
        assert len(server.peers) == 1
    await client.close()


async def test_a_call_does_not_wait_for_a_connection_for_ever() -> None:
    client = ProviderClient(connections=1)

    async def handle(peer: Peer) -> None:
        await peer.request()
        await peer.gone()

    async with serving(handle) as server:
        first = asyncio.create_task(ask(client, server.provider))
        await eventually(lambda: server.peers, "a connection")
        hasty = server.provider.model_copy(update={"connect_timeout": 0.1, "read_timeout": 0.1})
        with pytest.raises(UpstreamTimeoutError):
            await ask(client, hasty)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
    await in_flight(client, 1)
    await client.close()


async def test_calls_to_one_provider_take_no_connection_of_another(client: ProviderClient) -> None:
    async def hang(peer: Peer) -> None:
        await peer.request()
        await peer.gone()

    async with serving(hang) as hanging, serving(answering) as server:
        calls = [asyncio.create_task(ask(client, hanging.provider)) for _ in range(5)]
        await eventually(lambda: len(hanging.peers) == 2, "all connections to it to be in use")
        async with asyncio.timeout(PATIENCE):
            assert await ask(client, server.provider) == b"{}"
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        assert len(hanging.peers) == 2
    await in_flight(client, 2)


async def test_closing_ends_connections_in_use_and_idle_ones(client: ProviderClient) -> None:
    ended = 0

    async def handle(peer: Peer) -> None:
        nonlocal ended
        await peer.request()
        if not await peer.reader.read(1):
            ended += 1

    async with serving(handle) as server:
        calls = [asyncio.create_task(failure_of(client, server.provider)) for _ in range(2)]
        await eventually(lambda: len([peer for peer in server.peers if peer.requests]) == 2, "all requests")
        await client.close()
        await asyncio.gather(*calls)
        await eventually(lambda: ended == 2, "all requests")


async def test_a_host_whose_lookup_hangs_delays_no_other() -> None:
    client = ProviderClient(connections=100)
    async with serving(answering) as server:
        hanging, quick = (at_host(server.provider, host) for host in ("hanging.invalid", "quick.invalid"))
        with resolving() as resolver:
            first, *others = [asyncio.create_task(ask(client, hanging)) for _ in range(64)]
            await eventually(lambda: resolver.asked, "the lookup to hang")
            async with asyncio.timeout(PATIENCE):
                assert await ask(client, quick) == b"{}"
            first.cancel()
            await asyncio.wait([first])
            assert not any(call.done() for call in others), "a call that gives up ends no other"
            resolver.answered.set()
            assert await asyncio.gather(*others) == [b"{}"] * 63
    await client.close()


async def test_a_host_that_is_not_there(client: ProviderClient) -> None:
    async with serving(answering) as server:
        detail = await failure_of(client, at_host(server.provider, "nowhere.invalid"))
    assert detail.endswith("no connection: [Errno -2] Name or service not known")


async def test_a_host_whose_name_cannot_be_one(client: ProviderClient) -> None:
    async with serving(answering) as server:
        assert "no connection: " in await failure_of(client, at_host(server.provider, "a..invalid"))


def at_host(provider: Provider, host: str) -> Provider:
    return provider.model_copy(update={"base_url": provider.base_url.replace("127.0.0.1", host)})
