"""Take pictures of the console: `make screenshots`. It runs a service of its own, with demo data, and needs Chromium.

Each page is taken at two widths and in both themes, into build/screenshots. Those that the docs show go to docs/images.
Look at the pictures before you commit them.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

import httpx
from playwright.sync_api import Page, ViewportSize, sync_playwright

from headrace.dev.scratch import scratch_dir

DOCS = Path(__file__).resolve().parent
IMAGES = DOCS / "images" / "console"
OTHERS = DOCS.parent / "build" / "screenshots"
# The pictures that pages of the docs show.
SHOWN = re.compile(r"images/console/(\S+?\.png)")
# Pixels of a picture: of a wide screen and of a telephone.
WIDE: ViewportSize = {"width": 1280, "height": 800}
NARROW: ViewportSize = {"width": 390, "height": 780}
THEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
# What a browser in a container needs, and what keeps it from calling anywhere by itself.
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
# Seconds that the service gets to start, and a job or batch to get as far as its picture shows.
_START_SECONDS = 120.0
_SHOWN_SECONDS = 60.0


def main() -> None:
    """Start the service, fill it and take the pictures."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("Chromium is not installed: apt-get install chromium")
    OTHERS.mkdir(parents=True, exist_ok=True)
    IMAGES.mkdir(parents=True, exist_ok=True)
    with scratch_dir() as folder, receiver() as webhook, service(folder) as (api, console, key):
        client = httpx.Client(base_url=api, headers={"authorization": f"Bearer {key}"}, timeout=60, trust_env=False)
        shown = fill(client, webhook)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
            for size, theme in itertools.product((WIDE, NARROW), THEMES):
                context = browser.new_context(base_url=console, viewport=size, color_scheme=theme)
                page = context.new_page()
                page.goto("/sign-in")
                page.fill("#key", key)
                page.click("main button")
                page.wait_for_url(console + "/")
                for name, path in shown.items():
                    take(page, name, path, f"{theme}-{size['width']}")
                context.close()
            browser.close()


def take(page: Page, name: str, path: str, kind: str) -> None:
    """Take the picture of a page, and say where it is wider than the screen."""
    page.goto(path)
    page.wait_for_load_state("load")
    page.wait_for_function("document.querySelector('time')?.title !== ''")
    picture = OTHERS / f"{name}-{kind}.png"
    page.screenshot(path=picture)
    if picture.name in set(SHOWN.findall((DOCS / "how-to" / "console.md").read_text())):
        shutil.copy(picture, IMAGES)
    if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
        print(f"{name}-{kind}: wider than the screen", file=sys.stderr)  # noqa: T201  (a command)


@contextmanager
def service(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Run `headrace dev` and yield the addresses of API and console, and an admin key."""
    environment = {
        **os.environ,
        "HEADRACE_DATA_DIR": str(folder),
        "HEADRACE_PORT": "0",
        "HEADRACE_CONSOLE_PORT": "0",
        "HEADRACE_WEBHOOK_ALLOW_PRIVATE": "true",
    }
    command = [sys.executable, "-P", "-m", "headrace", "dev"]
    log = folder / "screenshots.log"
    with log.open("w") as output, subprocess.Popen(command, env=environment, stdout=output, stderr=output) as process:
        try:
            yield started(log, process)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


def started(log: Path, process: subprocess.Popen[bytes]) -> tuple[str, str, str]:
    """Return what `headrace dev` says once it is ready."""
    patterns = (r"base URL +(\S+)", r"console +(http\S+)", r"API key +(hr_\S+)")
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        found = [re.search(rf"^  {pattern}", log.read_text(), re.MULTILINE) for pattern in patterns]
        if all(found):
            api, console, key = (match[1] for match in found if match is not None)
            return api, console, key
        time.sleep(0.2)
    sys.exit(f"headrace dev did not start:\n{log.read_text()}")


@contextmanager
def receiver() -> Iterator[str]:
    """Run a receiver of webhooks that answers 200, and yield its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (http.server's name)
            """Log nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/headrace"
        server.shutdown()


def fill(client: httpx.Client, webhook: str) -> dict[str, str]:
    """Make jobs, batches, an agent and keys, and return the path of each picture's page."""
    questions = ("How much water does a mill need?", "Who keeps the sluice?", "What is a headrace?")
    talks = [post(client, "/chat/completions", {**ask("demo", question), "user": "miller"}) for question in questions]
    about = {"webhook": webhook, "metadata": {"site": "upper mill"}}
    tried = [
        post(client, "/jobs", {"request": ask(model, "Is the wheel turning?"), **about})
        for model in ("demo-flaky", "demo-broken")
    ]
    post(client, "/api-keys", {"name": "ci", "scopes": ["usage:read"], "limits": {"requests_per_minute": 600}})
    key = post(client, "/api-keys", {"name": "batches", "limits": {"monthly_budget": "25", "models": ["demo*"]}})
    bio = ["You have run a water mill for forty years.", "You speak plainly."]
    agent = post(client, "/agents", {"name": "Miller", "description": "Knows mills", "bio": bio, "model": "demo"})
    post(client, "/batches", batch(["demo"] * 40))
    running = post(
        client, "/batches", {**batch(["demo-broken", "demo-broken", *["demo-slow"] * 58]), "webhook": webhook}
    )
    wait(client, f"/batches/{running['id']}", lambda one: one["request_counts"]["failed"] == 2)
    wait(client, f"/jobs/{tried[-1]['id']}", lambda job: job["status"] == "failed")
    return {
        "batch": f"/batches/{running['id']}",
        "overview": "/",
        "batches": "/batches",
        "jobs": "/jobs",
        "job": f"/jobs/{tried[-1]['id']}",
        "usage": "/usage?range=24h",
        "playground": f"/playground?job={talks[-1]['id'].replace('chatcmpl-', 'job_')}",
        "models": "/models",
        "agent": f"/agents/{agent['id']}",
        "webhooks": "/webhooks",
        "keys": "/keys",
        "key": f"/keys/{key['id']}",
    }


def ask(model: str, text: str) -> dict[str, Any]:
    """Return the body of a chat completion."""
    return {"model": model, "messages": [{"role": "user", "content": text}]}


def batch(models: list[str]) -> dict[str, Any]:
    """Return the request of a batch with a line for each model, in the request itself."""
    lines = [
        {
            "custom_id": f"line-{number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": ask(model, f"Describe mill {number}."),
        }
        for number, model in enumerate(models, 1)
    ]
    return {"requests": lines, "endpoint": "/v1/chat/completions", "completion_window": "24h"}


def post(client: httpx.Client, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Return the answer to a request that must succeed."""
    response = client.post(path, json=body)
    if not response.is_success:
        sys.exit(f"{path}: {response.status_code} {response.text}")
    answer: dict[str, Any] = json.loads(response.content)
    return answer


def wait(client: httpx.Client, path: str, ready: Any) -> None:
    """Wait until what is at a path is ready."""
    deadline = time.monotonic() + _SHOWN_SECONDS
    while not ready(client.get(path).json()):
        if time.monotonic() > deadline:
            sys.exit(f"{path} did not get ready")
        time.sleep(0.2)


if __name__ == "__main__":
    main()
