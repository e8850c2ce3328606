"""The pace at which lines of batches start: as fast as slots come free, but slower beside requests.

A line costs little, but thousands of them take every core of a small machine. Each step of a request then waits for a
core, in Postgres too. So while workers of the same machine serve requests, and tasks of the machine often wait for a
core, the worker starts only as many lines as a share of one core can run. The share falls at once, and grows slowly
while tasks do not wait. Lines that take less than the least share, as their providers take long, are not slowed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from headrace.runtime.machine import stalled_seconds

# Share of the time in which some task may wait for a core.
_MOST_STALLED = 0.2
# Shares of one core for this worker's lines: the least, and the one from which there is no limit.
_LEAST_SHARE = 0.05
_WHOLE = 1.0
# What the share is multiplied by at each look, while tasks do not wait for cores and while they do. It grows slowly: a
# request that meets lines at full speed is among the slowest, and these count.
_FASTER = 1.05
_SLOWER = 0.5
# Lines in a second that may start at least, however much CPU time each seems to take.
_LEAST_RATE = 50.0
# Seconds between two measurements at least: news of the workers may come sooner, and too little time tells nothing.
_LOOK_SECONDS = 0.5
# Seconds after a request for which another is expected.
_BESIDE_SECONDS = 3.0
# Seconds' worth of lines that may start at once.
_BURST_SECONDS = 0.02


class LinePace:
    """How many lines may start now."""

    def __init__(
        self,
        *,
        stalled: Callable[[], float | None] = stalled_seconds,
        spent: Callable[[], float] = time.process_time,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the clocks: seconds of waiting for cores, of this process's CPU time, and of time."""
        self._stalled = stalled
        self._spent = spent
        self._now = now
        self._looked_at = now()
        self._stalled_then = stalled()
        self._spent_then = spent()
        self._requests_then = 0
        self._beside_until = -math.inf
        self._share = _WHOLE
        self._lines = 0
        """Lines that started since the last measurement."""
        self._ran = False
        """Whether lines started before it."""
        self._used = 0.0
        """The share of one core that this worker took before it."""
        self._short = False
        """Whether tasks often waited for a core before it."""
        self._cost = 0.0
        """CPU seconds of a line, when lines last started without a limit: they are nearly all that the worker does."""
        self._rate = math.inf
        """Lines that may start in a second."""
        self._room = 0.0
        self._room_at = self._looked_at

    @property
    def is_limited(self) -> bool:
        """Whether lines may have to wait although slots are free."""
        return self._rate != math.inf

    def room(self) -> float:
        """Return how many lines may start now: infinitely many while there is no limit."""
        if not self.is_limited:
            return math.inf
        now = self._now()
        most = max(1.0, self._rate * _BURST_SECONDS)
        self._room = min(most, self._room + (now - self._room_at) * self._rate)
        self._room_at = now
        return self._room

    def started(self) -> None:
        """Note that a line starts."""
        self._lines += 1
        if self.is_limited:
            self._room -= 1

    def look(self, requests: int) -> None:
        """Set the pace. `requests` counts the calls of the workers of this machine that serve requests, over time.

        The first request after a while slows lines at once, if tasks waited for cores at the last measurement.
        """
        now = self._now()
        more, self._requests_then = requests != self._requests_then, requests
        begins = more and now >= self._beside_until
        if more:
            self._beside_until = now + _BESIDE_SECONDS
        if now >= self._looked_at + _LOOK_SECONDS:
            self._measure(now)
        elif not begins:
            return
        if now >= self._beside_until:
            self._share = _WHOLE
        elif not self._short:
            self._share = min(_WHOLE, self._share * _FASTER)
        elif self.is_limited:
            self._share = max(_LEAST_SHARE, self._share * _SLOWER)
        elif self._ran and self._used > _LEAST_SHARE:
            self._share = _LEAST_SHARE
        self._rate = math.inf if self._share >= _WHOLE else max(_LEAST_RATE, self._share / self._cost)

    def _measure(self, now: float) -> None:
        """Note what has happened since the last measurement: whether lines ran, their cost, and waiting for cores."""
        stalled, spent = self._stalled(), self._spent()
        self._ran = self._lines > 0
        self._used = (spent - self._spent_then) / (now - self._looked_at)
        if self._ran and not self.is_limited:
            self._cost = (spent - self._spent_then) / self._lines
        waited = (stalled or 0.0) - (self._stalled_then or 0.0)
        self._short = waited > _MOST_STALLED * (now - self._looked_at)
        self._looked_at, self._stalled_then, self._spent_then, self._lines = now, stalled, spent, 0
