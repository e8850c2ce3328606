"""Which fault hits which part, and when: the seed alone decides, so that a run can be repeated.

Kinds of faults are drawn from a deck of cards without putting them back, so that even a short run has each of the first
ones, in whatever order.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from tests.faults.chaos.proxy import Mode

WORKERS = ("worker-1", "worker-2")
ALL_WORKERS = "workers"
"""A target that stands for all of them at once."""
APIS = ("api", "api-2")
SCHEDULERS = ("scheduler-1", "scheduler-2")
STORE_LINKS = (
    *("api-postgres", "api-redis"),
    *("worker-postgres", "worker-redis"),
    *("scheduler-postgres", "scheduler-redis"),
)
CLIENT_LINKS = ("client-api", "client-api-2")
PROVIDER_LINK = "worker-provider"

_FIRST_SECONDS = 3.0
_LAST_SECONDS = 5.0
_EVERY_SECONDS = 6.0
LONG_MINUTES = 3.0
# The share of a long run, at its end, in which nothing breaks: what a process keeps of its load shows then.
_SOAK_SHARE = 0.2
# Before and after a kill that is seen by itself: what a lost worker's jobs need to start again.
_LULL_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that happens `at` seconds from the start, and is over `seconds` later."""

    at: float
    kind: str
    target: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Card:
    """A kind of fault: which parts it may hit, and for how long."""

    kinds: tuple[str, ...]
    targets: tuple[str, ...]
    seconds: tuple[float, float] = (0.5, 5)

    def draw(self, chance: random.Random, at: float) -> Fault:
        """Return one at a time."""
        return Fault(at, chance.choice(self.kinds), chance.choice(self.targets), chance.uniform(*self.seconds))


_MODES = tuple(mode.value for mode in (Mode.STALL, Mode.CUT, Mode.REFUSE, Mode.SLOW))
_BRIEFLY = (1.0, 10.0)
_LONG = (20.0, 30.0)

FIRST = (
    Card(("kill",), WORKERS),
    Card(("kill",), APIS),
    Card(("kill",), SCHEDULERS),
    Card(("kill-redis",), ("redis",)),
    Card(("empty-redis",), ("redis",)),
    Card(("kill-postgres", "restart-postgres"), ("postgres",)),
    Card(("stall",), STORE_LINKS, _BRIEFLY),
    Card(("cut",), STORE_LINKS, _BRIEFLY),
    Card(("slow",), STORE_LINKS, _BRIEFLY),
    Card(_MODES, (PROVIDER_LINK,), _BRIEFLY),
)
"""The faults of every run, however short."""

_LATER = (
    *(Card(("kill",), WORKERS), Card(("kill",), WORKERS)),
    *(Card(("terminate",), parts) for parts in (WORKERS, WORKERS, APIS, SCHEDULERS)),
    *(Card(("freeze",), parts, (1, 20)) for parts in (WORKERS, APIS, SCHEDULERS)),
    *(Card((mode,), CLIENT_LINKS, _BRIEFLY) for mode in _MODES),
    Card(("refuse",), STORE_LINKS, _BRIEFLY),
    *(Card(("dead",), links, (5, 25)) for links in (STORE_LINKS, (*CLIENT_LINKS, PROVIDER_LINK))),
    Card(("roll",), ("all",), (0, 0)),
    *(Card(("wake",), (ALL_WORKERS,)), Card(("wake",), (ALL_WORKERS,))),
    # Longer than any client of ours waits for an answer that says nothing.
    Card(("lock-jobs",), ("postgres",), (15, 25)),
    Card(("fail-over",), ("postgres",), (5, 15)),
)
_RARE = (
    # Longer than any part takes to notice.
    *(Card(("stall",), (link,), _LONG) for link in ("api-postgres", "worker-postgres", "scheduler-postgres")),
    Card(("stall",), ("api-redis", "worker-redis", "scheduler-redis"), _LONG),
    Card(("stall",), (PROVIDER_LINK, *CLIENT_LINKS), _LONG),
    Card(("away-postgres",), ("postgres",), (20, 60)),
    Card(("away-redis",), ("redis",), (20, 60)),
    Card(("lull",), WORKERS),
    Card(("lull",), WORKERS),
)
"""The faults of longer runs only. A lull is a worker that is killed, and nothing else for a while."""


def plan(seed: int, minutes: float) -> list[Fault]:
    """Return what happens in a run, in order: a fault every few seconds, and so sometimes two at a time."""
    chance = random.Random(f"faults {seed}")
    long = minutes >= LONG_MINUTES
    last = minutes * 60 * _SOAK_SHARE if long else _LAST_SECONDS
    span = minutes * 60 - _FIRST_SECONDS - last
    step = min(_EVERY_SECONDS, span / len(FIRST))
    cards = _shuffled(chance, FIRST, FIRST + _LATER + (_RARE if long else ()))
    faults: list[Fault] = []
    at = _FIRST_SECONDS
    while at + step < _FIRST_SECONDS + span + 0.01:
        fault = next(cards).draw(chance, at + chance.uniform(0, step))
        if fault.kind == "lull":
            faults.append(replace(fault, at=at + _LULL_SECONDS, kind="kill"))
            at += 2 * _LULL_SECONDS
        elif fault.kind == "roll":
            faults += [replace(fault, target=part) for part in (*APIS, *WORKERS, *SCHEDULERS)]
        else:
            faults.append(fault)
        at += step
    return [fault for fault in faults if fault.at <= minutes * 60 - last]


def _shuffled(chance: random.Random, first: Sequence[Card], then: Sequence[Card]) -> Iterator[Card]:
    """Yield the cards of one deck, shuffled, and then those of the other, shuffled anew each time it is used up."""
    deck = first
    while True:
        yield from chance.sample(deck, len(deck))
        deck = then
