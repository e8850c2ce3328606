"""Waiting for a condition, with one limit for all tests: generous, as a busy machine may be many times slower."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar, overload

T = TypeVar("T")

PATIENCE = 120.0
"""Seconds a test waits for a condition before it fails. No test may depend on this limit to pass."""

_SHORTEST_SECONDS = 0.005
_LONGEST_SECONDS = 0.05


def until(condition: Callable[[], T | None], what: str, patience: float = PATIENCE) -> T:
    """Call `condition` until it returns something true, and return that.

    Raises:
        TimeoutError: It did not within `patience` seconds.
    """
    pauses = _pauses(what, patience)
    while not (result := condition()):
        time.sleep(next(pauses))
    return result


@overload
async def eventually(condition: Callable[[], Awaitable[T | None]], what: str, patience: float = PATIENCE) -> T: ...
@overload
async def eventually(condition: Callable[[], T | None], what: str, patience: float = PATIENCE) -> T: ...
async def eventually(condition: Callable[[], Any], what: str, patience: float = PATIENCE) -> Any:
    """Call `condition`, which may be a coroutine function, until it gives something true, and return that.

    Raises:
        TimeoutError: It did not within `patience` seconds.
    """
    pauses = _pauses(what, patience)
    while True:
        result = condition()
        if inspect.isawaitable(result):
            result = await result
        if result:
            return result
        await asyncio.sleep(next(pauses))


def _pauses(what: str, patience: float) -> Iterator[float]:
    """Yield the seconds until the next look: few at first, as most conditions hold soon."""
    deadline, pause = time.monotonic() + patience, _SHORTEST_SECONDS
    while time.monotonic() < deadline:
        yield pause
        pause = min(2 * pause, _LONGEST_SECONDS)
    raise TimeoutError(f"still waiting for: {what}")
