"""Whether a route answers more slowly than it usually does, from the times to the first text of its streams. Pure.

Answers differ in length, and prompts too, so a single time shows little. But a provider that queues calls delays all of
them: then the shortest of some times in a row is long as well, and so are the next ones.
"""

from __future__ import annotations

import math

# Times of one group, whose shortest one counts.
_GROUP = 16
# Slow groups in a row that show a queue.
_GROUPS = 3
# How many times the usual shortest time a slow group takes, and how many seconds more.
_TIMES = 2.0
_MORE_SECONDS = 0.1
# How far the usual shortest time moves toward that of a group: down, and up.
_DOWN = 0.1
_UP = 0.02


class Slowness:
    """The times of one route's streams."""

    __slots__ = ("_count", "_shortest", "_slow", "_usual")

    def __init__(self) -> None:
        """Know no time yet."""
        self._usual = math.nan
        self._slow = 0
        self._count = 0
        self._shortest = math.inf

    def add(self, seconds: float) -> bool:
        """Learn how long a stream's first text took, and return whether the route shows a queue just now."""
        self._shortest = min(self._shortest, seconds)
        self._count += 1
        if self._count < _GROUP:
            return False
        shortest, usual = self._shortest, self._usual
        self._count, self._shortest = 0, math.inf
        if math.isnan(usual):
            self._usual = shortest
            return False
        self._usual += (shortest - usual) * (_DOWN if shortest < usual else _UP)
        self._slow = self._slow + 1 if shortest > usual * _TIMES + _MORE_SECONDS else 0
        if self._slow < _GROUPS:
            return False
        self._slow = 0
        return True
