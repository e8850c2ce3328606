"""The pace at which lines of batches start: as fast as slots come free, but slower beside requests.

A line costs little, but thousands of them take every core of a small machine. Each step of a request then waits for a
core, in Postgres too. So while workers of the same machine serve requests, and tasks of the machine often wait for a
core, the worker starts only as many lines as a share of one core can run. The share falls at once, grows slowly while
tasks do not wait, and doubles again and again once no requests come. Where requests came lately, lines also begin with
a share: a worker at full speed has hundreds of lines under way when the next request comes. Lines that take less than
the least share, as their providers take long, are not slowed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from headrace.runtime.machine import stalled_seconds

# Share of the time in which some task may wait for a core. With one request at a time on two cores, some task waits
# for an eighth of it.
_MOST_STALLED = 0.1
# Shares of one core for this worker's lines: the least, the first where requests came lately, and the one from which
# there is no limit. Beside one request at a time, a fiftieth of a core added a third to the 99th percentile of latency,
# and a hundredth a fifth.
_LEAST_SHARE = 0.01
_FIRST_SHARE = 0.2
_WHOLE = 1.0
# What the share is multiplied by at each look: while tasks wait for cores, while they do not, and while no request
# comes. It grows slowly beside requests, as those that meet lines at full speed are among the slowest.
_SLOWER = 0.5
_FASTER = 1.02
_FASTEST = 2.0
# CPU seconds of a line at most: a worker whose lines seem to take more does other work, or runs few lines.
_MOST_COST = 0.0005
# Seconds between two looks, while lines start, and seconds without a line after which lines begin anew.
_LOOK_SECONDS = 0.1
_PAUSE_SECONDS = 1.0
# Seconds after news of a request for which another is expected soon, and for which it is expected at all. Workers tell
# their calls every second, and this one reads that every second.
_BESIDE_SECONDS = 2.5
_LATELY_SECONDS = 60.0
# Seconds' worth of lines that may start at once, and between two such starts.
BURST_SECONDS = 0.05


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
        self._beside_until = self._lately_until = -math.inf
        self._share = _WHOLE
        self._lines = 0
        """Lines that started since the last look."""
        self._line_at = -math.inf
        """When the last of all lines started."""
        self._used = 0.0
        """The share of one core that this worker took before it, if lines started."""
        self._short = False
        """Whether tasks often waited for a core before it."""
        self._cost = _MOST_COST
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
        now = self._now()
        self._look(now)
        if not self.is_limited:
            return math.inf
        most = max(1.0, self._rate * BURST_SECONDS)
        self._room = min(most, self._room + (now - self._room_at) * self._rate)
        self._room_at = now
        return self._room

    def started(self) -> None:
        """Note that a line starts."""
        now = self._now()
        self._look(now)
        self._lines += 1
        self._line_at = now
        if self.is_limited:
            self._room -= 1

    def hear(self, requests: int) -> None:
        """Take how many calls the workers of this machine that serve requests have made, over time.

        The first request after a while slows lines at once, if tasks waited for cores at the last look.
        """
        now = self._now()
        more, self._requests_then = requests != self._requests_then, requests
        if not more:
            return
        if now >= self._beside_until and self._short and self._used > _LEAST_SHARE and not self._begins(now):
            self._set(_LEAST_SHARE)
        self._beside_until, self._lately_until = now + _BESIDE_SECONDS, now + _LATELY_SECONDS

    def _look(self, now: float) -> None:
        """Set the share anew, if it is time to."""
        passed = now - self._looked_at
        if passed < _LOOK_SECONDS:
            return
        stalled, spent = self._stalled(), self._spent()
        used = spent - self._spent_then
        if self._lines and not self.is_limited:
            self._cost = min(_MOST_COST, used / self._lines)
        self._used = used / passed if self._lines else 0.0
        self._short = (stalled or 0.0) - (self._stalled_then or 0.0) > _MOST_STALLED * passed
        self._looked_at, self._stalled_then, self._spent_then, self._lines = now, stalled, spent, 0
        self._set(self._next_share(now))

    def _begins(self, now: float) -> bool:
        """Whether the next line is the first after a while."""
        return now > self._line_at + _PAUSE_SECONDS

    def _next_share(self, now: float) -> float:
        if now < self._lately_until and self._begins(now):
            return _FIRST_SHARE
        if now >= self._beside_until:
            return self._share * _FASTEST
        if not self._short:
            return self._share * _FASTER
        if self.is_limited:
            return max(_LEAST_SHARE, self._share * _SLOWER)
        return _LEAST_SHARE if self._used > _LEAST_SHARE else _WHOLE

    def _set(self, share: float) -> None:
        self._share = min(_WHOLE, share)
        self._rate = math.inf if self._share >= _WHOLE else self._share / self._cost
