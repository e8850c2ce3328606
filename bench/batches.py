"""Batches: their speed beside a script with the official client, fairness, memory, and delay of other requests."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from bench.scenarios import SCENARIOS, measure
from bench.systems import Cpu, Headrace
from bench.upstream import Script

_LINES = 20_000
_BARE_LINES = 5_000
_HUGE = 100_000
_FAIR = (20_000, 100)
_SMALL = 1_000
# Interactive requests with and without a batch, for at most so many seconds, and how often they are measured: the
# slowest hundredth of fewer varies.
_INTERACTIVE = replace(SCENARIOS[0], total=2_000, seconds=20)
_ROUNDS = 4
_LOOK_SECONDS = 0.05
_WEIGH_SECONDS = 0.25
_ANSWER = "".join(Script(10, 0).words()).encode()
"""What each line of an output says once: the fake upstream's ten words."""


@dataclass(frozen=True, slots=True)
class Run:
    """One batch from the first byte of its upload to the last of its output. Times are in seconds."""

    lines: int
    answered: int
    uploaded: float
    validated: float
    """From the batch's creation until its first line may run."""
    total: float
    cpu: Cpu
    memory: dict[str, int]
    """The highest resident memory of each part of the system meanwhile, in bytes."""

    @property
    def rate(self) -> float:
        """Lines a second, end to end."""
        return self.lines / self.total


@dataclass(slots=True)
class Batches:
    """All measurements of batches."""

    runs: dict[str, Run] = field(default_factory=dict)
    bare_lines: int = 0
    bare_seconds: float = 0.0
    alone: list[tuple[float, float]] = field(default_factory=list)
    """p50 and p99 of interactive requests, one at a time, in milliseconds: half of them before the huge batch."""
    beside: list[tuple[float, float]] = field(default_factory=list)
    """The same while the huge batch runs."""
    fair: dict[str, float] = field(default_factory=dict)
    """The end of each tenant's batch, in seconds after both were submitted."""
    failures: list[str] = field(default_factory=list)

    def json(self) -> dict[str, object]:
        """Return the measurements as JSON's types."""
        return asdict(self)

    def markdown(self) -> list[str]:
        """Return the tables."""
        whole, huge, small = self.runs["whole"], self.runs["huge"], self.runs["small"]
        bare = self.bare_lines / self.bare_seconds
        checked = huge.lines / huge.validated
        lines = [
            "| | | goal |",
            "| --- | ---: | ---: |",
            f"| {whole.lines:,} lines, upload to output, a second | {whole.rate:,.0f} | |",
            f"| a script with the `openai` client, 64 in flight, the same run | {bare:,.0f} | |",
            f"| times as fast | {whole.rate / bare:.2f} | {_at_least(whole.rate / bare, 5)} |",
            f"| lines validated a second | {checked:,.0f} | {_at_least(checked, 20_000)} |",
        ]
        for at, name in enumerate(("p50", "p99")):
            without, during = (statistics.mean(found[at] for found in rounds) for rounds in (self.alone, self.beside))
            ratio = during / without
            lines.append(
                f"| interactive {name} during {huge.lines:,} lines, ms ({without:.1f} without: {ratio:.2f} times)"
                f" | {during:.1f} | {_at_most(ratio, 1.2)} |"
            )
        for name, seconds in self.fair.items():
            lines.append(f"| two tenants at once: {name} ended after, s | {seconds:.1f} | |")
        parts = [part for part in huge.memory if part in small.memory]
        lines += ["", f"| most resident, MB | {' | '.join(parts)} |", f"| --- |{' ---: |' * len(parts)}"]
        for run in (small, huge):
            cells = " | ".join(f"{run.memory[part] / 1e6:.0f}" for part in parts)
            lines.append(f"| {run.lines:,} lines | {cells} |")
        names = [*whole.cpu.own, *whole.cpu.stores]
        lines += ["", f"| CPU a line, µs | {' | '.join(names)} | all |", f"| --- |{' ---: |' * (len(names) + 1)}"]
        spent = whole.cpu.own | whole.cpu.stores
        cells = " | ".join(f"{1e6 * spent[name] / whole.lines:.0f}" for name in names)
        return [*lines, f"| {whole.lines:,} lines | {cells} | {1e6 * sum(spent.values()) / whole.lines:.0f} |"]


def _at_least(value: float, goal: float) -> str:
    return f"≥ {goal:,g} {'✓' if value >= goal else '✗'}"


def _at_most(value: float, goal: float) -> str:
    return f"≤ {goal:,g} {'✓' if value <= goal else '✗'}"


def batch_input(count: int, model: str = "fake") -> bytes:
    """Return an input of plain requests."""
    return b"".join(
        json.dumps(
            {
                "custom_id": f"request-{number}",
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": {
                    "model": model,
                    "messages": [
                        {"role": "system", "content": "You are a helpful assistant."},
                        {"role": "user", "content": f"Tell me something about rivers and mills, number {number}."},
                    ],
                    "max_tokens": 100,
                },
            }
        ).encode()
        + b"\n"
        for number in range(count)
    )


class Client:
    """The API over plain HTTP."""

    def __init__(self, system: Headrace, key: str) -> None:
        self._url = f"http://127.0.0.1:{system.port}/api/v1"
        self._key = key

    def ask(self, method: str, path: str, body: bytes | None = None, kind: str = "application/json") -> bytes:
        """Return the body of an answer."""
        request = urllib.request.Request(
            self._url + path,
            method=method,
            data=body,
            headers={"authorization": f"Bearer {self._key}", "content-type": kind},
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            content: bytes = answer.read()
            return content

    def json(self, method: str, path: str, body: Any = None) -> Any:
        """Send JSON, and return the JSON of the answer."""
        return json.loads(self.ask(method, path, None if body is None else json.dumps(body).encode()))

    def upload(self, data: bytes) -> str:
        """Upload a batch's input, and return its file's id."""
        form = (
            b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
            b'--b\r\nContent-Disposition: form-data; name="file"; filename="in.jsonl"\r\n\r\n%b\r\n--b--\r\n' % data
        )
        file_id: str = json.loads(self.ask("POST", "/files", form, "multipart/form-data; boundary=b"))["id"]
        return file_id

    def start(self, file_id: str) -> str:
        """Create a batch, and return its id."""
        body = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        batch_id: str = self.json("POST", "/batches", body)["id"]
        return batch_id

    def wait(self, batch_id: str, done: Callable[[dict[str, Any]], bool], seconds: float = 300) -> dict[str, Any]:
        """Return a batch once it is as `done` tells; raise RuntimeError if it is not so after so many seconds."""
        deadline = time.monotonic() + seconds
        while True:
            batch: dict[str, Any] = self.json("GET", f"/batches/{batch_id}")
            if done(batch):
                return batch
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"{batch_id} is still {batch['status']} after {seconds} s: {batch['request_counts']}"
                )
            time.sleep(_LOOK_SECONDS)


def _ended(batch: dict[str, Any]) -> bool:
    return batch["status"] in {"completed", "failed", "expired", "cancelled"}


@contextmanager
def _weighing(system: Headrace) -> Iterator[tuple[dict[str, int], threading.Lock]]:
    """Yield the highest resident memory of each part meanwhile, summed over its processes, and a lock.

    Weighing takes a core for a while. It rests while the lock is held, as it would be part of what is measured beside.
    """
    most: dict[str, int] = {}
    stop, weighs = threading.Event(), threading.Lock()
    assert system.tree is not None
    tree = system.tree

    def weigh() -> None:
        while not stop.wait(_WEIGH_SECONDS):
            with weighs:
                for part, processes in tree.parts(system.part).items():
                    if part in {"api", "worker", "batch-worker", "scheduler", "valkey"}:
                        most[part] = max(most.get(part, 0), sum(map(_resident, processes)))

    thread = threading.Thread(target=weigh)
    thread.start()
    try:
        yield most, weighs
    finally:
        stop.set()
        thread.join()


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


def _run(
    system: Headrace, client: Client, count: int, beside: Callable[[], None] | None = None, model: str = "fake"
) -> Run:
    """Run a batch, and other work beside it once its lines run."""
    data = batch_input(count, model)
    with _weighing(system) as (memory, weighs):
        before, began = system.cpu(), time.monotonic()
        file_id = client.upload(data)
        uploaded = time.monotonic() - began
        batch_id = client.start(file_id)
        created = time.monotonic()
        client.wait(batch_id, lambda batch: batch["status"] != "validating")
        validated = time.monotonic() - created
        if beside is not None:
            client.wait(batch_id, lambda batch: batch["request_counts"]["completed"] > 0)
            with weighs:
                beside()
            counts = client.json("GET", f"/batches/{batch_id}")["request_counts"]
            if counts["completed"] >= counts["total"]:
                raise RuntimeError("the batch had ended before what was to be measured beside it")
        batch = client.wait(batch_id, _ended)
        output = client.ask("GET", f"/files/{batch['output_file_id']}/content")
        total, spent = time.monotonic() - began, system.cpu() - before
    return Run(count, output.count(_ANSWER), uploaded, validated, total, spent, memory)


def run_batch(system: Headrace, count: int, model: str = "fake") -> Run:
    """Run one batch of so many lines, alone."""
    return _run(system, Client(system, system.key), count, model=model)


def _interactive(system: Headrace, rounds: int, *, quick: bool) -> list[tuple[float, float]]:
    """Return p50 and p99 of interactive requests, one at a time, in milliseconds, in so many rounds."""
    found = []
    for _ in range(rounds):
        outcome = measure(_INTERACTIVE, system, 0, quick=quick).outcome
        assert outcome is not None
        if outcome.correct < outcome.asked:
            raise RuntimeError(f"{outcome.asked - outcome.correct} of {outcome.asked} interactive answers were wrong")
        found.append((outcome.latency_p50, outcome.latency_p99))
    return found


def _race(system: Headrace, sizes: tuple[int, int]) -> dict[str, float]:
    """Return the ends of two tenants' batches of these sizes; the larger one is submitted first."""
    tenants = [Client(system, system.key), Client(system, system.create_key("second"))]
    files = [tenant.upload(batch_input(size)) for tenant, size in zip(tenants, sizes, strict=True)]
    large = tenants[0].start(files[0])
    tenants[0].wait(large, lambda batch: batch["request_counts"]["completed"] > 0)
    small = tenants[1].start(files[1])
    began = time.monotonic()
    tenants[1].wait(small, _ended)
    first = time.monotonic() - began
    tenants[0].wait(large, _ended)
    return {f"{sizes[1]:,} lines": first, f"{sizes[0]:,} lines": time.monotonic() - began}


def _bare(system: Headrace, count: int) -> float:
    with tempfile.TemporaryDirectory() as home:
        source, target = Path(home) / "in.jsonl", Path(home) / "out.jsonl"
        source.write_bytes(batch_input(count))
        command = [sys.executable, "-m", "bench.bare", str(system.upstream.port), str(source), str(target)]
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
        if len(target.read_text().splitlines()) != count:
            raise RuntimeError("the script with the openai client lost answers")
    return float(done.stdout)


def measure_batches(system: Headrace, *, quick: bool) -> Batches:
    """Run batches of several sizes, alone and beside others; a quick measurement is of a fifth of the lines."""
    part = 5 if quick else 1
    client = Client(system, system.key)
    found = Batches()
    _run(system, client, 200)  # the first batch makes every process load modules, which must not count
    found.runs["small"] = _run(system, client, _SMALL)
    found.runs["whole"] = _run(system, client, _LINES // part)
    found.bare_lines = _BARE_LINES // part
    found.bare_seconds = _bare(system, found.bare_lines)
    rounds = 2 if quick else _ROUNDS
    found.alone = _interactive(system, rounds // 2, quick=quick)

    def beside() -> None:
        found.beside = _interactive(system, rounds, quick=quick)

    found.runs["huge"] = _run(system, client, _HUGE // part, beside)
    found.alone += _interactive(system, rounds // 2, quick=quick)
    found.fair = _race(system, (_FAIR[0] // part, _FAIR[1]))
    found.failures = [
        f"{run.answered} of {run.lines} lines answered" for run in found.runs.values() if run.answered != run.lines
    ]
    return found
