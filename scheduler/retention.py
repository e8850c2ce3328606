"""Deletes rows past their retention, in small steps with a rest after each, so that no request waits for them."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from functools import partial

from sqlalchemy.exc import SQLAlchemyError

from headrace.agents.queries import empty_deleted_agents
from headrace.batches.queries import forget_batches
from headrace.files.queries import expire_spare_outputs, forget_files, sweep_files
from headrace.idempotency.queries import sweep_keys
from headrace.jobs.sql.erase import erase_unstored, forget_jobs, prune_deltas
from headrace.runtime.chores import until_tick
from headrace.settings import Settings
from headrace.stores.database import Database
from headrace.stores.failures import is_unavailable
from headrace.webhooks.queries import forget_gone

log = logging.getLogger(__name__)

# Seconds between two steps while there is more to do, and otherwise.
_BUSY_SECONDS = 0.2
_IDLE_SECONDS = 16.0
# Rows of a step that probably left more to do. No step stops at fewer.
_MANY = 100
_DAY_SECONDS = 86_400
# Seconds between two rounds of the work that rarely finds a row.
_RARELY_SECONDS = 3600.0


class Retention:
    """The janitor of one scheduler. If two clean up at the same time, they take different rows."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings = settings
        self._database = database
        self._rarely_at = -math.inf

    async def run(self) -> None:
        """Clean up until cancelled."""
        while True:
            done = 0
            try:
                done = await self.step()
            except SQLAlchemyError as error:
                log.warning("cleaning up waits for Postgres: %s", error)
            except Exception:
                log.exception("could not clean up")
            await asyncio.sleep(_BUSY_SECONDS if done >= _MANY else until_tick(_IDLE_SECONDS))

    async def step(self) -> int:
        """Do a little of each kind of work, and return the most rows that one of them took.

        Raises:
            sqlalchemy.exc.SQLAlchemyError: Postgres is unavailable.
        """
        settings, database = self._settings, self._database
        work = [
            partial(erase_unstored, database, seconds=settings.unstored_seconds),
            partial(prune_deltas, database, seconds=settings.delta_retention_seconds),
            partial(sweep_keys, database),
        ]
        if settings.retention_days is not None:
            seconds = settings.retention_days * _DAY_SECONDS
            work += [partial(forget_jobs, database, seconds=seconds), partial(forget_files, database, seconds=seconds)]
        if settings.batch_retention_days is not None:
            work.append(partial(forget_batches, database, seconds=settings.batch_retention_days * _DAY_SECONDS))
        work.append(partial(sweep_files, database))
        return max([await _alone(each) for each in work] + [await self._do_rare_work()])

    async def _do_rare_work(self) -> int:
        if time.monotonic() < self._rarely_at:
            return 0
        work = (expire_spare_outputs, empty_deleted_agents, forget_gone)
        done = max([await _alone(partial(each, self._database)) for each in work])
        if done < _MANY:
            self._rarely_at = time.monotonic() + _RARELY_SECONDS
        return done


async def _alone(work: Callable[[], Awaitable[int]]) -> int:
    """Do one kind of work and return its rows. If Postgres refuses the statement, the other kinds go on."""
    try:
        return await work()
    except SQLAlchemyError as error:
        if is_unavailable(error):
            raise
        log.exception("could not clean up")
        return 0
