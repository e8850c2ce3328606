"""`python -m bench.memory`: the memory that open requests and waiting jobs take, and its growth under a mixed load.

A mixed load runs for `--minutes`, on processes that have done nothing else and so have no freed memory to fill. Each
request has ids, names and text of its own, so a dictionary that keeps any of them grows. The slope of each process is
that of its memory over the last three quarters, with an interval at 95 % over the medians of eight spans, because two
samples in a row say nearly the same. Then new processes hold streams, jobs that wait, and subscribers, one kind after
the other, and each process's resident memory is compared before and meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import resource
import statistics
import sys
import time
import uuid
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import httpx
import psutil
import redis
import uvloop

from bench.batches import Client
from bench.checkout import build
from bench.held import Held, hold, request
from bench.ratios import student
from bench.systems import Headrace, Upstream
from headrace.dev.data_dir import running_url

_SLOTS = 400
_WAITING = 1000
_SUBSCRIBERS = 2000
_SLOW = "fake-s2000-p10000"
_SETTLE_SECONDS = 3.0
# Seconds between two samples, at most, and the least samples.
_SAMPLE_SECONDS = 5.0
_LEAST_SAMPLES = 64
_SPANS = 8
# The processes whose memory is judged. Postgres fills its shared buffers, as it should.
_JUDGED = ("api", "worker", "batch-worker", "scheduler", "valkey")


@dataclass(frozen=True, slots=True)
class Growth:
    """How a process's memory grew under the load; in bytes, and bytes an hour."""

    first: float
    last: float
    slope: float
    low: float
    high: float


@dataclass
class Memory:
    """What was measured, by part. Sizes are in bytes."""

    fresh: dict[str, int] = field(default_factory=dict)
    each: dict[str, dict[str, float]] = field(default_factory=dict)
    """By kind of held thing: bytes of each in each part."""
    after: dict[str, int] = field(default_factory=dict)
    """After all of these have ended."""
    requests: int = 0
    minutes: float = 0.0
    growth: dict[str, Growth] = field(default_factory=dict)

    def markdown(self) -> str:
        """Return the tables."""
        parts = [part for part in _JUDGED if part in self.fresh]
        lines = [f"| KB each | {' | '.join(parts)} |", f"| --- |{' ---: |' * len(parts)}"]
        for kind, sizes in self.each.items():
            lines.append(f"| {kind} | {' | '.join(f'{sizes.get(part, 0) / 1000:.1f}' for part in parts)} |")
        lines += ["", "| MB | fresh | after these |", "| --- | ---: | ---: |"]
        lines += [f"| {part} | {self.fresh[part] / 1e6:.0f} | {self.after[part] / 1e6:.0f} |" for part in parts]
        if self.growth:
            lines += ["", f"{self.requests:,} requests in {self.minutes:g} minutes of mixed load:", ""]
            lines += [
                "| | first span, MB | last span, MB | KB an hour | 95 % | bytes a request |",
                "| --- |" + " ---: |" * 5,
            ]
        for part in parts if self.growth else ():
            found = self.growth[part]
            each = found.slope * self.minutes / 60 / max(1, self.requests)
            lines.append(
                f"| {part} | {found.first / 1e6:.1f} | {found.last / 1e6:.1f} | {found.slope / 1e3:+,.0f} "
                f"| {found.low / 1e3:+,.0f} to {found.high / 1e3:+,.0f} | {each:+,.0f} |"
            )
        return "\n".join(lines)


def growth(samples: Sequence[tuple[float, float]], spans: int = _SPANS) -> Growth:
    """Return the growth of `(seconds, bytes)` samples: the least squares' line through the medians of equal spans."""
    settled = samples[len(samples) // 4 :]
    size = len(settled) // spans
    points = [settled[number * size : (number + 1) * size] for number in range(spans)]
    times = [statistics.fmean(time for time, _ in span) / 3600 for span in points]
    sizes = [statistics.median(size for _, size in span) for span in points]
    slope, intercept = statistics.linear_regression(times, sizes)
    middle = statistics.fmean(times)
    rest = sum((size - intercept - slope * time) ** 2 for time, size in zip(times, sizes, strict=True))
    error = math.sqrt(rest / (spans - 2) / sum((time - middle) ** 2 for time in times))
    margin = student(spans - 2) * error
    return Growth(sizes[0], sizes[-1], slope, slope - margin, slope + margin)


class _Gauge:
    """Reads the memory of a system's processes."""

    def __init__(self, system: Headrace) -> None:
        self.system = system
        assert system.tree is not None
        self._parts = {part: found for part, found in system.tree.parts(system.part).items() if part in _JUDGED}
        self._redis = redis.Redis.from_url(running_url(system.data_dir / "valkey"))

    def read(self) -> dict[str, int]:
        """Return bytes by part: resident ones, and of Valkey the bytes that it has allocated."""
        sizes = {part: sum(map(_resident, processes)) for part, processes in self._parts.items()}
        memory: Any = self._redis.info("memory")
        return {**sizes, "valkey": int(memory["used_memory"])}


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        raise RuntimeError(f"process {process.pid} has ended") from None


def _chat(model: str, **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "Speak slowly. " * 40}], **fields}


async def _measure_held(gauge: _Gauge, found: Memory, *, share: float) -> None:
    system = gauge.system

    async def settled() -> dict[str, int]:
        await asyncio.sleep(_SETTLE_SECONDS)
        return gauge.read()

    async def open_many(body: dict[str, Any], number: int, *, begun: bool = True) -> list[Held]:
        requests = [request(system, "POST", "/chat/completions", body)] * number
        return await hold(system.port, requests, seconds=60, begun=begun)

    slots, waiting, subscribers = (max(20, int(share * each)) for each in (_SLOTS, _WAITING, _SUBSCRIBERS))
    streamed, whole = _chat(_SLOW, stream=True), _chat(_SLOW)
    for held in await open_many(_chat("fake-s100", stream=True), 50):  # modules are loaded and pools are full
        held.close()
    found.fresh = before = await settled()
    streams = await open_many(streamed, slots)
    job_id = Client(system, system.key).json("GET", "/jobs?status=running&limit=1")["data"][0]["id"]
    now = await settled()
    found.each["running stream"] = _each(before, now, slots)
    filling = await open_many(streamed, _SLOTS - slots)
    before = await settled()
    clients = await open_many(whole, waiting, begun=False)
    found.each["job that waits for a slot, with its client"] = _each(before, await settled(), waiting)
    before = await settled()
    readers = await hold(
        system.port, [request(system, "GET", f"/jobs/{job_id}/events")] * subscribers, seconds=120, begun=True
    )
    found.each["subscriber"] = _each(before, await settled(), subscribers)
    for held in (*readers, *clients, *filling, *streams):
        held.close()
    async with asyncio.timeout(120):
        while Client(system, system.key).json("GET", "/jobs?status=running&limit=1")["data"]:  # noqa: ASYNC110
            await asyncio.sleep(1)
    found.after = await settled()


def _each(before: dict[str, int], after: dict[str, int], number: int) -> dict[str, float]:
    return {part: (after[part] - size) / number for part, size in before.items()}


class _Load:
    """A mixed load at a low rate, in which no two requests name the same thing."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client
        self.sent = 0

    async def run(self, every: float, one: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Send one kind of request every few seconds, until cancelled."""
        while True:
            began = time.monotonic()
            self.sent += 1
            await one()
            await asyncio.sleep(max(0.0, began + every - time.monotonic()))

    async def _post(self, path: str, body: Any) -> Any:
        unique = uuid.uuid4().hex
        headers = {"traceparent": f"00-{unique}-{unique[:16]}-01", "x-request-id": unique, "idempotency-key": unique}
        answer = await self.client.post(path, json=body, headers=headers)
        answer.raise_for_status()
        return answer.json()

    def _body(self, **fields: Any) -> dict[str, Any]:
        unique = uuid.uuid4().hex
        body = _chat(f"fake-s{1 + int(unique[:2], 16)}", user=unique, metadata={"customer": unique}, **fields)
        body["messages"][0]["content"] += unique
        return body

    async def whole(self) -> None:
        """Ask for a completion as a whole."""
        await self._post("/chat/completions", self._body())

    async def streamed(self) -> None:
        """Read a stream to its end."""
        async with self.client.stream("POST", "/chat/completions", json=self._body(stream=True)) as answer:
            await answer.aread()

    async def left(self) -> None:
        """Leave in the middle of a stream."""
        async with self.client.stream(
            "POST", "/chat/completions", json=_chat("fake-s2000-p100", stream=True)
        ) as answer:
            async for _ in answer.aiter_bytes():
                break

    async def job(self) -> None:
        """Submit a job, follow its events and erase it."""
        job = await self._post("/jobs", {"request": self._body()})
        async with self.client.stream("GET", f"/jobs/{job['id']}/events") as answer:
            await answer.aread()
        await self.client.delete(f"/jobs/{job['id']}")

    async def response(self) -> None:
        """Ask for a streamed response in the background."""
        body = {"model": "fake-s20", "input": uuid.uuid4().hex, "background": True, "stream": True}
        async with self.client.stream("POST", "/responses", json=body) as answer:
            await answer.aread()

    async def key(self) -> None:
        """Use a key once, and revoke it."""
        key = await self._post("/api-keys", {"name": uuid.uuid4().hex})
        headers = {"authorization": f"Bearer {key['key']}"}
        await self.client.post("/chat/completions", json=self._body(), headers=headers)
        await self.client.delete(f"/api-keys/{key['id']}")

    async def refused(self) -> None:
        """Send what is refused."""
        unique = uuid.uuid4().hex
        await self.client.get(f"/jobs/job_{unique}")
        await self.client.get(f"/{unique}", headers={"authorization": f"Bearer sk-{unique}"})
        await self.client.post("/chat/completions", json=_chat(f"no-{unique}"))

    async def batch(self) -> None:
        """Run a batch of 50 lines."""
        lines = [{"custom_id": str(number), "body": self._body()} for number in range(50)]
        await self._post("/batches", {"endpoint": "/v1/chat/completions", "requests": lines})


async def _measure_growth(gauge: _Gauge, found: Memory, minutes: float, keep: Callable[[str], object]) -> None:
    system = gauge.system
    headers = {"authorization": f"Bearer {system.key}"}
    samples: dict[str, list[tuple[float, float]]] = {}
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{system.port}/api/v1", headers=headers, timeout=60
    ) as client:
        load = _Load(client)
        kinds = {load.whole: 0.4, load.streamed: 0.6, load.left: 2, load.job: 1, load.response: 2, load.key: 3}
        tasks = [asyncio.create_task(load.run(every, one)) for one, every in kinds.items()]
        tasks += [asyncio.create_task(load.run(every, one)) for one, every in {load.refused: 3, load.batch: 30}.items()]
        began = time.monotonic()
        while (now := time.monotonic() - began) < 60 * minutes:
            sizes = gauge.read()
            keep(json.dumps({"seconds": round(now, 1), **sizes}) + "\n")
            for part, size in sizes.items():
                samples.setdefault(part, []).append((now, size))
            await asyncio.wait(
                tasks, timeout=min(_SAMPLE_SECONDS, 60 * minutes / _LEAST_SAMPLES), return_when=asyncio.FIRST_COMPLETED
            )
            for task in tasks:
                if task.done():
                    task.result()  # a load that ends has failed
        for task in tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks)
    found.requests, found.minutes = load.sent, minutes
    found.growth = {part: growth(measured) for part, measured in samples.items()}


def main() -> int:
    """Measure and print; 1 if a worker has more than twice the memory of a fresh one."""
    parser = argparse.ArgumentParser(prog="python -m bench.memory", description="Measure memory held, and its growth.")
    parser.add_argument("--minutes", type=float, default=0, help="minutes of mixed load (0)")
    parser.add_argument(
        "--samples", type=argparse.FileType("w", 1), help="write each sample of the growth to this file"
    )
    parser.add_argument("--quick", action="store_true", help="hold a tenth as many requests")
    parser.add_argument("--revision", help="measure this tag, branch or commit of Headrace")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    found, checkout = Memory(), build(options.revision) if options.revision else None
    with Upstream() as upstream:
        if options.minutes:
            with Headrace(upstream, checkout) as system:
                keep = options.samples.write if options.samples else str
                uvloop.run(_measure_growth(_Gauge(system), found, options.minutes, keep))
        with Headrace(upstream, checkout, env={"HEADRACE_WORKER_SLOTS": str(_SLOTS)}) as system:
            uvloop.run(_measure_held(_Gauge(system), found, share=0.1 if options.quick else 1))
    print(json.dumps(asdict(found), indent=2) if options.json else found.markdown())
    grown = [part for part in found.after if "worker" in part and found.after[part] > 2 * found.fresh[part]]
    for part in grown:
        print(f"{part}: more than twice the memory of a fresh one", file=sys.stderr)
    return 1 if grown else 0


if __name__ == "__main__":
    sys.exit(main())
