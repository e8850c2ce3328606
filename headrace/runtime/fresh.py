"""A value that many ask for, and that is read again once it is old."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

Value = TypeVar("Value")

# Seconds for which a value is reused, unless its owner says otherwise.
_FRESH_SECONDS = 1.0


class Fresh(Generic[Value]):
    """What `read` returns, read at most once a second, for one caller at a time."""

    def __init__(self, read: Callable[[], Awaitable[Value]], *, seconds: float | None = None) -> None:
        """Read nothing yet: `get` does. With `seconds` a value is reused for so long."""
        self._read = read
        self._seconds = _FRESH_SECONDS if seconds is None else seconds
        self._turn = asyncio.Lock()
        self._value: Value
        self._until = -math.inf

    async def get(self) -> Value:
        """Return the value, which may be so old. Raises what `read` does."""
        async with self._turn:
            if time.monotonic() >= self._until:
                self._value = await self._read()
                self._until = time.monotonic() + self._seconds
            return self._value
