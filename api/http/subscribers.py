"""The subscribers of one process: open event streams and waits, counted by key."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

from headrace.errors import RateLimitError
from headrace.telemetry.metrics import SUBSCRIBERS

RETRY = 1000
"""Milliseconds before a subscriber reconnects that has lost its connection without notice: the API may restart."""
RETRY_AT_ONCE = 100
"""Milliseconds before a subscriber reconnects that this process disconnects: another one serves it."""

# Subscribers that ask Postgres for their job at the same time, before their streams begin.
_OPENING = 4
# Milliseconds over which the reconnections of a process's subscribers are spread, for each of them.
_SPREAD = 4


class Subscribers:
    """Counts the subscribers of one process. A key's own limits do not: a subscriber takes only memory."""

    def __init__(self, most: int) -> None:
        """Allow each key `most` subscribers."""
        self._most = most
        self.number = 0
        self._watching: Counter[str] = Counter()
        self.opening = asyncio.Semaphore(_OPENING)
        """For what a subscriber reads of Postgres before its stream begins: after a restart all reconnect at once."""

    def retry(self, least: int) -> bytes:
        """Return the line that tells a subscriber how long to wait before it reconnects: `least` ms and a random part.

        The random part grows with the number of subscribers, so that at most 250 a second reconnect.
        """
        return b"retry: %d\n\n" % (least + random.randrange(_SPREAD * self.number + 1))

    def check(self, key_id: str) -> None:
        """Check that a key may have another subscriber.

        Raises:
            RateLimitError: The key has the most subscribers that it may have.
        """
        if self._watching[key_id] >= self._most:
            raise RateLimitError(
                f"This key has {self._most} event streams and waits open on this server.", retry_after=1
            )

    def counting(self, key_id: str) -> Counting:
        """Return a context inside of which a subscriber counts."""
        return Counting(self, key_id)

    def add(self, key_id: str, number: int) -> None:
        """Add `number` to a key's subscribers; -1 removes one."""
        SUBSCRIBERS.inc(number)
        self.number += number
        self._watching[key_id] += number
        if not self._watching[key_id]:
            del self._watching[key_id]


class Counting:
    """The context of a subscriber. A generator would take five times the memory of this for each."""

    __slots__ = ("_key_id", "_subscribers")

    def __init__(self, subscribers: Subscribers, key_id: str) -> None:
        self._subscribers = subscribers
        self._key_id = key_id

    def __enter__(self) -> None:
        """Count the subscriber."""
        self._subscribers.add(self._key_id, 1)

    def __exit__(self, *_: object) -> None:
        """Count it no longer."""
        self._subscribers.add(self._key_id, -1)
