"""`python -m bench.storm`: thousands of subscribers, and what a restart of Redis and of the API costs all parts.

Readers follow running jobs from several addresses. Redis is killed and started again. Then the API is killed, and later
stopped; `headrace dev` starts it again. A reader behaves as a browser's: it reconnects with `Last-Event-ID`, after the
time of the last `retry:`. Each checks that it misses no event and gets none twice. Meanwhile a process of its own asks
for `/healthz` and for completions.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import resource
import signal
import statistics
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

import psutil
import psycopg
import uvloop

from bench.batches import Client
from bench.held import Held, connect, hold, request
from bench.systems import Headrace, Upstream
from headrace.dev.data_dir import running_url
from headrace.dev.scratch import scratch_dir
from headrace.dev.valkey import EmbeddedValkey

_MODEL = "fake-s2000-p5000"
# Seconds between two words of that model.
_PACE = 5.0
# Seconds that a reader waits before it reconnects if the server has not said how long: Chrome's.
_RETRY_SECONDS = 3.0
_OPEN_SECONDS = 240.0
_LIVE_SECONDS = 180.0
_EVENT_ID = re.compile(rb"^id: (\d+)-(\d+)$", re.MULTILINE)
_RETRY = re.compile(rb"^retry: (\d+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Phase:
    """What happened from a restart until every reader was live again."""

    title: str
    away: float
    """Seconds until `/healthz` was answered again."""
    connected: float
    """Seconds until every reader had an answer again."""
    seconds: float
    """Until every reader had an event that was sent after the restart; words come every five seconds."""
    live: int
    statements: int
    """Transactions of Postgres beyond those of the same time before, of all parts."""
    cpu: float
    """CPU seconds of the API, its start included."""
    peak: int
    """The most resident memory of the API, in bytes."""
    refused: dict[str, int]
    """Answers other than 200, by status."""
    healthz: str
    completions: str


@dataclass
class Storm:
    """What was measured."""

    subscribers: int
    jobs: int
    opened: int = 0
    opening: float = 0.0
    each: float = 0.0
    """KB of the API for each reader."""
    phases: list[Phase] = field(default_factory=list)
    missed: int = 0
    """Events that a reader missed or got twice."""

    def markdown(self) -> str:
        """Return the tables."""
        columns = (
            "",
            "/healthz after, s",
            "all connected after, s",
            "live again",
            "after, s",
            "statements a reader",
            "API's CPU a reader, ms",
            "API's peak, MB",
            "other answers",
            "/healthz then, ms",
            "a completion, ms",
        )
        opened = f"{self.opened:,} of {self.subscribers:,} readers of {self.jobs:,} running jobs"
        lines = [
            f"{opened}, in {self.opening:.1f} s, {self.each:.1f} KB each; events missed or twice: {self.missed}",
            "",
            f"| {' | '.join(columns)} |",
            "| --- |" + " ---: |" * 7 + " --- |" * 3,
        ]
        for phase in self.phases:
            refused = ", ".join(f"{status}: {number}" for status, number in phase.refused.items()) or "none"
            cells = (
                phase.title,
                f"{phase.away:.1f}",
                f"{phase.connected:.1f}",
                f"{phase.live:,}",
                f"{phase.seconds:.1f}",
                f"{phase.statements / self.subscribers:.1f}",
                f"{1000 * phase.cpu / self.subscribers:.2f}",
                f"{phase.peak / 1e6:.0f}",
                refused,
                phase.healthz,
                phase.completions,
            )
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)


class Reader(Held):
    """A browser's event source: it reconnects, and goes on after the last event that it has."""

    storm = asyncio.Event()
    """Set once readers reconnect."""

    def __init__(self) -> None:
        super().__init__()
        self.path = ""
        self.number = 0
        self.last = (0, -1)
        self.heard = self.opened = 0.0
        self.retry = _RETRY_SECONDS
        self.missed = 0
        self.refused: Counter[str] = Counter()
        self.left = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to read anew."""
        super().connection_made(transport)
        self.ok = False
        self.left.clear()

    def connection_lost(self, exc: Exception | None) -> None:
        """Have the reader reconnect."""
        super().connection_lost(exc)
        self.left.set()

    def data_received(self, data: bytes) -> None:
        """Take events, each of which comes whole in one piece, and check their numbers."""
        if data.startswith(b"HTTP/1.1 ") and not data.startswith(b"HTTP/1.1 200"):
            self.refused[data[9:12].decode()] += 1
            self.close()
            return
        if data.startswith(b"HTTP/1.1 200"):
            self.opened = time.monotonic()
        super().data_received(data)
        for milliseconds in _RETRY.findall(data):
            self.retry = int(milliseconds) / 1000
        for attempt, seq in _EVENT_ID.findall(data):
            event = (int(attempt), int(seq))
            follows = event[1] == self.last[1] + 1 if event[0] == self.last[0] else event[1] == 0
            self.missed += not follows
            self.last, self.heard = event, time.monotonic()

    async def keep_reading(self, system: Headrace) -> None:
        """Reconnect whenever the connection is lost, until cancelled."""
        while True:
            await self.left.wait()
            await asyncio.sleep(self.retry)
            headers = {"last-event-id": f"{self.last[0]}-{self.last[1]}"} if self.last[1] >= 0 else None
            try:
                await connect(system.port, self.number, self)
            except OSError:
                continue
            assert self.transport is not None
            self.transport.write(request(system, "GET", self.path, headers=headers))


class _Probe:
    """A process that asks for `/healthz` and for completions, and prints how long each took."""

    def __init__(self, system: Headrace) -> None:
        command = [sys.executable, "-m", "bench.storm", "--probe", str(system.port), system.key]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)

    def stop(self, since: float) -> tuple[float, str, str]:
        """End it. Returns when the API was first healthy again after `since`, and summaries from then on."""
        self._process.send_signal(signal.SIGTERM)
        output, _ = self._process.communicate(timeout=60)
        took: dict[str, list[float]] = {"healthz": [], "completion": []}
        failed: Counter[str] = Counter()
        healthy = 0.0
        for line in output.splitlines():
            name, began, seconds, status = line.split()
            ended = float(began) + float(seconds)
            if not healthy and name == "healthz" and status == "200" and ended > since:
                healthy = ended
            elif healthy and float(began) >= healthy:
                took[name].append(float(seconds))
                failed[name] += status != "200"
        return (
            healthy - since,
            _summary(took["healthz"], failed["healthz"]),
            _summary(took["completion"], failed["completion"]),
        )


def _summary(seconds: list[float], failed: int) -> str:
    if not seconds:
        return "none asked"
    text = f"median {1000 * statistics.median(seconds):.0f}, worst {1000 * max(seconds):.0f}"
    return f"{text}, {failed} of {len(seconds)} without an answer" if failed else text


def _probe(port: int, key: str) -> None:
    """Ask and print until a signal ends the process."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    body = json.dumps({"model": "fake", "messages": [{"role": "user", "content": "hi"}]}).encode()
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    base = f"http://127.0.0.1:{port}"

    def ask(name: str, asked: urllib.request.Request) -> None:
        while True:
            began, status = time.monotonic(), 0
            try:
                with urllib.request.urlopen(asked, timeout=30) as answer:
                    answer.read()
                    status = answer.status
            except urllib.error.HTTPError as error:
                status = error.code
            except OSError:
                pass
            print(name, began, time.monotonic() - began, status, flush=True)
            time.sleep(0.25)

    completion = urllib.request.Request(f"{base}/v1/chat/completions", body, headers)
    threading.Thread(target=ask, args=("completion", completion), daemon=True).start()
    ask("healthz", urllib.request.Request(f"{base}/healthz"))


class _Measurement:
    def __init__(self, system: Headrace, found: Storm) -> None:
        self.system = system
        self.found = found
        self.readers: list[Reader] = []
        self._postgres = psycopg.connect(running_url(system.data_dir / "postgres"), autocommit=True)

    def api(self) -> list[psutil.Process]:
        assert self.system.tree is not None
        return self.system.tree.parts(self.system.part).get("api", [])

    def resident(self) -> int:
        size = 0
        for process in self.api():
            with contextlib.suppress(psutil.NoSuchProcess):
                size += int(process.memory_info().rss)
        return size

    def cpu(self) -> float:
        """Return the CPU seconds of the API's present processes."""
        seconds = 0.0
        for process in self.api():
            with contextlib.suppress(psutil.NoSuchProcess):
                seconds += sum(process.cpu_times()[:2])
        return seconds

    def statements(self) -> int:
        query = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()"
        row = self._postgres.execute(query).fetchone()
        assert row is not None
        return int(row[0])

    async def open(self) -> None:
        """Submit the jobs and open the readers."""
        system, found = self.system, self.found
        body = {"request": {"model": _MODEL, "messages": [{"role": "user", "content": "hi"}]}, "timeout": 3600}
        client = Client(system, system.key)
        ids = [(await asyncio.to_thread(client.json, "POST", "/jobs", body))["id"] for _ in range(found.jobs)]
        await asyncio.sleep(_PACE)
        before, began = self.resident(), time.monotonic()
        paths = [f"/jobs/{ids[number % len(ids)]}/events" for number in range(found.subscribers)]
        requests = [request(system, "GET", path) for path in paths]
        held = await hold(system.port, requests, seconds=_OPEN_SECONDS, kind=Reader)
        found.opening = time.monotonic() - began
        self.readers = [reader for reader in held if isinstance(reader, Reader)]
        for number, reader in enumerate(self.readers):
            reader.number, reader.path = number, paths[number]
        await asyncio.sleep(2 * _PACE)
        found.opened = sum(reader.ok and not reader.lost for reader in self.readers)
        found.each = (self.resident() - before) / max(1, found.opened) / 1000

    async def phase(self, title: str, restart: Any) -> None:
        """Restart something, and wait until every reader is live again."""
        usual, began = self.statements(), time.monotonic()
        await asyncio.sleep(2 * _PACE)
        rate = (self.statements() - usual) / (time.monotonic() - began)
        for reader in self.readers:
            reader.refused.clear()
        probe, before, peak = _Probe(self.system), self.statements(), 0
        same, cpu = self.api(), self.cpu()
        await asyncio.sleep(1)
        began = time.monotonic()
        await restart()
        restarted = time.monotonic()
        while True:
            await asyncio.sleep(0.5)
            peak = max(peak, self.resident())
            # An event that was published before the restart may still come just after it.
            live = sum(reader.heard > restarted + 0.5 for reader in self.readers)
            if live == len(self.readers) or time.monotonic() - began > _LIVE_SECONDS:
                break
        seconds = time.monotonic() - began
        cpu = self.cpu() - (cpu if same == self.api() else 0.0)
        connected = max(0.0, max(reader.opened for reader in self.readers) - began)
        away, healthz, completions = await asyncio.to_thread(probe.stop, restarted)
        refused = sum((reader.refused for reader in self.readers), Counter[str]())
        extra = self.statements() - before - rate * (time.monotonic() - began + 1)
        self.found.phases.append(
            Phase(title, away, connected, seconds, live, round(extra), cpu, peak, dict(refused), healthz, completions)
        )
        print(self.found.markdown(), file=sys.stderr, flush=True)

    async def run(self, valkey: EmbeddedValkey) -> None:
        """Measure everything."""
        await self.open()
        keeping = [asyncio.create_task(reader.keep_reading(self.system)) for reader in self.readers]

        async def restart_redis() -> None:
            assert valkey.pid is not None
            psutil.Process(valkey.pid).kill()
            await asyncio.sleep(_PACE)
            valkey.stop()
            valkey.start()

        async def restart_api() -> None:
            for process in self.api():
                process.kill()

        async def stop_api() -> None:
            for process in self.api():
                process.terminate()

        await self.phase("Redis killed, five seconds later back", restart_redis)
        await self.phase("API killed", restart_api)
        await self.phase("API stopped", stop_api)
        self.found.missed = sum(reader.missed for reader in self.readers)
        for task in keeping:
            task.cancel()


def main() -> int:
    """Measure and print; 1 if a reader missed an event, got one twice, or was not live again."""
    parser = argparse.ArgumentParser(prog="python -m bench.storm", description="Restart Redis and the API.")
    parser.add_argument("--subscribers", type=int, default=10_000, metavar="N", help="readers (10000)")
    parser.add_argument("--jobs", type=int, default=500, metavar="N", help="running jobs that they read (500)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--probe", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.probe:
        _probe(int(options.probe[0]), options.probe[1])
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    found = Storm(options.subscribers, options.jobs)
    with scratch_dir() as directory, EmbeddedValkey(directory / "valkey") as valkey, Upstream() as upstream:
        env = {"REDIS_URL": valkey.url, "HEADRACE_WORKER_SLOTS": str(options.jobs + 100)}
        with Headrace(upstream, env=env) as system:
            uvloop.run(_Measurement(system, found).run(valkey))
    print(json.dumps(asdict(found), indent=2) if options.json else found.markdown())
    live = min(phase.live for phase in found.phases)
    return 1 if found.missed or live < found.opened or found.opened < found.subscribers else 0


if __name__ == "__main__":
    sys.exit(main())
