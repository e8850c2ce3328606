"""The limit of an account's waiting jobs: estimated in memory, and counted by Postgres when the estimate is high."""

from __future__ import annotations

import logging
from collections import defaultdict

from sqlalchemy.exc import SQLAlchemyError

from headrace.errors import RateLimitError
from headrace.jobs.sql.accept import count_waiting
from headrace.runtime.chores import next_tick
from headrace.runtime.flag import Flag
from headrace.stores.database import Database

log = logging.getLogger(__name__)

# Seconds between two counts by Postgres, and seconds after which a refused client may try again.
_COUNT_SECONDS = 1.0
_RETRY_SECONDS = 30.0


class WaitingJobs:
    """The estimates that one API process has of each account's waiting jobs.

    Postgres never counts an account that adds few jobs. The estimate includes jobs of other API processes once Postgres
    has counted, so an account may exceed the limit by the jobs that those accept within a second.
    """

    def __init__(self, database: Database, *, most: int) -> None:
        """Allow each account `most` waiting jobs."""
        self._database = database
        self._most = most
        self._estimates: dict[str, int] = defaultdict(int)
        self._has_high = Flag()
        """Set while Postgres has to count, as the estimate of some account is high."""

    def check(self, account_id: str) -> None:
        """Check that an account may add a job.

        Raises:
            RateLimitError: The account has the most waiting jobs that it may have.
        """
        if self._estimates.get(account_id, 0) >= self._most:
            raise RateLimitError(
                f"{self._most} jobs of this account wait: submit more when some of them have run.",
                code="too_many_waiting_jobs",
                retry_after=_RETRY_SECONDS,
            )

    def add(self, account_id: str) -> None:
        """Note that an account has added a job."""
        self._estimates[account_id] += 1
        if self._is_high(self._estimates[account_id]):
            self._has_high.set()

    async def run(self) -> None:
        """Count the waiting jobs of accounts that may have many, until cancelled."""
        while True:
            await self._has_high.wait()
            await next_tick(_COUNT_SECONDS)
            try:
                await self.count()
            except SQLAlchemyError as error:
                log.warning("could not count waiting jobs: %s", error)

    async def count(self) -> None:
        """Count the waiting jobs of accounts with a high estimate, once."""
        high = [account_id for account_id, count in self._estimates.items() if self._is_high(count)]
        if not high:
            self._has_high.clear()
        for account_id in high:
            count = await count_waiting(self._database, account_id, limit=self._most)
            if count:
                self._estimates[account_id] = count
            else:
                del self._estimates[account_id]

    def _is_high(self, estimate: int) -> bool:
        return estimate > self._most / 2
