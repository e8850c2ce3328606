"""The cost of an idle subscriber: thousands of `GET …/jobs/{id}/events` on one job with a delta every ten seconds."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict, dataclass, replace
from typing import cast

import psutil
import uvloop

from bench.batches import Client
from bench.held import Held, hold, request
from bench.systems import Headrace

MODEL = "fake-s2000-p10000"
"""A word every ten seconds for hours, by which each subscriber shows that it is connected."""

GOAL_KB = 20
"""Kilobytes of 1,000 bytes that a subscriber may cost."""

_OPEN_SECONDS = 120
_SETTLE_SECONDS = 2


@dataclass(frozen=True, slots=True)
class Subscribers:
    """The API's resident memory before, with, and after `opened` subscribers; sizes in bytes."""

    asked: int
    opened: int
    reached: int
    """The subscribers that got an event sent after all had subscribed."""
    opening: float
    """Seconds from the first connection until every subscriber had its first event, replayed."""
    before: int
    during: int
    after: int
    cpu_milliseconds: float
    """The API's CPU a second while they idle, deltas to all of them included."""
    deaf: str = ""
    """What went wrong after the subscribers disconnected, if anything did."""

    @property
    def each(self) -> float:
        """KB a subscriber."""
        return (self.during - self.before) / max(1, self.opened) / 1000

    def json(self) -> dict[str, object]:
        """Return the measurement as JSON's types."""
        return {**asdict(self), "kb_each": self.each}

    def markdown(self) -> list[str]:
        """Return a table of one line."""
        sizes = [f"{size / 1e6:.0f}" for size in (self.before, self.during, self.after)]
        columns = {
            "subscribers": f"{self.asked:,}",
            "open": f"{self.opened:,}",
            "opened in, s": f"{self.opening:.1f}",
            "reached by an event": f"{self.reached:,}",
            "API before, with, after, MB": ", ".join(sizes),
            "KB each": f"{self.each:.1f}",
            "goal": f"≤ {GOAL_KB} {'✓' if self.each <= GOAL_KB else '✗'}",
            "CPU a second, ms": f"{self.cpu_milliseconds:.0f}",
        }
        rows = (columns, ["---:"] * len(columns), columns.values())
        return [f"| {' | '.join(row)} |" for row in rows]


class Subscriber(Held):
    """One event stream, of which only the number of deltas is kept. It has begun with the first one."""

    def __init__(self) -> None:
        super().__init__()
        self.deltas = 0

    def data_received(self, data: bytes) -> None:
        """Note that the stream was accepted, and count deltas; an event comes whole in one piece."""
        self.ok = self.ok or data.startswith(b"HTTP/1.1 200")
        self.deltas += data.count(b"event: job.delta")
        if self.deltas:
            self.begun.set()


def _memory(processes: list[psutil.Process]) -> int:
    return sum(int(process.memory_info().rss) for process in processes)


def measure_subscribers(system: Headrace, count: int) -> Subscribers:
    """Open `count` subscribers on a running job and measure the API's memory; the job is cancelled at the end."""
    message = {"role": "user", "content": "Speak slowly."}
    client = Client(system, system.key)
    job = client.json("POST", "/jobs", {"request": {"model": MODEL, "messages": [message]}, "timeout": 3600})
    try:
        measured = uvloop.run(_measure(system, job["id"], count))
    finally:
        try:
            client.json("POST", f"/jobs/{job['id']}/cancel", {})
            deaf = ""
        except OSError as error:
            deaf = f"after {count} subscribers had left, the job could not be cancelled: {error}"
    return replace(measured, deaf=deaf)


async def _measure(system: Headrace, job: str, count: int) -> Subscribers:
    assert system.tree is not None
    api = system.tree.parts(system.part)["api"]
    events = request(system, "GET", f"/jobs/{job}/events", headers={"accept": "text/event-stream"})

    async def open_many(number: int) -> list[Subscriber]:
        held = await hold(system.port, [events] * number, seconds=_OPEN_SECONDS, kind=Subscriber)
        return cast("list[Subscriber]", held)

    async def close(subscribers: list[Subscriber]) -> None:
        for subscriber in subscribers:
            subscriber.close()
        await asyncio.sleep(_SETTLE_SECONDS)

    # The first subscribers make the API load modules and grow pools, which must not count.
    await close(await open_many(50))
    before = _memory(api)
    start = time.monotonic()
    subscribers = await open_many(count)
    opening = time.monotonic() - start
    await asyncio.sleep(_SETTLE_SECONDS)
    seen = {subscriber: subscriber.deltas for subscriber in subscribers}
    cpu, start = sum(sum(process.cpu_times()[:2]) for process in api), time.monotonic()
    await asyncio.sleep(11)
    cpu = (sum(sum(process.cpu_times()[:2]) for process in api) - cpu) / (time.monotonic() - start)
    during = _memory(api)
    opened = sum(subscriber.ok and not subscriber.lost for subscriber in subscribers)
    reached = sum(subscriber.deltas > number for subscriber, number in seen.items())
    await close(subscribers)
    return Subscribers(count, opened, reached, opening, before, during, _memory(api), 1000 * cpu)
