"""`headrace demo`: starts the service in a scratch directory, and shows what it does."""

from __future__ import annotations

import asyncio
import http.client
import json
import sys
import time
from collections.abc import Generator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from headrace.cli.dev import Service, cheap_model, curl_line
from headrace.dev.scratch import scratch_dir
from headrace.settings import Settings

_STREAMED = "In two sentences, what does a headrace do for a water mill?"
_BACKGROUND = (
    "Name a river.",
    "Count to five.",
    "Which is heavier, water or oil?",
    "Say hello in French.",
    "What turns a mill?",
)
_LINES = 20  # of the batch
_CUT_AFTER = 12  # events, in the middle of the text
_MAX_TOKENS = 60  # with a real provider, the demo costs a fraction of a cent


class _DemoError(click.ClickException):
    """The service did not do what the demo shows."""


@dataclass(frozen=True, slots=True)
class _Client:
    """A client of Headrace's API with plain HTTP."""

    address: tuple[str, int]
    key: str

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the JSON object of a request's answer."""
        with self._respond(method, path, body) as response:
            answer: dict[str, Any] = json.load(response)
            return answer

    def events(
        self, method: str, path: str, body: dict[str, Any] | None = None
    ) -> Generator[tuple[str, dict[str, Any]], None, None]:
        """Yield the name and the data of each server-sent event as it arrives; one without a name is a `message`."""
        name = "message"
        with self._respond(method, path, body) as response:
            for line in response:
                field, _, value = line.decode().rstrip("\n").partition(": ")
                if field == "event":
                    name = value
                elif field == "data" and value.startswith("{"):  # not `[DONE]`
                    yield name, json.loads(value)
                elif not field:
                    name = "message"

    def _respond(self, method: str, path: str, body: dict[str, Any] | None) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection(*self.address, timeout=120)
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json", "Connection": "close"}
        connection.request(method, f"/api/v1{path}", None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        if response.status >= http.HTTPStatus.BAD_REQUEST:
            raise _DemoError(f"{method} {path} was answered with {response.status}: {response.read().decode()}")
        return response


def _request(model: str, prompt: str) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": prompt}], "max_completion_tokens": _MAX_TOKENS}


def _stream_one(client: _Client, model: str, console: Console) -> None:
    console.print(Text("\n1. A completion, streamed through the queue", "bold"))
    console.print(Text(f"{model} ← {_STREAMED}", "dim"), soft_wrap=True)
    started = time.monotonic()
    first: float | None = None
    usage: dict[str, Any] = {}
    body = {**_request(model, _STREAMED), "stream": True, "stream_options": {"include_usage": True}}
    for _, chunk in client.events("POST", "/chat/completions", body):
        if "error" in chunk:
            raise _DemoError(f"The stream ended with an error: {chunk['error']['message']}")
        for choice in chunk["choices"]:
            if text := choice["delta"].get("content"):
                first = first or time.monotonic()
                console.print(Text(text, "cyan"), end="", soft_wrap=True)
        usage = chunk.get("usage") or usage
    ended = time.monotonic()
    summary = (
        f"\n{usage.get('prompt_tokens', 0)} tokens in, {usage.get('completion_tokens', 0)} out, "
        f"first token after {_span(started, first)}, all after {_span(started, ended)}"
    )
    console.print(Text(summary, "dim"), soft_wrap=True)


@dataclass(slots=True)
class _Job:
    """A background job, as of its latest event, with times of the monotonic clock."""

    prompt: str
    object: dict[str, Any]
    accepted: float
    first: float | None = None
    ended: float | None = None

    def follow(self, client: _Client) -> None:
        """Read the job's events to the last, which has the whole job."""
        for name, data in client.events("GET", f"/jobs/{self.object['id']}/events"):
            if name == "job.delta":
                self.first = self.first or time.monotonic()
            elif data.get("object") == "job":
                self.object |= data
        self.ended = time.monotonic()


def _table(jobs: list[_Job]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", expand=True)
    table.add_column("prompt and result", no_wrap=True, ratio=1)
    table.add_column("status", no_wrap=True)
    for heading in ("tokens", "cost, USD", "first", "total"):
        table.add_column(heading, justify="right", no_wrap=True)
    for job in jobs:
        usage = job.object.get("usage")
        status = job.object["status"]
        table.add_row(
            Text.assemble(f"{job.prompt}\n", (_answer(job.object), "cyan")),
            Text(status, {"completed": "green", "failed": "red"}.get(status, "yellow")),
            f"{usage['prompt_tokens']} → {usage['completion_tokens']}" if usage else "",
            job.object.get("cost") or "",
            _span(job.accepted, job.first),
            _span(job.accepted, job.ended),
        )
    return table


async def _run_jobs(client: _Client, model: str, console: Console) -> None:
    console.print(Text(f"\n2. {len(_BACKGROUND)} jobs in the background, followed by their events", "bold"))
    jobs = []
    for prompt in _BACKGROUND:
        body = {"request": _request(model, prompt)}
        jobs.append(_Job(prompt, await asyncio.to_thread(client.call, "POST", "/jobs", body), time.monotonic()))
    with Live(console=console, get_renderable=lambda: _table(jobs), refresh_per_second=8, transient=True):
        await asyncio.gather(*(asyncio.to_thread(job.follow, client) for job in jobs))
    console.print(_table(jobs))
    cost = sum(Decimal(job.object["cost"] or 0) for job in jobs)
    console.print(Text(f"{len(jobs)} jobs cost {cost} USD", "dim"))


def _resume_one(client: _Client, model: str, console: Console) -> None:
    console.print(Text("\n3. A background response, whose reader is cut off and comes back", "bold"))
    body = {"model": model, "input": _STREAMED, "max_output_tokens": _MAX_TOKENS, "background": True, "stream": True}
    last, response_id = -1, ""
    events = client.events("POST", "/responses", body)
    for name, event in events:
        last = event["sequence_number"]
        if name == "response.created":
            response_id = event["response"]["id"]
        elif name == "response.output_text.delta":
            console.print(Text(event["delta"], "cyan"), end="", soft_wrap=True)
            if last >= _CUT_AFTER:
                break
    events.close()
    console.print(Text(f"▮ cut after event {last} ▮", "yellow"), end="")
    for name, event in client.events("GET", f"/responses/{response_id}?stream=true&starting_after={last}"):
        if event["sequence_number"] != last + 1:
            raise _DemoError(f"Event {event['sequence_number']} came after event {last}.")
        last += 1
        if name == "response.output_text.delta":
            console.print(Text(event["delta"], "cyan"), end="", soft_wrap=True)
    console.print(Text(f"\n{last + 1} events, each once; the last is {name}", "dim"), soft_wrap=True)


def _run_batch(client: _Client, model: str, console: Console) -> None:
    console.print(Text(f"\n4. A batch of {_LINES} requests, watched by its events", "bold"))
    lines = [
        {"custom_id": f"line-{number}", "body": _request(model, f"What is {number} times {number}?")}
        for number in range(1, _LINES + 1)
    ]
    batch = client.call("POST", "/batches", {"requests": lines, "completion_window": "1h"})
    progress = Progress(
        TextColumn("{task.fields[status]}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} done, {task.fields[failed]} failed, {task.fields[cost]} USD"),
        console=console,
    )
    started = time.monotonic()
    with progress:
        task = progress.add_task("", total=_LINES, status=batch["status"], failed=0, cost="0")
        for _, data in client.events("GET", f"/batches/{batch['id']}/events"):
            batch |= data
            counts = batch["request_counts"]
            progress.update(
                task,
                completed=counts["completed"],
                status=batch["status"],
                failed=counts["failed"],
                cost=batch["cost"] or "0",
            )
    if batch["status"] != "completed":
        raise _DemoError(f"The batch ended as {batch['status']}: {batch.get('errors')}")
    page = client.call("GET", f"/batches/{batch['id']}/results?limit=2")
    for line in page["data"]:
        console.print(Text.assemble(f"{line['custom_id']}  ", (_said(line), "cyan")), no_wrap=True, overflow="ellipsis")
    usage = batch["usage"]
    summary = (
        f"{usage['input_tokens']} tokens in, {usage['output_tokens']} out, all after {_span(started, time.monotonic())}"
    )
    console.print(Text(summary, "dim"), soft_wrap=True)


def _said(line: dict[str, Any]) -> str:
    """Return the answer or the error of a batch's line, without line breaks."""
    response = line["response"] or {}
    if "choices" in response.get("body", {}):
        return " ".join((response["body"]["choices"][0]["message"]["content"] or "").split())
    return str(line["error"] or response)


def _answer(job: dict[str, Any]) -> str:
    """Return the answer or the error of a job, without line breaks."""
    if not job.get("result"):
        return str((job.get("error") or {}).get("message", ""))
    return " ".join((job["result"]["choices"][0]["message"]["content"] or "").split())


def _span(start: float, end: float | None) -> str:
    if end is None:
        return ""
    return f"{end - start:.2f} s" if end - start >= 1 else f"{(end - start) * 1000:.0f} ms"


async def _show(service: Service, console: Console) -> None:
    assert service.first_key is not None
    model = cheap_model(service.catalogue)
    if model is None:
        raise click.ClickException("The demo needs a model with a name: headrace.toml has none, or only globs.")
    client = _Client(service.address, service.first_key)
    # Blocking calls run in threads, so that Ctrl-C works meanwhile.
    await asyncio.to_thread(_stream_one, client, model, console)
    await _run_jobs(client, model, console)
    await asyncio.to_thread(_resume_one, client, model, console)
    await asyncio.to_thread(_run_batch, client, model, console)
    console.print(Text("\n5. Now you", "bold"))
    if sys.stdin.isatty() and sys.stdout.isatty():
        console.print(Text("While this runs, in another terminal:\n", "dim"))
        console.print(Text(curl_line(service.base_url, client.key, model)), soft_wrap=True)
        console.print(Text("\nCtrl-C ends the demo and leaves nothing behind. To keep your data: make dev", "dim"))
        await asyncio.Event().wait()
    console.print(
        Text("Run `make dev` for a service that keeps its data and shows you a key.\n", "dim"), soft_wrap=True
    )


@click.command()
@click.pass_obj
def demo(settings: Settings) -> None:
    """Show what Headrace does, in a scratch directory that is removed afterwards."""
    console = Console(highlight=False)
    with scratch_dir() as home:
        own = {"database_url": "", "redis_url": "", "bootstrap_key": None, "host": "127.0.0.1", "port": 0}
        quiet = {"log_level": "WARNING"}
        scratch = settings.model_copy(update={**own, **quiet, "data_dir": home})
        Service(scratch, console).run(lambda service: _show(service, console))
