"""Reads the state of the deployment for `GET /status`: rows of Postgres, and what processes tell in Redis."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from redis.asyncio import Redis
from sqlalchemy.exc import SQLAlchemyError

import headrace
from headrace.batches.batch_object import render_progress
from headrace.batches.queries import list_latest_active
from headrace.catalogue.file import CatalogueFile
from headrace.catalogue.models import Provider
from headrace.formats.chat.support import FORMAT_OF
from headrace.jobs.sql.depth import Depth, read_depths, read_running
from headrace.queue import TIERS
from headrace.runtime.chores import rest_after
from headrace.runtime.fresh import Fresh
from headrace.runtime.presence import EVERYONE, Presence, Worker, read_presence
from headrace.stores.connections import Row
from headrace.stores.database import Database
from headrace.stores.redis import REDIS_UNAVAILABLE
from headrace.telemetry.rates import KINDS, Slot, read_slots

log = logging.getLogger(__name__)

# Queued jobs of a tier, and running jobs, that an answer counts itself.
_MOST_COUNTED = 10_000
# Seconds between two counts of a longer queue.
_COUNT_SECONDS = 5.0
# Batches and running jobs that an answer names.
_BATCHES = 10
_JOBS = 10


class Overview:
    """The state of the deployment, read at most once a second, by one reader at a time."""

    def __init__(self, database: Database, redis: Redis, file: CatalogueFile) -> None:
        """Read nothing yet: `read` does."""
        self._database = database
        self._redis = redis
        self._file = file
        self._queues = LongQueues(database)
        self._fresh = Fresh(self._look)

    async def read(self) -> dict[str, Any]:
        """Return the document of `GET /status`, which may be a second old."""
        return await self._fresh.get()

    async def _look(self) -> dict[str, Any]:
        rows, told = await asyncio.gather(self._from_postgres(), self._from_redis())
        presence = None if told is None else told["presence"]
        return {
            "object": "status",
            "at": time.time(),
            "version": headrace.__version__,
            "stores": {"postgres": _state(rows), "redis": _state(told)},
            "queues": None if rows is None else rows["queues"],
            "rates": None if told is None else told["rates"],
            "workers": None if presence is None else [_worker(worker) for worker in presence.workers],
            "scheduler": None if presence is None else _scheduler(presence),
            "providers": [
                _provider(name, provider, presence) for name, provider in self._file.current.providers.items()
            ],
            "batches": None if rows is None else rows["batches"],
            "slowest_jobs": None if rows is None else rows["slowest_jobs"],
        }

    async def _from_postgres(self) -> dict[str, Any] | None:
        """Return what Postgres holds, or None while it is unavailable."""
        try:
            depths, running, batches = await asyncio.gather(
                self._queues.read(),
                read_running(self._database, most=_MOST_COUNTED, first=_JOBS),
                list_latest_active(self._database, limit=_BATCHES),
            )
        except SQLAlchemyError as error:
            log.warning("the status leaves out Postgres, which is unavailable: %s", error)
            return None
        queues = [
            {
                "tier": depth.tier,
                "queued": depth.jobs,
                "exact": exact,
                "running": running.tiers.get(depth.tier, 0),
                "oldest_seconds": round(depth.oldest_seconds, 3),
            }
            for depth, exact in depths
        ]
        return {"queues": queues, "batches": [_batch(row) for row in batches], "slowest_jobs": running.first}

    async def _from_redis(self) -> dict[str, Any] | None:
        """Return what Redis holds, or None while it is unavailable."""
        try:
            presence, (slots, seconds) = await asyncio.gather(read_presence(self._redis), read_slots(self._redis))
        except REDIS_UNAVAILABLE as error:
            log.warning("the status leaves out Redis, which is unavailable: %s", error)
            return None
        return {"presence": presence, "rates": _rates(slots, seconds)}


class LongQueues:
    """Counts queues: at once up to `most` jobs of a tier, and longer ones in a task that no answer waits for."""

    def __init__(self, database: Database, *, most: int = _MOST_COUNTED) -> None:
        """Count nothing yet."""
        self._database = database
        self._most = most
        self._counted: dict[str, int] = {}
        """The last whole count of each tier."""
        self._counting: asyncio.Task[None] | None = None
        self._next_at = -math.inf

    async def read(self) -> list[tuple[Depth, bool]]:
        """Return the queue of each tier, and whether it was counted just now."""
        depths = await read_depths(self._database, TIERS, most=self._most)
        if any(depth.jobs == self._most for depth in depths) and time.monotonic() >= self._next_at:
            self._next_at = math.inf
            self._counting = asyncio.create_task(self._count())
        return [
            (depth, True)
            if depth.jobs < self._most
            else (Depth(depth.tier, max(depth.jobs, self._counted.get(depth.tier, 0)), depth.oldest_seconds), False)
            for depth in depths
        ]

    async def _count(self) -> None:
        began = time.monotonic()
        try:
            self._counted = {depth.tier: depth.jobs for depth in await read_depths(self._database, TIERS)}
        except SQLAlchemyError as error:
            log.debug("could not count the queues: %s", error)
        finally:
            ended = time.monotonic()
            self._next_at = ended + max(_COUNT_SECONDS, rest_after(ended - began))


def _state(read: object | None) -> str:
    return "unavailable" if read is None else "ok"


def _worker(worker: Worker) -> dict[str, Any]:
    about = worker.view.about
    host, _, rest = worker.name.rpartition(":")[0].rpartition(":")
    return {
        "name": worker.name,
        "host": host if about is None else about.host,
        "pid": int(rest) if about is None else about.pid,
        "tiers": list(worker.view.tiers),
        "slots": None if about is None else about.slots,
        "running": None if about is None else about.running,
        "draining": False if about is None else about.draining,
        "started_at": None if about is None else about.started_at,
        "seen_at": worker.seen_at,
        "version": None if about is None else about.version,
    }


def _scheduler(presence: Presence) -> dict[str, Any]:
    leader = presence.leader
    return {"leader": None if leader is None else leader.name, "since": None if leader is None else leader.since}


def _provider(name: str, provider: Provider, presence: Presence | None) -> dict[str, Any]:
    limits = ("max_concurrency", "requests_per_minute", "tokens_per_minute")
    return {
        "name": name,
        "format": FORMAT_OF[provider.kind],
        **_reported_by_workers(name, presence),
        "limits": {limit: getattr(provider, limit) for limit in limits},
    }


def _reported_by_workers(name: str, presence: Presence | None) -> dict[str, Any]:
    """Return what workers report about their paths to a provider."""
    if presence is None:
        names = ("circuit", "open_on", "failing_on", "open_accounts", "paused_for", "paused_routes", "running")
        return dict.fromkeys((*names, "adaptive_limits", "calls", "errors"))
    views = [worker.view for worker in presence.workers]
    is_open = [view for view in views if EVERYONE in view.open.get(name, ())]
    probing = [view for view in is_open if name in view.probing]
    calls = [view.calls[name] for view in views if name in view.calls]
    pauses = {
        route: round(seconds, 3)
        for route, seconds in presence.pauses.items()
        if route == name or route.startswith(f"{name}/")
    }
    # A worker that has just cut a limit knows it before the others.
    adaptive: dict[str, int] = {}
    for route, limit in (each for view in views for each in view.limits.items() if each[0].startswith(f"{name}/")):
        adaptive[route] = min(limit, adaptive.get(route, limit))
    return {
        "circuit": "closed" if not is_open else "probing" if len(probing) == len(is_open) else "open",
        "open_on": len(is_open),
        "failing_on": sum(EVERYONE in view.failing.get(name, ()) for view in views),
        "open_accounts": len({key for view in views for key in view.open.get(name, ())} - {EVERYONE}),
        "paused_for": max(pauses.values(), default=None),
        "paused_routes": [{"route": route, "seconds": seconds} for route, seconds in sorted(pauses.items())],
        "running": sum(each.running for each in calls),
        "adaptive_limits": [{"route": route, "calls": limit} for route, limit in sorted(adaptive.items())],
        "calls": sum(each.calls for each in calls),
        "errors": sum(each.errors for each in calls),
    }


def _batch(row: Row) -> dict[str, Any]:
    progress = render_progress(row)
    taken = ("status", "request_counts", "cost", "requests_per_second", "tokens_per_second", "seconds_left")
    named = ("id", "account_id", "model", "endpoint", "created_at", "expires_at")
    return {name: getattr(row, name) for name in named} | {name: progress[name] for name in taken}


def _rates(slots: Sequence[Slot], seconds: float) -> dict[str, Any]:
    total: Counter[str] = Counter()
    for slot in slots:
        total.update(slot.counts)
    series = [{"at": slot.at, **_numbers(slot.counts)} for slot in slots]
    return {"seconds": round(seconds, 3), **_numbers(total), "slots": series}


def _numbers(counts: Mapping[str, float]) -> dict[str, float]:
    return {kind: round(counts.get(kind, 0.0), 10) if kind == "cost" else round(counts.get(kind, 0)) for kind in KINDS}
