"""Bounds on the memory and the time that one client's connection may take, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from api.http.connection import LARGEST_HEAD, LONGEST_URL, MOST_HEADERS, MOST_PIPELINED, Client, Connection
from headrace.settings import Settings
from tests.waiting import PATIENCE

# Seconds that a client may take; the tests wait for it to pass, and never for it not to.
CLIENT_SECONDS = 0.3
HEAD = b"POST / HTTP/1.1\r\nHost: x\r\n"
LARGE = b"x" * (8 * 1024 * 1024)


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Read the body and answer with its length, or with what a client cannot take in at once."""
    size, more = 0, scope["path"] != "/unread"
    while more and (message := await receive())["type"] == "http.request":
        size += len(message["body"])
        more = message["more_body"]
    if scope["path"] == "/busy":
        await receive()  # until the client is gone
    if scope["path"] == "/waiting":
        await until_left(scope["state"]["client"])
    await send({"type": "http.response.start", "status": 200, "headers": []})
    if scope["path"] == "/watched":
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        await until_left(scope["state"]["client"])
    if scope["path"].startswith("/live"):
        await write_live(scope["state"]["client"], send, endless=scope["path"] == "/live/endless")
    if scope["path"] == "/slow":
        await asyncio.sleep(0.3)  # several checks of the connection
    body = LARGE if scope["path"] == "/large" else b"%d" % size
    await send({"type": "http.response.body", "body": body})


async def until_left(client: Client) -> None:
    """Wait as an endpoint does until the client has left."""
    gone = asyncio.Event()
    client.notify(gone.set)
    await gone.wait()


async def write_live(client: Client, send: Send, *, endless: bool) -> None:
    """Write pieces at once as long as the client takes them, and then as ASGI does whether it still takes more."""
    for _ in range(3):
        if client.takes_more:
            client.write(b"at once;")
    while endless and client.takes_more:
        client.write(LARGE[:65536])
    await send({"type": "http.response.body", "body": b"takes more: %d;" % client.takes_more, "more_body": True})


class Server:
    def __init__(self, port: int, state: uvicorn.server.ServerState) -> None:
        self.port = port
        self.connections: set[Any] = state.connections
        self.tasks = state.tasks

    async def until_gone(self, most: int = 0) -> None:
        async with asyncio.timeout(PATIENCE):
            while len(self.connections) > most:  # noqa: ASYNC110  (a set has no event to wait for)
                await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def serving(**settings: Any) -> AsyncIterator[Server]:
    configured = Settings(client_timeout_seconds=CLIENT_SECONDS, **settings)
    config = uvicorn.Config(application, http=Connection, lifespan="off", log_config=None)
    config.load()
    state = uvicorn.server.ServerState()
    loop = asyncio.get_running_loop()
    listening = await loop.create_server(lambda: Connection(config, state, {"settings": configured}), "127.0.0.1", 0)

    async def check() -> None:
        while True:
            await asyncio.sleep(0.05)
            for connection in list(state.connections):
                connection.check(loop.time())  # type: ignore[union-attr]  # they are all ours

    clock = asyncio.create_task(check())
    try:
        yield Server(listening.sockets[0].getsockname()[1], state)
    finally:
        clock.cancel()
        listening.close()
        for connection in list(state.connections):
            connection.transport.abort()


async def answer_to(server: Server, *pieces: bytes) -> tuple[int, dict[str, Any]]:
    """Send pieces, and return the status and the error that come back; the server has closed the connection then."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    async with asyncio.timeout(PATIENCE):
        with contextlib.suppress(ConnectionError):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    status = re.match(rb"HTTP/1.1 (\d+)", head)
    assert status is not None, head
    assert b"connection: close" in head
    return int(status[1]), json.loads(body)["error"]


async def test_a_piece_written_at_once_is_framed_as_any_other() -> None:
    async with serving() as server, asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        for _ in range(2):  # on one connection
            writer.write(b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n")
            head, body = (await reader.readuntil(b"\r\n0\r\n\r\n")).split(b"\r\n\r\n", 1)
            assert b"transfer-encoding: chunked" in head
            assert body == b"8\r\nat once;\r\n" * 3 + b"e\r\ntakes more: 1;\r\n1\r\n0\r\n0\r\n\r\n"
        writer.close()


@pytest.mark.parametrize(
    "request_bytes",
    [b"GET /live HTTP/1.0\r\n\r\n", b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n" * 2],
    ids=["without chunks", "pipelined"],
)
async def test_answers_that_are_sent_as_asgi_does(request_bytes: bytes) -> None:
    async with serving() as server, asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(request_bytes)
        assert b"takes more: 0;" in await reader.readuntil(b"takes more: 0;")
        writer.close()


async def test_nothing_is_written_at_once_to_a_client_that_does_not_read() -> None:
    async with serving() as server, asyncio.timeout(PATIENCE):
        _, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=65536)
        writer.write(b"GET /live/endless HTTP/1.1\r\nHost: x\r\n\r\n")
        await server.until_gone()  # it is closed, as any client that does not read
        writer.close()


ENDLESS = {
    "headers": [HEAD, *[b"a: %b\r\n" % (b"x" * 1000)] * 2 * (LARGEST_HEAD // 1000)],
    "one value": [HEAD, b"a: ", *[b"x" * 65536] * 16],
    "one name": [HEAD, *[b"x" * 65536] * 16],
    "many headers": [HEAD, *[b"a: b\r\n"] * (MOST_HEADERS + 1)],
    "trailers": [HEAD, b"Transfer-Encoding: chunked\r\n\r\n0\r\n", *[b"a: b\r\n"] * (MOST_HEADERS + 1)],
    "a chunk's extension": [HEAD, b"Transfer-Encoding: chunked\r\n\r\n1;", *[b"x" * 65536] * 16],
    "blank lines": [b"\r\n" * 32768] * 8,
}


@pytest.mark.parametrize("pieces", ENDLESS.values(), ids=ENDLESS)
async def test_a_head_that_does_not_end_is_refused(pieces: list[bytes]) -> None:
    async with serving() as server:
        status, error = await answer_to(server, *pieces)
        assert (status, error["code"], error["type"]) == (431, "headers_too_large", "invalid_request_error")
        await server.until_gone()


async def test_a_url_that_is_too_long_is_refused() -> None:
    async with serving() as server:
        status, error = await answer_to(server, b"GET /?", b"a" * LONGEST_URL, b" HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (status, error["code"]) == (414, "url_too_long")


INSIDE = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
OFFERS = {
    "h2c": b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQBAAAAAAIAAAAA\r\n",
    "websocket": b"Connection: keep-alive\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nUpgrade: other\r\n",
}
BODIES = {
    "sized": b"Content-Length: %d\r\n\r\n%b" % (len(INSIDE), INSIDE),
    "chunked": b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(INSIDE), INSIDE),
}


@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS)
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
@pytest.mark.parametrize("piece", [1, 4096])
async def test_an_offer_to_upgrade_is_ignored(offer: bytes, body: bytes, piece: int) -> None:
    async with serving() as server, asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        sent = (HEAD + offer + body) * 2 + HEAD + b"Connection: close, Upgrade\r\n" + OFFERS["h2c"] + body
        for at in range(0, len(sent), piece):
            writer.write(sent[at : at + piece])
            await asyncio.sleep(0)
        answers = (await reader.read()).split(b"HTTP/1.1 200 OK\r\n")[1:]  # the last one's `close` is heeded
        assert [answer.partition(b"\r\n\r\n")[2] for answer in answers] == [b"2\r\n%d\r\n0\r\n\r\n" % len(INSIDE)] * 3
        writer.close()


async def test_a_head_with_an_offer_to_upgrade_is_bounded_as_any_other() -> None:
    async with serving() as server:
        status, error = await answer_to(server, HEAD, OFFERS["h2c"], *[b"a: b\r\n"] * (MOST_HEADERS + 1))
        assert (status, error["code"]) == (431, "headers_too_large")


@pytest.mark.parametrize("target", [b"example.com:443", b"/"])
async def test_a_tunnel_is_refused(target: bytes) -> None:
    async with serving() as server:
        status, error = await answer_to(server, b"CONNECT %b HTTP/1.1\r\nHost: x\r\n\r\n" % target)
        assert (status, error["code"]) == (400, "invalid_http")


async def test_bytes_other_than_http_are_refused_as_any_other_request() -> None:
    async with serving() as server:
        status, error = await answer_to(server, b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n")
        assert (status, error["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize(
    "pieces",
    [[b"GET /v1/mod"], [HEAD], [HEAD, b"Content-Length: 100\r\n\r\n"], [HEAD, b"Content-Length: 100\r\n\r\n", b"half"]],
    ids=["half a line", "half a head", "no body", "half a body"],
)
async def test_a_request_that_stops_half_way_is_answered_and_closed(pieces: list[bytes]) -> None:
    async with serving() as server:
        status, error = await answer_to(server, *pieces)
        assert (status, error["code"]) == (408, "request_timeout")
        await server.until_gone()


async def test_a_body_that_trickles_is_refused() -> None:
    async with serving() as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(HEAD + b"Content-Length: 100000\r\n\r\n")

        async def trickle() -> None:
            while True:
                writer.write(b"x")
                await asyncio.sleep(0.05)

        trickling = asyncio.create_task(trickle())
        async with asyncio.timeout(PATIENCE):
            assert (await reader.readline()).startswith(b"HTTP/1.1 408")
            await server.until_gone()
        trickling.cancel()
        writer.close()


async def test_a_client_that_does_not_read_its_answer_is_disconnected() -> None:
    async with serving() as server:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1024)
        writer.write(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        await server.until_gone()
        writer.close()


async def test_a_client_that_reads_slowly_gets_all_of_its_answer() -> None:
    async with serving() as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1024)
        writer.write(b"GET /large HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        size = 0
        async with asyncio.timeout(PATIENCE):
            while piece := await reader.read(512 * 1024):
                size += len(piece)
                await asyncio.sleep(0.02)
        assert size > len(LARGE)
        writer.close()


async def test_a_client_that_has_its_answer_and_goes_on_sending_is_disconnected() -> None:
    async with serving() as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        writer.write(b"GET /v1/mod")
        await server.until_gone()
        writer.close()


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_an_answer_reaches_a_client_that_sends_all_of_its_last_request_first(version: str) -> None:
    async with serving() as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        head = f"POST /unread HTTP/{version}\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(LARGE)}\r\n\r\n"
        writer.write(head.encode())
        async with asyncio.timeout(PATIENCE):
            for at in range(0, len(LARGE), 64 * 1024):
                writer.write(LARGE[at : at + 64 * 1024])
                await writer.drain()
                await asyncio.sleep(0)
            answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"connection: close" in answer.lower()
        await server.until_gone()
        writer.close()


async def test_a_connection_stays_open_after_a_body_that_was_not_read() -> None:
    async with serving() as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        async with asyncio.timeout(PATIENCE):
            writer.write(HEAD.replace(b"/", b"/unread", 1) + b"Content-Length: 10\r\n\r\n")
            await reader.readuntil(b"0\r\n\r\n")
            writer.write(b"0123456789")
            (connection,) = server.connections
            while connection.cycle.more_body:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            connection.check(asyncio.get_running_loop().time() + 10)
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        writer.close()


async def test_requests_that_are_sent_ahead_are_bounded() -> None:
    async with serving() as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        with contextlib.suppress(ConnectionError):
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * MOST_PIPELINED)
            async with asyncio.timeout(PATIENCE):
                for _ in range(MOST_PIPELINED):
                    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
                    await reader.readuntil(b"0\r\n\r\n")
                writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * (MOST_PIPELINED + 2))
                assert not await reader.read()
        await server.until_gone()
        writer.close()


async def test_an_answer_that_goes_on_keeps_nothing_of_its_request_and_ends_when_its_client_leaves() -> None:
    async with serving() as server, asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /watched HTTP/1.1\r\nHost: x\r\nA: b\r\n\r\n")
        await reader.readuntil(b"first")
        (connection,) = server.connections
        while connection.headers:  # noqa: ASYNC110  (a list has no event to wait for)
            await asyncio.sleep(0.02)
        assert connection.scope == connection.cycle.scope == {"method": "GET"}
        writer.close()
        while server.tasks:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_a_client_with_a_large_body_that_leaves_before_its_answer_is_noticed() -> None:
    async with serving() as server, asyncio.timeout(PATIENCE):
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        # More than uvicorn buffers, and no more than one read takes: the last piece is the one that pauses reading.
        writer.write(b"POST /waiting HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % 200_000 + LARGE[:200_000])
        while not server.tasks:  # noqa: ASYNC110  (a set has no event to wait for)
            await asyncio.sleep(0.02)
        (connection,) = server.connections
        while connection.cycle.more_body:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        writer.close()
        await server.until_gone()
        while server.tasks:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_a_request_that_is_sent_ahead_of_the_end_of_a_slow_answer_is_answered() -> None:
    async with serving() as server, asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbody")
        slow, _, second = (await reader.read()).partition(b"HTTP/1.1 200 OK\r\n")
        assert slow == b"1\r\n0\r\n0\r\n\r\n"
        assert second.endswith(b"\r\n\r\n1\r\n4\r\n0\r\n\r\n")
        writer.close()


async def test_connections_without_a_request_make_room_for_others() -> None:
    async with serving(max_connections=4) as server:
        idle = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(6)]
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        async with asyncio.timeout(PATIENCE):
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        assert len(server.connections) <= 5
        for _, other in [*idle, (reader, writer)]:
            other.close()


async def test_a_connection_too_many_is_told_so() -> None:
    async with serving(max_connections=2) as server:
        busy = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(2)]
        for _, writer in busy:
            writer.write(b"GET /busy HTTP/1.1\r\nHost: x\r\n\r\n")
        async with asyncio.timeout(PATIENCE):
            while any(connection.is_idle for connection in server.connections):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        status, error = await answer_to(server)
        assert (status, error["type"]) == (503, "service_unavailable")
        for _, writer in busy:
            writer.close()


async def test_an_answer_to_http_1_0_ends_with_its_connection() -> None:
    async with serving() as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"POST / HTTP/1.0\r\nContent-Length: 5\r\n\r\nhello")
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
    assert b"transfer-encoding" not in head.lower()
    assert b"connection: close" in head.lower()
    assert body == b"5"
