"""The subscribers of one process: open event streams and waits, counted by key."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator

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

    @contextlib.contextmanager
    def watching(self, key_id: str) -> Iterator[None]:
        """Count a subscriber inside the context."""
        self._watching[key_id] += 1
        SUBSCRIBERS.inc()
        try:
            yield
        finally:
            SUBSCRIBERS.dec()
            self._watching[key_id] -= 1
            if not self._watching[key_id]:
                del self._watching[key_id]
