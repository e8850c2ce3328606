"""A value that many ask for, and that is read again only after a while."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

Value = TypeVar("Value")

# Seconds for which a value is reused by default.
_FRESH_SECONDS = 1.0


class Fresh(Generic[Value]):
    """What `read` returns, reused for a while. One caller at a time reads it."""

    def __init__(self, read: Callable[[], Awaitable[Value]], *, seconds: float | None = None) -> None:
        """Read nothing yet: `get` does. A value is reused for `seconds`, by default for one."""
        self._read = read
        self._seconds = _FRESH_SECONDS if seconds is None else seconds
        self._turn = asyncio.Lock()
        self._value: Value
        self._until = -math.inf

    async def get(self) -> Value:
        """Return the value, which may be that old. Raises what `read` does."""
        async with self._turn:
            if time.monotonic() >= self._until:
                self._value = await self._read()
                self._until = time.monotonic() + self._seconds
            return self._value
