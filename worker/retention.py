"""What is not kept: erased, pruned and forgotten in small steps with a rest after each, so that nobody waits."""

from __future__ import annotations

import asyncio
import logging
import math
import time

from sqlalchemy.exc import SQLAlchemyError

from headrace.database import Database
from headrace.files.queries import expire_spare_outputs, forget_files, sweep_files
from headrace.idempotency.queries import sweep_keys
from headrace.jobs.queries import erase_unstored, forget_jobs, prune_deltas
from headrace.settings import Settings

log = logging.getLogger(__name__)

# Between two steps while there is more to do, and else.
_BUSY_SECONDS = 0.2
_IDLE_SECONDS = 5.0
# A step that does as much has probably left something.
_MANY = 100
_DAY_SECONDS = 86_400
# Between two looks at what there is only after an accident.
_RARELY_SECONDS = 3600.0


class Retention:
    """The janitor of one scheduler. Whoever else cleans up meanwhile, the two take different rows."""

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
                log.warning("what is not to be kept waits: %s", error)
            except Exception:
                log.exception("could not clean up")
            await asyncio.sleep(_BUSY_SECONDS if done >= _MANY else _IDLE_SECONDS)

    async def step(self) -> int:
        """Do a little of everything; returns how much that was, in rows.

        Raises:
            sqlalchemy.exc.SQLAlchemyError: Postgres is away.
        """
        settings, database = self._settings, self._database
        done = [
            await erase_unstored(database, seconds=settings.unstored_seconds),
            await prune_deltas(database, seconds=settings.delta_retention_seconds),
            await sweep_keys(database),
        ]
        if settings.retention_days is not None:
            seconds = settings.retention_days * _DAY_SECONDS
            done += [await forget_jobs(database, seconds=seconds), await forget_files(database, seconds=seconds)]
        if time.monotonic() >= self._rarely_at:
            done.append(await expire_spare_outputs(database))
            self._rarely_at = time.monotonic() + _RARELY_SECONDS
        done.append(await sweep_files(database))
        return max(done)
