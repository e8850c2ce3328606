"""Chores: tasks that run for as long as their process does, and start again after an error."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

log = logging.getLogger(__name__)

Chore = Callable[[], Awaitable[None]]

# Seconds until a chore starts again after an error, and between two demands that it stop.
_AGAIN_SECONDS = 1.0


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


async def _keep(chore: Chore) -> None:
    task = asyncio.current_task()
    while task is not None and not task.cancelling():
        try:
            await chore()
        except Exception:
            log.exception("a background task failed, and starts again")
        await asyncio.sleep(_AGAIN_SECONDS)
