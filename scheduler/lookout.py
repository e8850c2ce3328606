"""Looks for the work of all chores in one statement, so that a chore without work sends Postgres no query.

A look sees whether there is work of a kind at all. While there is, the chore goes by its own clock. While there is no
work, looks are rare: the API calls for one when it makes a batch, a worker when it ends a job that has a webhook.
"""

from __future__ import annotations

import asyncio
import logging

from sqlalchemy.exc import SQLAlchemyError

from headrace.runtime.chores import until_tick, wait_for
from headrace.stores.database import Database, execute
from headrace.stores.plain import Prepared
from headrace.telemetry.health import HEALTH

log = logging.getLogger(__name__)

# Seconds between two looks: while there is work, and otherwise.
_LOOK_SECONDS = 0.5
_IDLE_LOOK_SECONDS = 2.0

# Each kind has an index of its own, of the few rows that are work.
_LOOK = Prepared("""
SELECT EXISTS (SELECT FROM jobs WHERE state = 'queued') OR EXISTS (SELECT FROM jobs WHERE state = 'running') AS jobs,
       EXISTS (SELECT FROM batches WHERE state IN ('validating', 'in_progress', 'finalizing', 'cancelling')) AS batches,
       EXISTS (SELECT FROM webhook_deliveries WHERE state = 'pending') AS webhooks,
       EXISTS (SELECT FROM usage, usage_mark WHERE usage.transaction >= usage_mark.transaction) AS usage
""")


class Lookout:
    """The kinds of work, each an event that is set while there is some."""

    def __init__(self, database: Database) -> None:
        """Know of no work yet; `run` looks for it."""
        self._database = database
        self.jobs = asyncio.Event()
        """Jobs that have not ended."""
        self.batches = asyncio.Event()
        """Batches that have not ended."""
        self.webhooks = asyncio.Event()
        """Deliveries that have not ended, due or not."""
        self.usage = asyncio.Event()
        """Rows of the ledger that the roll-ups lack."""
        self._kinds = (self.jobs, self.batches, self.webhooks, self.usage)
        self._called = asyncio.Event()

    def call(self) -> None:
        """Have `run` look now, if it has found no work yet."""
        if not self._is_busy:
            self._called.set()

    @property
    def _is_busy(self) -> bool:
        return any(kind.is_set() for kind in self._kinds)

    async def run(self) -> None:
        """Look twice a second while there is work, else every two seconds and when called; until cancelled."""
        while True:
            self._called.clear()
            await self.look()
            await wait_for(self._called, until_tick(_LOOK_SECONDS if self._is_busy else _IDLE_LOOK_SECONDS))

    async def look(self) -> None:
        """Look once. If Postgres is unavailable, each chore has to find out by itself."""
        try:
            [found] = await execute(self._database.relaxed, _LOOK, {})
        except SQLAlchemyError as error:
            log.debug("could not look for work: %s", error)
            for event in self._kinds:
                event.set()
            return
        if not found.jobs:  # else the sweeper shows that it is well
            HEALTH.beat()
        for event, is_there in zip(self._kinds, found, strict=True):
            if is_there:
                event.set()
            else:
                event.clear()


async def work_or_rest(work: asyncio.Event, *, least: float, most: float | None = None) -> None:
    """Rest `least` seconds, and then until there is work, or for `most` seconds in all."""
    await asyncio.sleep(least)
    await wait_for(work, None if most is None else most - least)
