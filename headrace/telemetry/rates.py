"""How many jobs came and ended in the last five minutes, over all processes.

Postgres has no index of jobs by their end, as it would cost every end. So each process counts in memory what it
accepts and ends, and once a second adds its counts to those of all processes, which Redis keeps in slots of ten
seconds. A process that dies takes a second's counts with it, and counts made while Redis is unavailable are lost: the
ledger in Postgres is exact, and these are for watching.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal, get_args

from redis.asyncio import Redis

from headrace.runtime.chores import next_tick
from headrace.runtime.flag import Flag
from headrace.stores.lua import read_script
from headrace.stores.namespace import prefix_in
from headrace.stores.redis import REDIS_UNAVAILABLE

log = logging.getLogger(__name__)

Kind = Literal["submitted", "completed", "failed", "expired", "cancelled", "input_tokens", "output_tokens", "cost"]
KINDS: Sequence[Kind] = get_args(Kind)

_ADD = read_script(__package__, "rates.lua")
_KEY = "headrace:rates:"
SLOT_SECONDS = 10
"""Seconds of one slot, over which counts are added up."""
# Slots that are read: five minutes.
_SLOTS = 30
# Seconds between two reports of a process, and seconds for which a slot is kept.
_REPORT_SECONDS = 1.0
_KEPT_SECONDS = SLOT_SECONDS * (_SLOTS + 2)

_counted: Counter[str] = Counter()
_has_counted = Flag()


def count(kind: str, number: float = 1) -> None:
    """Count jobs, tokens or USD, by one of `KINDS`."""
    _counted[kind] += number  # type: ignore[assignment]  # a Counter of floats
    _has_counted.set()


def count_spent(input_tokens: int, output_tokens: int, cost: Decimal | None) -> None:
    """Count what an attempt spent; `cost` is in USD."""
    _counted["input_tokens"] += input_tokens
    _counted["output_tokens"] += output_tokens
    _has_counted.set()
    if cost:
        count("cost", float(cost))


async def report(redis: Redis) -> None:
    """Add this process's counts to those of all processes, once a second while it counts, until cancelled."""
    add = redis.register_script(_ADD)
    keys = [prefix_in(redis) + _KEY]
    while True:
        await _has_counted.wait()
        await next_tick(_REPORT_SECONDS)
        _has_counted.clear()
        counted = [text for kind, number in _counted.items() for text in (kind, repr(number))]
        _counted.clear()
        try:
            await add(keys=keys, args=[SLOT_SECONDS, _KEPT_SECONDS, *counted])
        except REDIS_UNAVAILABLE as error:
            log.debug("Redis is unavailable, a second's counts are lost: %s", error)


@dataclass(frozen=True, slots=True)
class Slot:
    """The counts of ten seconds."""

    at: int
    """When it began, in Unix seconds."""
    counts: Mapping[str, float]


async def read_slots(redis: Redis) -> tuple[Sequence[Slot], float]:
    """Return the slots of the last five minutes, oldest first, and the seconds that they cover: the last goes on.

    Raises:
        REDIS_UNAVAILABLE: Redis is unavailable.
    """
    seconds, microseconds = await redis.time()
    last = seconds // SLOT_SECONDS
    numbers = range(last - _SLOTS + 1, last + 1)
    async with redis.pipeline(transaction=False) as pipeline:
        for number in numbers:
            pipeline.hgetall(f"{prefix_in(redis)}{_KEY}{number}")
        found = await pipeline.execute()
    slots = [
        Slot(number * SLOT_SECONDS, {name.decode(): float(value) for name, value in told.items()})
        for number, told in zip(numbers, found, strict=True)
    ]
    return slots, seconds + microseconds / 1e6 - slots[0].at
