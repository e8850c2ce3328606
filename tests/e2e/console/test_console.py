"""The console in a browser: sessions, every page, streams, and what happens when keys and processes go."""

from __future__ import annotations

import itertools
import re
from datetime import UTC, datetime

import httpx
from playwright.async_api import Browser, Page, expect

from tests.e2e import batches
from tests.e2e.console.conftest import sign_in
from tests.e2e.jobs import submit
from tests.fakes.provider import DONE, Gate, Provider, answer, chunk, stream
from tests.service import BOOTSTRAP_KEY, Service
from tests.waiting import PATIENCE

_PATIENT = PATIENCE * 1000
PAGES = (
    "/",
    "/jobs",
    "/batches",
    "/batches/new",
    "/usage",
    "/playground",
    "/models",
    "/agents",
    "/agents/new",
    "/webhooks",
    "/webhooks/secrets",
    "/keys",
    "/keys/new",
    "/accounts",
)
# What a page must have for every reader. Returns a line for each problem.
ACCESSIBLE = r"""() => {
  const problems = [];
  const shown = (element) => element.checkVisibility({ checkOpacity: true, checkVisibilityCSS: true });
  const named = (element) =>
    (element.ariaLabel || element.innerText || element.title || element.querySelector("img[alt]")?.alt || "").trim();
  for (const field of document.querySelectorAll("input:not([type=hidden]), select, textarea"))
    if (shown(field) && !field.labels.length && !field.ariaLabel) problems.push(`no label: ${field.outerHTML}`);
  for (const element of document.querySelectorAll("a[href], button, summary"))
    if (shown(element) && !named(element)) problems.push(`no name: ${element.outerHTML}`);
  for (const image of document.querySelectorAll("img:not([alt])")) problems.push(`no alt: ${image.outerHTML}`);
  if (document.querySelectorAll("h1").length !== 1) problems.push("not one h1");
  if (document.querySelectorAll("main").length !== 1) problems.push("not one main");
  let level = 0;
  for (const heading of document.querySelectorAll("main :is(h1, h2, h3, h4)")) {
    const next = Number(heading.tagName[1]);
    if (level && next > level + 1) problems.push(`heading jumps to ${heading.outerHTML}`);
    level = next;
  }
  const ids = [...document.querySelectorAll("[id]")].map((element) => element.id);
  const twice = ids.filter((id, index) => ids.indexOf(id) !== index);
  if (twice.length) problems.push(`several elements have one id: ${twice}`);
  if (document.documentElement.scrollWidth > innerWidth) problems.push("wider than the screen");

  const channels = (colour) => colour.match(/[\d.]+/g).map(Number);
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const [red, green, blue, alpha = 1] = channels(getComputedStyle(at).backgroundColor);
      if (alpha > 0.99) return [red, green, blue];
    }
    return [255, 255, 255];
  };
  const light = (rgb) => {
    const [red, green, blue] = rgb.map((value) => {
      const part = value / 255;
      return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !shown(element) || element.closest("svg, :disabled, option")) continue;
    const [first, second] = [light(channels(getComputedStyle(element).color).slice(0, 3)), light(ground(element))];
    const contrast = (Math.max(first, second) + 0.05) / (Math.min(first, second) + 0.05);
    if (contrast < 4.5) problems.push(`contrast ${contrast.toFixed(1)}: ${element.outerHTML.slice(0, 120)}`);
  }
  return problems;
}"""


async def test_a_sign_in_that_fails_then_one_that_works_and_its_end(browser: Browser, console: str) -> None:
    context = await browser.new_context(base_url=console)
    page = await context.new_page()
    await page.goto("/jobs?status=failed")
    await page.fill("#key", "hr_wrong")
    await page.click("main button")
    await expect(page.get_by_role("alert")).to_contain_text("does not know this key")
    await page.fill("#key", BOOTSTRAP_KEY)
    await page.click("main button")
    await expect(page).to_have_url(re.compile(r"/jobs\?status=failed$"))
    assert await page.evaluate("document.cookie") == ""
    assert BOOTSTRAP_KEY not in await page.content()
    await page.click(".menu summary")
    await page.click("text=Sign out")
    await expect(page).to_have_url(re.compile("/sign-in"))
    await page.goto("/jobs")
    await expect(page).to_have_url(re.compile("/sign-in"))
    await context.close()


async def test_every_page_is_accessible_and_fits(page: Page, client: httpx.AsyncClient, model: str) -> None:
    long = {"note": "x" * 400}
    job_id = await submit(client, model, metadata=long)
    batch = await batches.submit(client, batches.lines(model, 2), metadata=long)
    found = {}
    for path in (*PAGES, f"/jobs/{job_id}", f"/batches/{batch['id']}", f"/playground?job={job_id}", "/nothing"):
        await page.goto(path)
        for theme, width in itertools.product(("light", "dark"), (1280, 390)):
            await page.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
            await page.set_viewport_size({"width": width, "height": 800})
            found[path, theme, width] = await page.evaluate(ACCESSIBLE)
    assert {where: problems for where, problems in found.items() if problems} == {}


async def test_a_running_jobs_text_streams_in_and_survives_its_connection(
    page: Page, client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    gate, evil = Gate(), "<img src=x onerror=alert(1)> and "
    provider.script(model, stream(chunk(evil), gate, chunk("the rest."), chunk(finish="stop"), DONE))
    job_id = await submit(client, model)
    await page.goto(f"/jobs/{job_id}")
    said = page.locator("#answer .said")
    await expect(said).to_have_text(evil.strip(), timeout=_PATIENT)
    await page.context.set_offline(True)
    gate.release()
    await page.context.set_offline(False)
    await expect(said).to_have_text(f"{evil}the rest.", timeout=_PATIENT)
    await expect(page.locator("#head .badge")).to_have_text("completed", timeout=_PATIENT)
    assert await page.locator("#answer img").count() == 0


async def test_the_playground_goes_on_with_a_conversation(page: Page, provider: Provider, model: str) -> None:
    provider.script(model, answer("First answer."), answer("Second answer."))
    await page.goto(f"/playground?model={model}")
    await page.fill("#message", "One?")
    await page.keyboard.press("Control+Enter")
    await expect(page.locator("#answer .said")).to_have_text("First answer.", timeout=_PATIENT)
    await expect(page.locator("#stats .tiles")).to_be_visible(timeout=_PATIENT)
    await page.fill("#message", "Two?")
    await page.click("#ask button.primary")
    await expect(page.locator("#answer .said")).to_have_text("Second answer.", timeout=_PATIENT)
    asked = provider.calls_for(model)[-1].body["messages"]
    assert [message["content"] for message in asked] == ["One?", "First answer.", "Two?"]


async def test_a_message_that_is_stopped_keeps_its_text_and_its_conversation(
    page: Page, provider: Provider, model: str
) -> None:
    provider.script(model, stream(chunk("Half"), Gate()), answer("Whole."))
    await page.goto(f"/playground?model={model}")
    await page.fill("#message", "One?")
    await page.click("#ask button.primary")
    await expect(page.locator("#answer .said")).to_have_text("Half", timeout=_PATIENT)
    await expect(page.locator("#first")).to_contain_text("First delta")
    loads: list[Page] = []
    page.on("domcontentloaded", lambda loaded: loads.append(loaded))  # noqa: PLW0108  (playwright marks its functions)
    await page.get_by_role("button", name="Stop").click()
    await expect(page.locator(".banner.ok")).to_contain_text("cancelled", timeout=_PATIENT)
    await expect(page.locator("#answer .said")).to_have_text("Half", timeout=_PATIENT)
    await expect(page.locator("#answer [data-said]")).to_be_empty(timeout=_PATIENT)  # its stream has ended
    await page.fill("#message", "Two?")
    await page.click("#ask button.primary")
    await expect(page.locator("#answer .said")).to_have_text("Whole.", timeout=_PATIENT)
    assert [message["content"] for message in provider.calls_for(model)[-1].body["messages"]] == ["One?", "Two?"]
    assert len(loads) <= 3  # the stopped job, the next one, and the next one's end


async def test_a_key_that_is_revoked_ends_the_open_page(browser: Browser, console: str, service: Service) -> None:
    key = service.create_key("console-revoked")
    context = await browser.new_context(base_url=console)
    page = await context.new_page()
    await sign_in(page, key["key"])
    service.run("keys", "revoke", key["id"])
    await expect(page).to_have_url(re.compile("/sign-in"), timeout=_PATIENT)
    await expect(page.locator("main")).to_contain_text("no longer valid")
    await context.close()


async def test_a_read_only_key_is_shown_nothing_that_acts(
    browser: Browser, console: str, service: Service, client: httpx.AsyncClient
) -> None:
    key = service.create_key("console-read-only", "--read-only")
    context = await browser.new_context(base_url=console)
    page = await context.new_page()
    await sign_in(page, key["key"])
    for path in ("/jobs", "/batches", "/agents", "/playground", "/keys", "/webhooks"):
        await page.goto(path)
        acts = await page.locator('main form[method="post"], main a.primary').count()
        assert acts == 0, path
    await context.close()


async def test_an_administrator_reads_another_account_and_changes_nothing_there(
    page: Page, other: httpx.AsyncClient, model: str
) -> None:
    job_id = await submit(other, model)
    account = (await other.get("/account")).json()
    await page.goto(f"/jobs/{job_id}")
    await expect(page.locator("h1")).to_have_text("Not found")
    await page.goto("/accounts")
    await page.locator("tr", has_text=account["id"]).get_by_role("button", name="Read its rows").click()
    await expect(page.locator("form.banner")).to_contain_text(account["id"])
    await page.goto(f"/jobs/{job_id}")
    await expect(page.locator("#head")).to_contain_text(job_id)
    assert await page.locator("#head form").count() == 0
    await page.click("text=Return to your account")
    await page.goto(f"/jobs/{job_id}")
    await expect(page.locator("h1")).to_have_text("Not found")


async def test_keys_open_pages_and_rows(page: Page, client: httpx.AsyncClient, model: str) -> None:
    await submit(client, model)
    await page.clock.set_fixed_time(datetime.now(UTC))  # `g` waits for its letter, however long that takes here
    await page.keyboard.press("g")
    await page.keyboard.press("j")
    await expect(page).to_have_url(re.compile("/jobs$"))
    await page.wait_for_load_state()  # with its scripts
    await page.keyboard.press("j")
    await expect(page.locator("tbody a").first).to_be_focused()
    await page.keyboard.press("Enter")
    await expect(page).to_have_url(re.compile("/jobs/job_"))
    await page.wait_for_load_state()
    await page.keyboard.press("?")
    await expect(page.locator("#shortcuts")).to_be_visible()
    await page.keyboard.press("Escape")
    before = await page.evaluate("getComputedStyle(document.body).color")
    await page.click("[data-theme-switch]")
    await page.reload()
    assert await page.evaluate("getComputedStyle(document.body).color") != before
