"""A page of the console while the API goes away and comes back."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import httpx
from playwright.async_api import Browser, expect

from tests.connections import closing
from tests.e2e.console.conftest import sign_in, wait_for_console
from tests.e2e.jobs import submit
from tests.fakes.provider import DONE, Gate, Provider, chunk, stream
from tests.service import BOOTSTRAP_KEY, Service, free_port
from tests.waiting import PATIENCE

_PATIENT = PATIENCE * 1000


class Relay:
    """A way to the API that can be cut. While it is cut, connections are refused."""

    def __init__(self, target: str) -> None:
        self.port = free_port()
        self._target = urlsplit(target)
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Pass connections on."""
        self._server = await asyncio.start_server(self._pass_on, "127.0.0.1", self.port)

    async def cut(self) -> None:
        """End all connections, and refuse new ones."""
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            async with closing(writer):
                of_api, to_api = await asyncio.open_connection(self._target.hostname, self._target.port)
                async with closing(to_api), asyncio.TaskGroup() as group:
                    group.create_task(_copy(reader, to_api))
                    group.create_task(_copy(of_api, writer))
        except* OSError:
            pass  # one end of the connection is gone
        finally:
            self._tasks.discard(task)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()
    with contextlib.suppress(OSError):
        writer.write_eof()


@contextlib.asynccontextmanager
async def relayed_console(service: Service) -> AsyncIterator[tuple[str, Relay]]:
    """A console whose API is behind a relay."""
    relay = Relay(service.base_url)
    await relay.open()
    port = free_port()
    url, api_url = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{relay.port}"
    process = service.launch("console-relayed", HEADRACE_CONSOLE_PORT=str(port), HEADRACE_CONSOLE_API_URL=api_url)
    try:
        await asyncio.to_thread(wait_for_console, service, process, url)
        yield url, relay
    finally:
        await asyncio.to_thread(process.terminate)
        await relay.cut()


async def test_a_stream_goes_on_where_it_was_when_the_api_comes_back(
    browser: Browser, service: Service, client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    gate = Gate()
    provider.script(model, stream(chunk("One, "), gate, chunk("two, "), chunk("three."), chunk(finish="stop"), DONE))
    job_id = await submit(client, model)
    async with relayed_console(service) as (url, relay):
        context = await browser.new_context(base_url=url)
        page = await context.new_page()
        await sign_in(page, BOOTSTRAP_KEY)
        await page.goto(f"/jobs/{job_id}")
        said, banner = page.locator("#answer .said"), page.locator("#connection")
        await expect(said).to_have_text("One,", timeout=_PATIENT)

        await relay.cut()
        await expect(banner).to_contain_text("The API is unavailable since", timeout=_PATIENT)
        await expect(said).to_have_text("One,")  # what the page has stays
        gate.release()
        await relay.open()
        await expect(said).to_have_text("One, two, three.", timeout=_PATIENT)
        await expect(banner).to_be_hidden(timeout=_PATIENT)
        await expect(page.locator("#head .badge")).to_have_text("completed", timeout=_PATIENT)
        await context.close()
