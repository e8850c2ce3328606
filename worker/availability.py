"""Tracks whether Postgres answers this worker, and repeats writes while it is unavailable.

While Postgres is unavailable the worker takes no jobs, its calls go on, and the ends of its attempts wait.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from sqlalchemy.exc import SQLAlchemyError

from headrace.stores.failures import is_foreign_schema, is_unavailable

log = logging.getLogger(__name__)

Result = TypeVar("Result")

# Seconds between two tries of a write while Postgres is unavailable.
_RETRY_SECONDS = 0.5


class Availability:
    """What this worker's statements have shown of Postgres. `Leases` finds out when it answers again."""

    def __init__(self) -> None:
        """Start with a Postgres that answers."""
        self.reachable = asyncio.Event()
        """Set while Postgres answers this worker."""
        self.reachable.set()
        self._on_lost: list[Callable[[], None]] = []

    def on_lost(self, callback: Callable[[], None]) -> None:
        """Call this each time that Postgres becomes unavailable."""
        self._on_lost.append(callback)

    def lost(self, error: SQLAlchemyError) -> None:
        """Note that a statement found Postgres unavailable."""
        if not self.reachable.is_set():
            return
        if is_foreign_schema(error):
            log.warning("the database's schema is not the one that this release knows: %s", error)
        log.warning("Postgres is unavailable: this worker takes no jobs until it answers")
        self.reachable.clear()
        for callback in self._on_lost:
            callback()

    def found(self) -> None:
        """Note that Postgres serves this worker."""
        if not self.reachable.is_set():
            log.info("Postgres answers again: this worker takes jobs")
            self.reachable.set()

    async def until_available(self, write: Callable[[], Awaitable[Result]]) -> Result:
        """Return what a write returns, however long Postgres is unavailable: the worker loses no provider's answer.

        Raises:
            sqlalchemy.exc.SQLAlchemyError: Postgres answers and refuses the write.
        """
        while True:
            try:
                return await write()
            except SQLAlchemyError as error:
                if not is_unavailable(error):
                    raise
                log.warning("Postgres is unavailable, an attempt's end waits for it: %s", error)
                self.lost(error)
                await asyncio.sleep(_RETRY_SECONDS)
