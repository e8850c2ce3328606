"""`python -m bench.adaptive`: the adaptive limit before an upstream whose capacity is unknown and changes.

The upstream takes a number of calls at once and answers 429 beyond it; each answer takes 0.5 to 1.5 s. The number
changes: 40, 15, 60 calls, two minutes each. Headrace runs with its two workers and no limit in its configuration. A
batch has more lines than can run, and clients ask one request after the other beside it. The table shows which part of
the upstream's capacity is used, from the batch's first call on, and which part of the calls it refuses.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import threading
import time
import urllib.error
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from bench.batches import Client, batch_input
from bench.systems import Headrace, Upstream
from bench.upstream import whole

CAPACITIES = (40, 15, 60)
SECONDS = 120.0
"""Seconds for which the upstream has each capacity."""
ANSWER_SECONDS = (0.5, 1.5)
"""Seconds that an answer takes: at least, and at most."""
_LINES = 60_000
_CLIENTS = 4
# Seconds between an answer and the next request of a client.
_PAUSE_SECONDS = 0.2
_MODEL = "fake"

_REFUSAL_BODY = b'{"error":{"message":"Too many requests","type":"rate_limit_error","param":null,"code":null}}'
_REFUSAL = b"HTTP/1.1 429 Too Many Requests\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
    len(_REFUSAL_BODY),
    _REFUSAL_BODY,
)


@dataclass(slots=True)
class Phase:
    """What happened while the upstream had one capacity."""

    capacity: int
    calls: int = 0
    refused: int = 0
    used: float = 0.0
    """Seconds of its places that calls took."""
    waits: list[float] = field(default_factory=list)
    """Seconds that clients waited for an answer."""

    def row(self, name: str, seconds: float) -> str:
        """Return the phase's row of the table."""
        waits = sorted(self.waits) or [0.0]
        p50, p95 = (1000 * waits[int(len(waits) * part)] for part in (0.5, 0.95))
        share, used = self.refused / max(1, self.calls), self.used / seconds
        return (
            f"| {name} | {self.calls:,} | {self.refused} | {100 * share:.2f} | {100 * used:.1f} "
            f"| {len(self.waits):,} | {p50:.0f} | {p95:.0f} |"
        )


class LimitedUpstream(Upstream):
    """The upstream, on a loop and a thread of its own."""

    def __init__(
        self, capacities: Sequence[int], seconds: float, *, answer_seconds: tuple[float, float], seed: int
    ) -> None:
        """Start it with the first capacity; the others follow, each after so many seconds, once `begin` is called."""
        self._answer_seconds = answer_seconds
        self.phases = [Phase(capacity) for capacity in capacities]
        self._ends = list(accumulate([seconds] * len(capacities)))
        self._began: float | None = None
        self._at = 0.0
        self._running = 0
        self._dice = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        server = asyncio.run_coroutine_threadsafe(asyncio.start_server(self._serve, "127.0.0.1", 0), self._loop)
        self.port = server.result().sockets[0].getsockname()[1]

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    @property
    def phase(self) -> Phase | None:
        """The present phase; None before the first call and after the last phase."""
        if self._began is None:
            return None
        passed = time.monotonic() - self._began
        return next((phase for phase, end in zip(self.phases, self._ends, strict=True) if passed < end), None)

    def begin(self) -> None:
        """Begin the first phase with the next call."""
        self._loop.call_soon_threadsafe(setattr, self, "_armed", True)

    _armed = False

    def _count(self) -> None:
        """Add the time since the last change to the phase."""
        now, phase = time.monotonic(), self.phase
        if phase is not None:
            phase.used += (now - self._at) * min(self._running, phase.capacity) / phase.capacity
        self._at = now

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                _, found, rest = head.partition(b"content-length:")
                await reader.readexactly(int(rest.split(b"\r\n", 1)[0]) if found else 0)
                writer.write(await self._answer())
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def _answer(self) -> bytes:
        if self._armed and self._began is None:
            self._began = self._at = time.monotonic()
        self._count()
        phase = self.phase
        if phase is not None:
            phase.calls += 1
            if self._running >= phase.capacity:
                phase.refused += 1
                return _REFUSAL
        self._running += 1
        await asyncio.sleep(self._dice.uniform(*self._answer_seconds))
        self._count()
        self._running -= 1
        return whole(_MODEL)


def _ask_on(upstream: LimitedUpstream, client: Client, failures: list[str]) -> None:
    """Ask one request after the other until the last phase has ended."""
    body = {"model": _MODEL, "messages": [{"role": "user", "content": "Hello"}]}
    while (phase := upstream.phase) is not None:
        began = time.monotonic()
        try:
            client.json("POST", "/chat/completions", body)
            phase.waits.append(time.monotonic() - began)
        except urllib.error.HTTPError as error:
            failures.append(f"a client got {error.code}")
        time.sleep(_PAUSE_SECONDS)


def measure(
    capacities: Sequence[int], seconds: float, *, answer_seconds: tuple[float, float], seed: int, lines: int
) -> list[str]:
    """Run the batch and the clients, and return the table and what went wrong."""
    failures: list[str] = []
    with (
        LimitedUpstream(capacities, seconds, answer_seconds=answer_seconds, seed=seed) as upstream,
        Headrace(upstream) as system,
    ):
        client = Client(system, system.key)
        upstream.begin()
        batch_id = client.start(client.upload(batch_input(lines)))
        client.wait(batch_id, lambda _: upstream.phase is not None)
        threads = [
            threading.Thread(target=_ask_on, args=(upstream, Client(system, system.key), failures))
            for _ in range(_CLIENTS)
        ]
        before = system.cpu()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        spent = system.cpu() - before
        counts = client.json("GET", f"/batches/{batch_id}")["request_counts"]
        client.json("POST", f"/batches/{batch_id}/cancel")
    if counts["failed"]:
        failures.append(f"{counts['failed']} lines failed")
    if counts["completed"] + counts["failed"] >= lines:
        failures.append("the batch ended before the last phase did")
    phases = upstream.phases
    whole_capacity = sum(phase.capacity for phase in phases)
    total = Phase(
        0,
        sum(phase.calls for phase in phases),
        sum(phase.refused for phase in phases),
        sum(phase.used * phase.capacity for phase in phases) / whole_capacity,
        [wait for phase in phases for wait in phase.waits],
    )
    return [
        "| capacity | calls | refused | % | used, % | answers to clients | p50, ms | p95, ms |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        *(phase.row(str(phase.capacity), seconds) for phase in phases),
        total.row("all", seconds),
        "",
        f"The upstream's answers take {1000 * statistics.mean(answer_seconds):.0f} ms on average. CPU a second, ms: "
        + ", ".join(
            f"{part} {1000 * cpu / seconds / len(phases):.0f}" for part, cpu in (spent.own | spent.stores).items()
        ),
        *failures,
    ]


def main() -> None:
    """Run the measurement and print its table."""
    parser = argparse.ArgumentParser(prog="python -m bench.adaptive", description="Measure the adaptive limit.")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="how long each capacity lasts (120)")
    parser.add_argument("--lines", type=int, default=_LINES, help="lines of the batch, more than can run (60000)")
    parser.add_argument("--capacities", default=",".join(map(str, CAPACITIES)), help="calls at once (40,15,60)")
    parser.add_argument("--answers", default=",".join(map(str, ANSWER_SECONDS)), help="seconds of an answer (0.5,1.5)")
    parser.add_argument("--seed", type=int, default=7, help="of the times that answers take (7)")
    options = parser.parse_args()
    capacities = [int(capacity) for capacity in options.capacities.split(",")]
    shortest, longest = map(float, options.answers.split(","))
    table = measure(
        capacities, options.seconds, answer_seconds=(shortest, longest), seed=options.seed, lines=options.lines
    )
    print("\n".join(table), flush=True)


if __name__ == "__main__":
    main()
