"""What befalls whom and when: nothing but the seed decides, so that a run can be had again."""

from __future__ import annotations

import random
from dataclasses import dataclass

from tests.faults.chaos.proxy import Mode

WORKERS = ("worker-1", "worker-2")
APIS = ("api", "api-2")
SCHEDULERS = ("scheduler-1", "scheduler-2")
LINKS = ("api-postgres", "api-redis", "worker-postgres", "worker-redis", "scheduler-postgres", "scheduler-redis")
PROVIDER_LINK = "worker-provider"

_FAULTS: tuple[tuple[str, tuple[str, ...], int], ...] = (
    ("kill", WORKERS, 6),
    ("kill", APIS, 3),
    ("kill", SCHEDULERS, 3),
    ("terminate", WORKERS + APIS, 4),
    ("kill-redis", ("redis",), 2),
    ("empty-redis", ("redis",), 2),
    ("kill-postgres", ("postgres",), 2),
    ("restart-postgres", ("postgres",), 2),
    *((mode.value, (*LINKS, PROVIDER_LINK), 3) for mode in (Mode.STALL, Mode.CUT, Mode.REFUSE, Mode.SLOW)),
)


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that happens `at` seconds from the start, and is over `seconds` later."""

    at: float
    kind: str
    target: str
    seconds: float


def plan(seed: int, minutes: float) -> list[Fault]:
    """Return what happens in a run, in order: a fault every few seconds, and sometimes two at a time."""
    chance = random.Random(f"faults {seed}")
    faults: list[Fault] = []
    at, end = 3.0, minutes * 60
    while at < end - 5:
        for _ in range(2 if chance.random() < 0.15 else 1):
            kind, targets, _ = chance.choices(_FAULTS, weights=[weight for *_, weight in _FAULTS])[0]
            longest = 10.0 if kind in {mode.value for mode in Mode} else 5.0
            seconds = chance.uniform(0.5, longest)
            faults.append(Fault(at, kind, chance.choice(targets), seconds))
        at += chance.uniform(2, 9)
    return sorted(faults, key=lambda fault: fault.at)
