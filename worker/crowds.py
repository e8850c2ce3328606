"""Holds lines of batches back while earlier lines of their account and model wait for the provider's limits.

A line that waits for a permit holds a slot, and after some seconds it goes back to the queue, to be claimed once more.
With thousands of lines for a provider that takes a few calls, that costs more than the calls, and the lines of other
batches come late. So while lines of an account and a model wait for permits, the others stay in the queue, except for
as many as get theirs in the next seconds. Lines of other accounts and models start as slots come free.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

Key = tuple[str, str]
"""An account and a model."""

# Seconds for which lines must have waited without a break until others are held back: a burst waits as well, but soon
# has its permits.
_PATIENCE_SECONDS = 0.5
# Seconds for which others are held back after a line that got no permit has left.
_MEMORY_SECONDS = 10.0
# Seconds over which permits are counted.
_WINDOW_SECONDS = 2.0
# Lines that may wait for each permit counted, and the least that may wait.
_AHEAD = 2
_LEAST = 16
# Crowds of one worker, before those without lines are forgotten.
_MOST = 1000


class Crowd:
    """The lines of one account and model that wait for permits."""

    __slots__ = ("_before", "_began", "_ends", "_granted", "_held_until", "_now", "_waiting")

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._waiting = 0
        self._began = 0.0
        """When the first of the lines that wait began to, with no moment since in which no line waited."""
        self._granted = self._before = 0
        """Permits of the window that ends at `_ends`, and of the one before."""
        self._ends = self._held_until = 0.0

    def join(self) -> None:
        """Note that a line waits."""
        if not self._waiting:
            self._began = self._now()
        self._waiting += 1

    def leave(self, *, granted: bool) -> None:
        """Note that a line no longer waits, and whether it has its permit."""
        self._waiting -= 1
        now = self._now()
        if granted:
            self._turn(now)
            self._granted += 1
        else:
            self._held_until = now + _MEMORY_SECONDS

    @property
    def idle(self) -> bool:
        """Whether no line waits."""
        return not self._waiting

    @property
    def room(self) -> float:
        """How many more lines may start: infinitely many while lines soon get their permits."""
        now = self._now()
        if now >= self._held_until and (not self._waiting or now - self._began < _PATIENCE_SECONDS):
            return math.inf
        self._turn(now)
        return max(0, max(_LEAST, _AHEAD * max(self._granted, self._before)) - self._waiting)

    def _turn(self, now: float) -> None:
        """Begin the next window if this one has ended."""
        if now >= self._ends:
            self._before = self._granted if now < self._ends + _WINDOW_SECONDS else 0
            self._granted, self._ends = 0, now + _WINDOW_SECONDS


class Crowds:
    """The crowds of one worker."""

    def __init__(self, *, now: Callable[[], float] = time.monotonic) -> None:
        """Start with no crowd; `now` is the clock, in seconds."""
        self._now = now
        self._crowds: dict[Key, Crowd] = {}

    def of(self, key: Key) -> Crowd:
        """Return the crowd of an account and a model."""
        crowd = self._crowds.get(key)
        if crowd is None:
            if len(self._crowds) >= _MOST:
                self._crowds = {key: crowd for key, crowd in self._crowds.items() if not crowd.idle}
            crowd = self._crowds[key] = Crowd(self._now)
        return crowd

    def room(self, key: Key | None) -> float:
        """Return how many more lines of a key may start. Without a key: 0 while any lines are held back."""
        if key is None:
            return 0 if self.hold else math.inf
        crowd = self._crowds.get(key)
        return math.inf if crowd is None else crowd.room

    @property
    def hold(self) -> bool:
        """Whether some lines may have to stay in the queue."""
        return any(crowd.room < math.inf for crowd in self._crowds.values())
