"""Faults of the hosts, one after another, and the requests that run meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import psycopg

from tests.fakes.provider import Exchange
from tests.faults.chaos.load import Load
from tests.faults.chaos.plan import PROVIDER_LINK, SCHEDULERS, WORKERS
from tests.faults.chaos.upstreams import GOOD, _Unhurried
from tests.hosts.rig import HostsRig
from tests.waiting import until

# Longer than a lease, so that its owner must lose it.
_LONG_SECONDS = 16.0
_SECONDS = 10.0
_REQUESTS = 40
_SETTLE_SECONDS = 4.0
# Jobs that outlive a lease, the seconds between two of their words, and those that they are waited for.
_LONG_JOBS = 6
_PIECE_SECONDS = 3.0
_PATIENCE_SECONDS = 90.0


@dataclass(slots=True)
class Shown:
    """What a scenario showed."""

    name: str
    seconds: float
    told: Counter[str]
    """What all clients were told meanwhile."""
    figures: dict[str, str] = field(default_factory=dict)


class Scenarios:
    """All scenarios, on one rig. Each breaks one thing, mends it and lets the rest settle."""

    def __init__(self, rig: HostsRig, probe: Load, account: str) -> None:
        """`probe` is what scenarios ask through, as an account of its own; all clients share its notes."""
        self._rig = rig
        self._probe = probe
        self._account = account
        self.shown: list[Shown] = []
        self.wrong: list[str] = []

    def run(self) -> None:
        """Run all of them, in turn."""
        rig, network = self._rig, self._rig.network
        both = ("worker-1", "provider"), ("provider", "worker-1")
        scenarios: Sequence[tuple[str, str, Callable[[], Mapping[str, str]]]] = (
            ("worker-1 without Postgres", "worker-postgres", lambda: self._cut("worker-1", "virtual", _LONG_SECONDS)),
            ("both workers without Postgres", "worker-postgres", self._without_postgres),
            ("worker-1 without Redis", "worker-redis", lambda: self._cut("worker-1", "redis", _SECONDS)),
            ("api without Redis", "api-redis", self._api_without_redis),
            ("worker-1's calls are lost", PROVIDER_LINK, lambda: self._requests(both[:1])),
            ("answers to worker-1 are lost", PROVIDER_LINK, lambda: self._requests(both[1:])),
            ("worker-1 without the provider", PROVIDER_LINK, lambda: self._requests(both)),
            ("the leading scheduler without Postgres", "scheduler-postgres", self._leader_cut_off),
            ("worker-2's host is lost", "worker-2", self._lost_host),
            ("a failover of Postgres", "postgres", self._failover),
        )
        for name, target, scenario in scenarios:
            began, before = time.monotonic(), Counter(self._probe.notes.statuses)
            with rig.happening(name, target):
                try:
                    figures = scenario()
                finally:
                    network.mend()
                time.sleep(_SETTLE_SECONDS)
            told = Counter(self._probe.notes.statuses) - before
            self.shown.append(Shown(name, time.monotonic() - began, told, dict(figures)))
            rig._look_after(rig.service.processes.keys())

    # -- scenarios ----------------------------------------------------------------------------------------------------

    def _cut(self, host: str, other: str, seconds: float) -> Mapping[str, str]:
        self._drop((host, other), (other, host))
        time.sleep(seconds)
        return {}

    def _without_postgres(self) -> Mapping[str, str]:
        """Jobs that take longer than a lease end well, once, when their workers lose Postgres and live on."""
        rig = self._rig

        async def long(exchange: Exchange) -> None:
            await rig.upstreams._answer(exchange.call)(_Unhurried(exchange, _PIECE_SECONDS))

        rig.provider.script(GOOD[0].name, *[long] * _LONG_JOBS)
        job_ids = asyncio.run(self._submit(rig.urls[0], _LONG_JOBS, every_seconds=0))
        self._waits(job_ids)
        for worker in WORKERS:
            self._drop((worker, "virtual"), ("virtual", worker))
        time.sleep(_LONG_SECONDS)
        rig.network.mend()
        with psycopg.connect(rig.database_url, autocommit=True) as connection:
            query = "SELECT state, attempt, finished_at FROM jobs WHERE id = ANY(%s)"
            until(
                lambda: all(row[2] for row in connection.execute(query, [job_ids]).fetchall()),
                "long jobs to end",
                _PATIENCE_SECONDS,
            )
            rows = connection.execute(query, [job_ids]).fetchall()
            kept = connection.execute("SELECT kind FROM usage WHERE job_id = ANY(%s)", [job_ids]).fetchall()
        if {row[0] for row in rows} != {"completed"}:
            self.wrong.append(f"jobs of workers that lost Postgres and lived: {rows}")
        return {
            "long jobs": _listed(Counter(row[0] for row in rows)),
            "their attempts": str(sum(row[1] for row in rows)),
            "their usage": _listed(Counter(row[0] for row in kept)),
        }

    def _api_without_redis(self) -> Mapping[str, str]:
        """Jobs of an API that alone has lost Redis start with the next sweep."""
        self._drop(("api", "redis"), ("redis", "api"))
        job_ids = asyncio.run(self._submit(self._rig.url("api"), 20, every_seconds=0.4))
        waits = self._waits(job_ids)
        return {"wait for a worker, median": f"{waits[len(waits) // 2]:.2f} s", "worst": f"{waits[-1]:.2f} s"}

    def _requests(self, lost: Sequence[tuple[str, str]]) -> Mapping[str, str]:
        """Requests that clients wait for go well while one worker of two cannot reach the provider."""
        self._drop(*lost)
        statuses, worst = asyncio.run(self._ask(_REQUESTS))
        if statuses != {200: _REQUESTS}:
            self.wrong.append(f"requests beside a worker without the provider: {dict(statuses)}")
        return {"requests": _listed(statuses), "slowest": f"{worst:.1f} s"}

    def _leader_cut_off(self) -> Mapping[str, str]:
        """The standby leads soon after the leader is cut off, and rescues what is lost."""
        leader = until(self._rig.leader, "a scheduler to lead", 30)
        self._drop((leader, "virtual"), ("virtual", leader))
        began = time.monotonic()
        [other] = set(SCHEDULERS) - {leader}
        until(lambda: self._rig.leader() == other, f"{other} to lead", 30)
        return {"the standby leads after": f"{time.monotonic() - began:.1f} s"}

    def _lost_host(self) -> Mapping[str, str]:
        """Jobs of a worker whose host is gone run elsewhere."""
        rig = self._rig
        with psycopg.connect(rig.database_url) as connection:
            found = connection.execute(
                "SELECT id FROM jobs WHERE state = 'running' AND split_part(worker, ':', 2) = %s",
                [str(rig.service.processes["worker-2"].pid)],
            ).fetchall()
            rig.lose("worker-2")
            began = time.monotonic()
            held = "SELECT count(*) FROM jobs WHERE id = ANY(%s) AND state = 'running' AND lost = 0"
            until(
                lambda: connection.execute(held, [[row[0] for row in found]]).fetchone() == (0,),
                "its jobs to be rescued",
                30,
            )
        rescued = time.monotonic() - began
        rig.network.plug("worker-2")
        rig.launch("worker-2")
        return {"its jobs": str(len(found)), "rescued after": f"{rescued:.1f} s"}

    def _failover(self) -> Mapping[str, str]:
        """Both APIs and both workers work again soon after the virtual address is the new primary's."""
        self._rig.fail_over()
        began = time.monotonic()
        figures = {}
        for api, url in zip(("api", "api-2"), self._rig.urls, strict=True):
            job_ids = asyncio.run(self._submit(url, 1, every_seconds=0))
            figures[f"{api} accepts after"] = f"{time.monotonic() - began:.1f} s"
            self._waits(job_ids)
        return figures

    # -- asking -------------------------------------------------------------------------------------------------------

    def _drop(self, *ways: tuple[str, str]) -> None:
        for source, destination in ways:
            self._rig.network.drop(source, destination)

    async def _submit(self, url: str, count: int, *, every_seconds: float) -> list[str]:
        """Submit background jobs to one API, and return their ids."""
        probe = self._probe
        probe._urls = (url,)
        async with httpx.AsyncClient(timeout=30, trust_env=False) as http:
            tasks = []
            for _ in range(count):
                ask = probe._request(probe._mark(self._account), self._account, GOOD[0], background=True)
                tasks.append(asyncio.create_task(probe._submit(http, ask)))
                await asyncio.sleep(every_seconds)
            return [job_id for job_id in await asyncio.gather(*tasks) if job_id is not None]

    async def _ask(self, count: int) -> tuple[Counter[int], float]:
        """Ask for so many whole answers, over both APIs; return the statuses, and the seconds of the slowest."""
        probe = self._probe
        probe._urls = self._rig.urls
        turns = asyncio.Semaphore(8)
        seconds: list[float] = []

        async def ask() -> int:
            async with turns:
                began = time.monotonic()
                response = await probe._post(http, probe._request(probe._mark(self._account), self._account, GOOD[0]))
                seconds.append(time.monotonic() - began)
                return response.status_code

        async with httpx.AsyncClient(timeout=90, trust_env=False) as http:
            statuses = Counter(await asyncio.gather(*(ask() for _ in range(count))))
        return statuses, max(seconds)

    def _waits(self, job_ids: Sequence[str]) -> list[float]:
        """Return how long jobs waited for their first start, in seconds, in order, once each has started."""
        with psycopg.connect(self._rig.database_url, autocommit=True) as connection:

            def started() -> list[float] | None:
                rows = connection.execute(
                    "SELECT extract(epoch FROM started_at - created_at)::float8 FROM jobs WHERE id = ANY(%s)", [job_ids]
                ).fetchall()
                waits = [row[0] for row in rows]
                return None if None in waits or len(waits) < len(job_ids) else sorted(waits)

            return until(started, "jobs to start", 60)


def _listed(counts: Mapping[Any, int]) -> str:
    return ", ".join(f"{count} x {what}" for what, count in sorted(counts.items()))
