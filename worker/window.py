"""What a provider's limits allow, as one worker counts it by its own clock. The script in Redis decides alike.

A minute is counted in thirty slots of time; `worker/throttle.py` describes them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

SLOTS = 30
"""Slots of time in a minute."""
ALONE = 0
"""The slot of calls that were permitted without Redis, which is no slot of Redis: it counts them from its return on."""


class ProviderLimits(NamedTuple):
    """A provider's limits, each None where it has none: calls under way, calls and tokens in a minute."""

    concurrency: int | None
    requests: int | None
    tokens: int | None


class Cost(NamedTuple):
    """What one permit takes of the limits: its calls and its tokens."""

    calls: int
    """Calls that are under way at once."""
    tokens: int
    more: int = 0
    """Calls that follow as those end. They count in the minute alone."""

    @property
    def requests(self) -> int:
        """Calls that count in a minute."""
        return self.calls + self.more

    def within(self, limits: ProviderLimits) -> Cost:
        """Return a cost that fits into the whole of each limit: a larger one would wait for ever.

        Where fewer calls may be under way at once, more follow.
        """
        slots, requests, tokens = (math.inf if most is None else most for most in limits)
        counted = int(min(self.requests, requests))
        calls = int(min(self.calls, slots, counted))
        return Cost(calls, int(min(self.tokens, tokens)), counted - calls)


NOTHING = Cost(0, 0)


class Decision(NamedTuple):
    """How many permits are granted, in the order of the question, and when the next one may be."""

    granted: int
    wait_seconds: float
    """Seconds until the next permit may be granted; 0 if that is unknown, as when calls have to end first."""
    slot: int
    """The slot of time that counts the granted permits."""
    others: int = 0
    """Calls that other workers have under way."""
    others_wait: bool = False
    """Whether calls wait at other workers."""
    others_first: bool = False
    """Whether some of those come before the calls that wait here."""
    newer: str = ""
    """The adaptive limit that other workers know, where it is newer than the one that came with the question."""


class Window:
    """The calls and tokens of the last minute."""

    def __init__(self, seconds: float) -> None:
        """Count over a minute of `seconds`."""
        self._step = seconds / SLOTS
        self._slots: dict[int, Cost] = {}

    def add(self, now: float, cost: Cost) -> int:
        """Count a cost, and return the slot in which it is counted."""
        slot = int(now / self._step)
        if slot not in self._slots:
            self._forget(slot)
        counted = self._slots.get(slot, NOTHING)
        self._slots[slot] = Cost(counted.calls + cost.requests, counted.tokens + cost.tokens)
        return slot

    def correct(self, now: float, slot: int, change: Cost) -> None:
        """Count use beyond an estimate from now on, and take what was not used out of the estimate's slot."""
        self.add(now, Cost(max(0, change.calls), max(0, change.tokens)))
        if slot in self._slots:
            calls, tokens, _ = self._slots[slot]
            self._slots[slot] = Cost(max(0, calls + min(0, change.calls)), max(0, tokens + min(0, change.tokens)))

    def total(self, now: float) -> Cost:
        """Return what counts now."""
        self._forget(int(now / self._step))
        counted = self._slots.values()
        return Cost(sum(cost.calls for cost in counted), sum(cost.tokens for cost in counted))

    def _forget(self, slot: int) -> None:
        """Forget the slots of time that no longer count in a later one."""
        self._slots = {each: counted for each, counted in self._slots.items() if each >= slot - SLOTS}

    def decide(self, now: float, limits: ProviderLimits, held: int, asked: Sequence[Cost]) -> Decision:
        """Return how many of the costs `asked` fit, in their order, while `held` calls are under way."""
        total = self.total(now)
        used = (held, total.calls, total.tokens)
        slots, requests, tokens = (
            math.inf if most is None else most - taken for most, taken in zip(limits, used, strict=True)
        )
        for granted, cost in enumerate(asked):
            if slots < cost.calls or requests < cost.requests or tokens < cost.tokens:
                return Decision(granted, self._wait(now, cost.requests - requests, cost.tokens - tokens), ALONE)
            slots, requests, tokens = slots - cost.calls, requests - cost.requests, tokens - cost.tokens
        return Decision(len(asked), 0, ALONE)

    def _wait(self, now: float, calls: float, tokens: float) -> float:
        end = 0
        for slot in sorted({*self._slots, int(now / self._step)}):
            if calls <= 0 and tokens <= 0:
                break
            end = slot + SLOTS + 1
            freed = self._slots.get(slot, NOTHING)
            calls, tokens = calls - freed.calls, tokens - freed.tokens
        return end * self._step - now if end else 0.0
