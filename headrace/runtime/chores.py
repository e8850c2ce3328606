"""Chores: tasks that run for as long as their process does, and start again after an error."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable

log = logging.getLogger(__name__)

Chore = Callable[[], Awaitable[None]]

# Seconds until a chore starts again after an error, and between two demands that it stop.
_AGAIN_SECONDS = 1.0
# Seconds that are left until a tick at least, as a timer may be early by a fraction of a millisecond.
_SHORTEST_SECONDS = 0.005
# Seconds by which this process's ticks differ from those of the other processes on its machine. Whole milliseconds, as
# timers are: fractions would be rounded up for one chore and down for another, and the process would wake twice.
_PHASE = random.randrange(1000) / 1000
# Seconds between two ticks at which chores that are not in a hurry gather.
_COMMON_SECONDS = 2.0
# Times as long as a look at Postgres took that its chore rests: such looks take a twentieth of the time at most.
_REST_TIMES = 20.0


@contextlib.asynccontextmanager
async def going_on(*chores: Chore) -> AsyncIterator[None]:
    """Run chores meanwhile, start each again if it fails, and stop them at the end."""
    tasks = {asyncio.create_task(_keep(chore)) for chore in chores}
    try:
        yield
    finally:
        # redis-py over uvloop may raise another error when it is cancelled, which a chore then takes for an outage.
        while tasks:
            for task in tasks:
                task.cancel()
            _, tasks = await asyncio.wait(tasks, timeout=_AGAIN_SECONDS)


def until_tick(seconds: float) -> float:
    """Return the seconds until this process's next tick of a period of `seconds`.

    Chores of one period wake together, because waking costs more than what most of them find to do.
    """
    rest = seconds - (asyncio.get_running_loop().time() + _PHASE) % seconds
    return rest if rest > _SHORTEST_SECONDS else rest + seconds


def last_tick_within(seconds: float) -> float:
    """Return the seconds until the last tick in the next `seconds` at which most chores wake; `seconds` without any."""
    first = until_tick(_COMMON_SECONDS)
    return first + (seconds - first) // _COMMON_SECONDS * _COMMON_SECONDS if first <= seconds else seconds


async def next_tick(seconds: float) -> None:
    """Sleep until this process's next tick of a period of `seconds`."""
    await asyncio.sleep(until_tick(seconds))


def rest_after(seconds: float) -> float:
    """Return the least seconds between a look that took `seconds` and the next one.

    A look at a queue of a million jobs takes long, and must not keep Postgres busy.
    """
    return _REST_TIMES * seconds


async def wait_for(event: asyncio.Event, seconds: float | None) -> None:
    """Wait until an event is set, or for `seconds`; None sets no limit."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


async def _keep(chore: Chore) -> None:
    task = asyncio.current_task()
    while task is not None and not task.cancelling():
        try:
            await chore()
        except Exception:
            log.exception("a background task failed, and starts again")
        await asyncio.sleep(_AGAIN_SECONDS)
