"""Work that goes on beside everything else for as long as its process does, whatever befalls it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

log = logging.getLogger(__name__)

Chore = Callable[[], Awaitable[None]]

_AGAIN_SECONDS = 1.0


@contextlib.asynccontextmanager
async def going_on(*chores: Chore) -> AsyncIterator[None]:
    """Do these meanwhile, each of them again if it breaks, and stop them at the end."""
    tasks = {asyncio.create_task(_keep(chore)) for chore in chores}
    try:
        yield
    finally:
        # redis-py over uvloop may raise something else when it is cancelled, which a chore then takes for an outage.
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
            log.exception("a chore broke, and begins anew")
        await asyncio.sleep(_AGAIN_SECONDS)
