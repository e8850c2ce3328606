"""The gauges of the queues, which the scheduler that leads sets, so that a scrape asks Postgres nothing."""

from __future__ import annotations

import asyncio
import logging
import time

from sqlalchemy.exc import SQLAlchemyError

from headrace.jobs.sql.depth import read_depths
from headrace.queue import TIERS
from headrace.runtime.chores import rest_after, until_tick
from headrace.stores.database import Database
from headrace.telemetry.metrics import QUEUE_JOBS, QUEUE_OLDEST

log = logging.getLogger(__name__)

# Seconds between two looks.
_LOOK_SECONDS = 4.0


class QueueGauges:
    """Looks at the queues of all tiers."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def run(self) -> None:
        """Look until cancelled. A scheduler that no longer leads has no gauges of the queues."""
        try:
            while True:
                began = time.monotonic()
                try:
                    await self.look()
                except SQLAlchemyError as error:
                    log.warning("could not look at the queues: %s", error)
                await asyncio.sleep(max(until_tick(_LOOK_SECONDS), rest_after(time.monotonic() - began)))
        finally:
            QUEUE_JOBS.clear()
            QUEUE_OLDEST.clear()

    async def look(self) -> None:
        """Set the gauges.

        Raises:
            sqlalchemy.exc.SQLAlchemyError: Postgres is unavailable.
        """
        for depth in await read_depths(self._database, TIERS):
            QUEUE_JOBS.labels(depth.tier).set(depth.jobs)
            QUEUE_OLDEST.labels(depth.tier).set(depth.oldest_seconds)
