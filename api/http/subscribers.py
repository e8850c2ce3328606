"""The subscribers of one process: open event streams and waits, counted by key."""

from __future__ import annotations

from collections import Counter

from headrace.errors import RateLimitError
from headrace.telemetry.metrics import SUBSCRIBERS


class Subscribers:
    """Counts the subscribers of one process. A key's own limits do not: a subscriber takes only memory."""

    def __init__(self, most: int) -> None:
        """Allow each key `most` subscribers."""
        self._most = most
        self._watching: Counter[str] = Counter()

    def check(self, key_id: str) -> None:
        """Check that a key may have another subscriber.

        Raises:
            RateLimitError: The key has the most subscribers that it may have.
        """
        if self._watching[key_id] >= self._most:
            raise RateLimitError(
                f"This key has {self._most} event streams and waits open on this server.", retry_after=1
            )

    def watching(self, key_id: str) -> Watching:
        """Return a context inside of which a subscriber counts."""
        return Watching(self._watching, key_id)


class Watching:
    """The context of a subscriber. A generator would take five times the memory of this for each."""

    __slots__ = ("_counts", "_key_id")

    def __init__(self, counts: Counter[str], key_id: str) -> None:
        self._counts = counts
        self._key_id = key_id

    def __enter__(self) -> None:
        """Count the subscriber."""
        self._counts[self._key_id] += 1
        SUBSCRIBERS.inc()

    def __exit__(self, *_: object) -> None:
        """Count it no longer."""
        SUBSCRIBERS.dec()
        self._counts[self._key_id] -= 1
        if not self._counts[self._key_id]:
            del self._counts[self._key_id]
