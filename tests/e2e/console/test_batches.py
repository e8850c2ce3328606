"""A batch in the browser: uploaded, watched while it runs, and saved. And usage as it is plotted."""

from __future__ import annotations

import asyncio
import csv
import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import psutil
from playwright.async_api import Page, Route, expect

from tests.e2e.batches import jsonl, line, lines
from tests.e2e.jobs import chat
from tests.fakes.provider import Gate, Provider, answer, status
from tests.service import BOOTSTRAP_KEY, Service
from tests.waiting import PATIENCE, eventually

_PATIENT = PATIENCE * 1000
# Bytes of a file that a slow connection takes a while for, and bytes a second of that connection.
_BYTES = 600_000
_SLOW = 30_000
# Returns what a browser hands over when a file is dropped.
_FILE = "text => { const data = new DataTransfer(); data.items.add(new File([text], 'in.jsonl')); return data; }"


async def files(client: httpx.AsyncClient) -> list[str]:
    return [file["filename"] for file in (await client.get("/files", params={"limit": 100})).json()["data"]]


async def test_a_file_is_uploaded_and_its_batch_watched_to_its_end(
    page: Page, client: httpx.AsyncClient, provider: Provider, model: str, tmp_path: Path
) -> None:
    gate = Gate()
    for number in range(1, 4):
        provider.script(f"{model}-{number}", answer("at last", hold=gate))
    provider.always(f"{model}-bad", status(400, {"error": {"message": "Not <b>this</b>."}}))
    long = "x" * (_BYTES // 3)
    requests = [line("bad", f"{model}-bad"), *(line(f"r{number}", f"{model}-{number}", long) for number in range(1, 4))]
    source = tmp_path / f"{model}.jsonl"
    source.write_bytes(jsonl(requests))

    await page.goto("/batches/new")
    network = await page.context.new_cdp_session(page)
    slow = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": _SLOW}
    await network.send("Network.emulateNetworkConditions", slow)
    await page.set_input_files("#file", source)
    await page.fill("#metadata", f"test={model}")
    await page.click("#create")
    shown = page.locator("#upload-text")
    await expect(shown).to_have_text(re.compile(r"^[1-9]\d? %: [\d.]+ KiB of [\d.]+ KiB$"), timeout=_PATIENT)
    await page.click("#upload-cancel")
    await expect(page.locator("#form-error")).to_have_text("The upload was cancelled. Nothing was stored.")
    assert source.name not in await files(client)

    await network.send("Network.emulateNetworkConditions", slow | {"uploadThroughput": -1})
    await page.click("#create")
    await page.wait_for_url(re.compile(r"/batches/batch_"))
    assert source.name in await files(client)
    await expect(page.locator("#failed")).to_contain_text("Not <b>this</b>.", timeout=_PATIENT)
    await expect(page.locator("#failed")).to_contain_text("bad")
    await expect(page.locator("#progress")).to_contain_text("1 of 4, 1 failed")
    gate.release()
    await expect(page.locator("#head")).to_contain_text("completed", timeout=_PATIENT)
    await expect(page.locator("#progress")).to_contain_text("4 of 4, 1 failed")
    async with page.expect_download() as saved:
        await page.click("text=Download output")
    output = await (await saved.value).path()
    assert output.read_text().count("\n") == 3

    await page.goto(f"/batches?key=test&value={model}")
    await expect(page.locator("#batches tbody tr")).to_have_count(1)


async def test_a_dropped_file_is_cancelled_after_one_question(page: Page, provider: Provider, model: str) -> None:
    gate = Gate()
    provider.always(model, answer("at last", hold=gate))
    await page.goto("/batches/new")
    dropped = await page.evaluate_handle(_FILE, jsonl(lines(model, 3)).decode())
    await page.dispatch_event("#drop", "drop", {"dataTransfer": dropped})
    await page.click("#create")
    cancel = page.locator("#head button", has_text="Cancel the batch")
    await cancel.click()
    await page.click("#confirm >> text=Keep it")
    await cancel.click()
    await page.click("#confirm >> text=Cancel the batch")
    await expect(page.locator("#head .badge")).to_have_text("cancelled", timeout=_PATIENT)
    gate.release()


async def test_a_question_comes_before_the_other_scripts(page: Page, provider: Provider, model: str) -> None:
    gate, released = Gate(), asyncio.Event()
    provider.always(model, answer("at last", hold=gate))

    async def hold(route: Route) -> None:
        await released.wait()
        await route.continue_()

    await page.goto("/batches/new")
    dropped = await page.evaluate_handle(_FILE, jsonl(lines(model, 3)).decode())
    await page.dispatch_event("#drop", "drop", {"dataTransfer": dropped})
    await page.click("#create")
    await page.wait_for_url("**/batches/batch_*")
    await page.route("**/static/console.js", hold)
    await page.reload(wait_until="commit")
    cancel = page.locator("#head button", has_text="Cancel the batch")
    await cancel.click()
    await page.click("#confirm >> text=Keep it")
    released.set()
    await cancel.click()
    await page.click("#confirm >> text=Cancel the batch")
    await expect(page.locator("#head .badge")).to_have_text("cancelled", timeout=_PATIENT)
    gate.release()


async def test_a_refresh_keeps_a_pressed_button_and_its_question(page: Page, provider: Provider, model: str) -> None:
    gate = Gate()
    provider.always(model, answer("at last", hold=gate))
    arrived, held = asyncio.Event(), asyncio.Event()

    async def hold(route: Route) -> None:
        if "console-refresh" in route.request.headers:
            arrived.set()
            await held.wait()
        await route.continue_()

    async def refreshed() -> None:
        async with page.expect_response(lambda response: "console-refresh" in response.request.headers):
            await eventually(arrived.is_set, "a refresh")
            held.set()
        await page.evaluate("() => new Promise((resolve) => setTimeout(resolve, 100))")
        arrived.clear()
        held.clear()

    await page.goto("/batches/new")
    dropped = await page.evaluate_handle(_FILE, jsonl(lines(model, 3)).decode())
    await page.dispatch_event("#drop", "drop", {"dataTransfer": dropped})
    await page.route("**/batches/batch_*", hold)
    await page.click("#create")
    cancel = page.locator("#head button", has_text="Cancel the batch")
    await cancel.hover()
    await eventually(arrived.is_set, "a refresh")
    await page.mouse.down()
    await refreshed()
    await page.mouse.up()
    await page.click("#confirm >> text=Keep it")
    await eventually(arrived.is_set, "a refresh")
    await cancel.click()
    await refreshed()
    await page.click("#confirm >> text=Cancel the batch")
    held.set()
    await expect(page.locator("#head .badge")).to_have_text("cancelled", timeout=_PATIENT)
    gate.release()


async def test_usage_is_plotted_and_saved(page: Page, client: httpx.AsyncClient, model: str) -> None:
    assert (await client.post("/chat/completions", json=chat(model))).status_code == 200
    await page.goto("/usage?range=24h&show=requests")
    await page.click("text=Tokens")
    await expect(page.locator("h2").first).to_have_text("Tokens by hour and model")
    await expect(page.locator("svg.plot.wide")).to_be_visible()
    assert "show=total_tokens" in page.url
    async with page.expect_download() as saved:
        await page.click("text=CSV")
    with (await (await saved.value).path()).open() as file:
        rows = {row["model"]: row for row in csv.DictReader(file)}
    assert rows[model]["requests"] == "1"
    await page.set_viewport_size({"width": 390, "height": 800})
    await expect(page.locator("svg.plot.slim")).to_be_visible()
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")


async def test_a_large_upload_does_not_grow_the_process(
    console: str, service: Service, client: httpx.AsyncClient
) -> None:
    memory = psutil.Process(service.processes["console"].pid).memory_info
    piece, count = b" " * (1 << 20), 96
    head = (
        b'--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        b'--b\r\ncontent-disposition: form-data; name="file"; filename="large.jsonl"\r\n\r\n'
    )
    most = 0

    async def form() -> AsyncIterator[bytes]:
        nonlocal most
        yield head
        for _ in range(count):
            most = max(most, memory().rss)
            yield piece
        yield b"\r\n--b--\r\n"

    async with httpx.AsyncClient(base_url=console, timeout=PATIENCE, follow_redirects=True) as browser:
        shown = (await browser.post("/sign-in", data={"key": BOOTSTRAP_KEY, "next": "/batches/new"})).text
        token = re.search(r'name="csrf" content="([^"]+)"', shown)
        assert token is not None
        before = memory().rss
        headers = {"content-type": "multipart/form-data; boundary=b", "x-csrf-token": token[1]}
        file = (await browser.post("/batches/files", content=form(), headers=headers)).json()
    assert file["bytes"] == len(piece) * count
    assert most - before < 32 << 20
    assert (await client.delete(f"/files/{file['id']}")).status_code == 200
