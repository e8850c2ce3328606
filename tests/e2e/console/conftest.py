"""The console of the run's service, and a browser with a page that is signed in."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import AsyncIterator

import httpx
import pytest
from playwright.async_api import Browser, Page, async_playwright, expect

from tests.service import BOOTSTRAP_KEY, Process, Service, free_port
from tests.waiting import PATIENCE, until

expect.set_options(timeout=PATIENCE * 1000)

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
# What a browser in a container needs, and what keeps it from calling anywhere by itself.
_ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


@pytest.fixture(scope="session")
def console(service: Service) -> str:
    """The URL of a console of the service."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    process = service.launch("console", HEADRACE_CONSOLE_PORT=str(port), HEADRACE_CONSOLE_API_URL=service.base_url)
    wait_for_console(service, process, url)
    return url


def wait_for_console(service: Service, process: Process, url: str) -> None:
    """Return once a console of the service answers."""

    def answers() -> bool:
        assert process.running, f"the console ended:\n{service.tail()}"
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{url}/sign-in", timeout=5).status_code == 200
        return False

    until(answers, "the console")


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of Chromium. Tests that need it are skipped where it is not installed."""
    path = next(filter(None, map(shutil.which, _NAMES)), None)
    if path is None:
        pytest.skip("Chromium is not installed: the console is not tested in a browser (apt-get install chromium)")
    return path


@pytest.fixture
async def browser(chromium: str) -> AsyncIterator[Browser]:
    """A browser."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=_ARGUMENTS)
        yield browser
        await browser.close()


@pytest.fixture
async def page(browser: Browser, console: str) -> AsyncIterator[Page]:
    """A page that is signed in with the first account's key.

    No script may fail, the policy may block nothing, and the browser may ask no other host.
    """
    context = await browser.new_context(base_url=console)
    context.set_default_timeout(PATIENCE * 1000)
    page = await context.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda said: problems.append(said.text) if "Content Security Policy" in said.text else None)
    page.on(
        "request",
        lambda asked: None if asked.url.startswith((console, "data:", "blob:")) else problems.append(asked.url),
    )
    await sign_in(page, BOOTSTRAP_KEY)
    yield page
    assert not problems


async def sign_in(page: Page, key: str) -> None:
    """Sign in with a key, and return on the first page."""
    await page.goto("/sign-in")
    await page.fill("#key", key)
    await page.click("main button")
    await page.wait_for_url(lambda url: "/sign-in" not in url)
