from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import pytest
import uvicorn

from headrace.runtime import quiet_server
from headrace.runtime.quiet_server import QuietServer
from tests.waiting import PATIENCE, eventually


class Server(QuietServer):
    ticks = 0

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield

    def tick(self) -> None:
        self.ticks += 1


async def answer(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[tuple[Server, str]]:
    server = Server(uvicorn.Config(answer, port=0, lifespan="off", log_config=None))
    running = asyncio.create_task(server.serve())
    await eventually(lambda: server.started, "the server")
    port = server.servers[0].sockets[0].getsockname()[1]
    yield server, f"http://127.0.0.1:{port}/"
    server.exit()
    await asyncio.wait_for(running, PATIENCE)


async def test_it_ticks_while_it_has_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quiet_server, "TICK_SECONDS", 0.02)
    async with serving() as (server, url):
        await asyncio.sleep(0.2)
        assert server.ticks == 0
        for _ in range(2):
            async with httpx.AsyncClient() as client:
                await client.get(url)
                before = server.ticks
                await eventually(lambda before=before: server.ticks > before + 2, "ticks")  # type: ignore[misc]
            await eventually(lambda: not server.server_state.connections.any.is_set(), "the last tick")
            before = server.ticks
            await asyncio.sleep(0.2)
            assert server.ticks == before


async def test_an_answer_has_the_date_of_its_second_however_long_the_server_slept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(quiet_server, "TICK_SECONDS", 3600.0)
    async with serving() as (_, url), httpx.AsyncClient() as client:
        for second in (1_800_000_000, 1_800_000_000, 1_800_000_061):
            monkeypatch.setattr(time, "time", lambda second=second: second + 0.9)
            response = await client.get(url)
            assert parsedate_to_datetime(response.headers["date"]).timestamp() == second


async def test_a_server_that_is_told_to_exit_before_it_serves_exits() -> None:
    server = Server(uvicorn.Config(answer, port=0, lifespan="off", log_config=None))
    server.exit()
    await asyncio.wait_for(server.serve(), PATIENCE)
