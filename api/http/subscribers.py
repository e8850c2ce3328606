"""Who watches: open event streams and waits of one process, counted by key."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator

from headrace.errors import RateLimitError


class Subscribers:
    """The subscribers of one process. None of a key's own limits counts them: watching uses nothing but memory."""

    def __init__(self, most: int) -> None:
        """Let each key have `most` of them."""
        self._most = most
        self._watching: Counter[str] = Counter()

    def check(self, key_id: str) -> None:
        """Check that a key may have another subscriber.

        Raises:
            RateLimitError: It has as many as it may.
        """
        if self._watching[key_id] >= self._most:
            raise RateLimitError(
                f"This key has {self._most} event streams and waits open on this server.", retry_after=1
            )

    @contextlib.contextmanager
    def watching(self, key_id: str) -> Iterator[None]:
        """Count a subscriber while within."""
        self._watching[key_id] += 1
        try:
            yield
        finally:
            self._watching[key_id] -= 1
            if not self._watching[key_id]:
                del self._watching[key_id]
