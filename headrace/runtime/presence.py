"""Presence records in Redis: one for each worker, and the name of the scheduler that leads.

A worker writes its record every second or two (`worker/peers.py`). Other workers read from it where calls to providers
fail; the API reads how busy the worker is. A record may come from another release: readers ignore fields that they do
not know, and do without fields that they miss.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

import orjson
from redis.asyncio import Redis

from headrace.runtime.chores import next_tick
from headrace.stores.namespace import prefix_in
from headrace.stores.redis import REDIS_UNAVAILABLE

log = logging.getLogger(__name__)

KEY = "headrace:paths"
"""The hash of all workers' records and of the pauses that providers asked for: `worker/peers.lua` has its format."""
PRESENT_MS = 5_000
"""Milliseconds after which a worker that has not written is not counted."""
_LEADER_KEY = "headrace:leader"
# Seconds between two writes of the leader's name, and seconds after which it is no longer there.
_LEADER_SECONDS = 4.0
_LEADER_GONE_SECONDS = 15

EVERYONE = ""
"""The key of the circuit that holds for every account; any other key is an account's."""

Keys = Mapping[str, Sequence[str]]
"""The keys of circuits, by provider."""


@dataclass(slots=True)
class Calls:
    """A worker's calls to one provider. A call counts from its start, an error at the call's end."""

    running: int = 0
    calls: int = 0
    """Since the worker started."""
    errors: int = 0
    """Calls that the provider failed, since the worker started; not requests that it refused as wrong."""


@dataclass(frozen=True, slots=True)
class About:
    """A worker's process and its slots."""

    host: str
    pid: int
    version: str
    started_at: float
    """Unix seconds."""
    slots: int
    """Jobs that the worker runs at once; a few more run in its reserve."""
    running: int
    draining: bool
    machine: str = ""
    """An id that the processes of a machine share, although each container has a host of its own."""
    cut_off: bool = False
    """Whether Postgres does not answer the worker; earlier releases do not tell."""


@dataclass(frozen=True, slots=True)
class View:
    """What one worker tells."""

    tiers: Sequence[str]
    open: Keys
    """Circuits that its own failures opened."""
    failing: Keys
    """Circuits with failures and no answer since; open ones too."""
    answered: Keys
    """Circuits that are open elsewhere, and on which it has had an answer since."""
    probing: Sequence[str] = ()
    """Providers whose circuit for everyone is open, and whose cooling time is over: the next call is a probe."""
    about: About | None = None
    calls: Mapping[str, Calls] = field(default_factory=dict)
    """By provider."""
    limits: Mapping[str, int] = field(default_factory=dict)
    """Calls at once that routes with calls here take over all workers, where their limits adapt."""

    @property
    def takes_jobs(self) -> bool:
        """Whether the worker takes jobs once it has room for them."""
        return self.about is None or not (self.about.draining or self.about.cut_off)

    @property
    def is_full(self) -> bool:
        """Whether each of the worker's slots has a job."""
        return self.about is not None and self.about.running >= self.about.slots

    def pack(self) -> bytes:
        """Return the view as it is kept in Redis."""
        return orjson.dumps(self)

    @classmethod
    def unpack(cls, text: bytes) -> View:
        """Return what `pack` packed, in this release or another; a text of an unknown form serves no tier."""
        try:
            told = orjson.loads(text)
            return cls(
                told["tiers"],
                told["open"],
                told["failing"],
                told["answered"],
                told.get("probing", ()),
                _known(About, told["about"]) if told.get("about") else None,
                {name: _known(Calls, calls) for name, calls in told.get("calls", {}).items()},
                {route: int(calls) for route, calls in told.get("limits", {}).items()},
            )
        except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError, ValueError):
            return cls((), {}, {}, {})


Record = TypeVar("Record", About, Calls)


def _known(record: type[Record], told: Mapping[str, Any]) -> Record:
    return record(**{each.name: told[each.name] for each in fields(record) if each.name in told})


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker that has written lately."""

    name: str
    """`host:pid:…`, as the rows of its jobs have it."""
    seen_at: float
    """When it wrote last, in Unix seconds by Redis's clock."""
    view: View


@dataclass(frozen=True, slots=True)
class Leader:
    """The scheduler that leads."""

    name: str
    """`host:pid`."""
    since: float
    """Unix seconds."""


@dataclass(frozen=True, slots=True)
class Presence:
    """What the processes of a deployment tell."""

    workers: Sequence[Worker]
    """By name."""
    pauses: Mapping[str, float]
    """Seconds until each paused route may be called again."""
    leader: Leader | None


async def read_presence(redis: Redis) -> Presence:
    """Return what the running processes tell, in one round trip.

    Raises:
        REDIS_UNAVAILABLE: Redis is unavailable.
    """
    prefix = prefix_in(redis)
    async with redis.pipeline(transaction=False) as pipeline:
        pipeline.time()
        pipeline.hgetall(prefix + KEY)
        pipeline.get(prefix + _LEADER_KEY)
        (seconds, microseconds), told, leader = await pipeline.execute()
    now = seconds * 1000 + microseconds // 1000
    workers, pauses = [], {}
    for place, value in told.items():
        kind, _, name = place.decode().partition(" ")
        at, _, text = value.partition(b" ")
        if kind == "worker" and int(at) >= now - PRESENT_MS:
            workers.append(Worker(name, int(at) / 1000, View.unpack(text)))
        elif kind == "pause" and int(at) > now:
            pauses[name] = (int(at) - now) / 1000
    workers.sort(key=lambda worker: worker.name)
    return Presence(workers, pauses, None if leader is None else Leader(**orjson.loads(leader)))


async def announce_leader(redis: Redis) -> None:
    """Write that this process's scheduler leads, until cancelled."""
    leader = Leader(f"{socket.gethostname()}:{os.getpid()}", time.time())
    while True:
        try:
            await redis.set(prefix_in(redis) + _LEADER_KEY, orjson.dumps(leader), ex=_LEADER_GONE_SECONDS)
        except REDIS_UNAVAILABLE as error:
            log.debug("Redis is unavailable, the leader's name is not written: %s", error)
        await next_tick(_LEADER_SECONDS)
