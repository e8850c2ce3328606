"""Sweeps over the jobs: rescues those whose lease expired, expires those past their deadline, resends lost wake-ups."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Sequence

from sqlalchemy.exc import SQLAlchemyError

from headrace.errors import AnswerInterruptedError, HeadraceError, JobCancelledError, JobExpiredError
from headrace.events.publisher import Publisher
from headrace.jobs.records import MovedJob
from headrace.jobs.sql.rescue import (
    EXPIRED_AT_ONCE,
    RESCUED_AT_ONCE,
    expire_jobs,
    find_overdue,
    rescue_jobs,
    resend_jobs,
)
from headrace.jobs.state import State
from headrace.queue import TIERS, JobQueue
from headrace.settings import Settings
from headrace.stores.database import Database
from headrace.telemetry.health import HEALTH
from headrace.telemetry.metrics import LEASES_LOST

log = logging.getLogger(__name__)

# Seconds before a rescued job is due: a client that read events of the lost attempt may cancel the job meanwhile.
_RESCUE_SECONDS = 0.5
# Heartbeats that each worker has time for, once Postgres is available again, before expired leases count.
_GRACE_HEARTBEATS = 2.5


class Sweeper:
    """Sweeps again and again over the jobs of all workers.

    While Postgres is unavailable a worker cannot extend its leases, though it may still run its jobs. So the sweeper
    rescues jobs only some heartbeats after its first sweep, after each sweep that failed, and after a time without
    sweeps: none of the jobs that came since has a lease that expires sooner.
    """

    def __init__(self, settings: Settings, database: Database, queue: JobQueue, publisher: Publisher) -> None:
        self._settings = settings
        self._database = database
        self._queue = queue
        self._publisher = publisher

    async def run(self, jobs: asyncio.Event) -> None:
        """Sweep while `jobs` is set, as there are jobs that have not ended; until cancelled."""
        loop = asyncio.get_running_loop()
        grace = _GRACE_HEARTBEATS * self._settings.heartbeat_seconds
        rescue_from = loop.time() + grace
        while True:
            if not jobs.is_set():
                await jobs.wait()
                rescue_from = loop.time() + grace
            has_more = False
            try:
                has_more = await self.sweep(rescue=loop.time() >= rescue_from)
            except SQLAlchemyError as error:
                log.warning("lost jobs wait until Postgres is available: %s", error)
                rescue_from = loop.time() + grace
            if not has_more:
                await asyncio.sleep(self._settings.sweep_seconds)

    async def sweep(self, *, rescue: bool = True) -> bool:
        """Rescue, expire and resend once. Returns whether more jobs may be to rescue or to expire.

        Raises:
            sqlalchemy.exc.SQLAlchemyError: Postgres is unavailable.
        """
        overdue = await find_overdue(self._database, TIERS, resend_seconds=self._settings.resend_seconds)
        rescued = await self._rescue() if rescue and overdue.leases else []
        LEASES_LOST.inc(len(rescued))
        expired = await expire_jobs(self._database, error=JobExpiredError().stored()) if overdue.deadlines else []
        resent = await self._resend(overdue.tiers)
        HEALTH.beat()
        if rescued or expired or resent:
            log.info("rescued %d, expired %d, sent again %d", len(rescued), len(expired), len(resent))
        asyncio.get_running_loop().call_later(_RESCUE_SECONDS, self._wake, rescued)
        self._wake(resent)
        for job in (*rescued, *expired):
            self._publisher.announce(job)
        return len(rescued) == RESCUED_AT_ONCE or len(expired) == EXPIRED_AT_ONCE

    async def _rescue(self) -> list[MovedJob]:
        max_lost = self._settings.max_lost_attempts
        return await rescue_jobs(
            self._database,
            max_lost=max_lost,
            delay_seconds=_RESCUE_SECONDS,
            cancelled=JobCancelledError().stored(),
            poisonous=HeadraceError(
                f"The leases of {max_lost} attempts of this job expired, as their workers died, froze or lost "
                "Postgres: it is not tried again.",
                code="worker_lost",
            ).stored(),
            interrupted=AnswerInterruptedError().stored(),
        )

    async def _resend(self, tiers: Sequence[str]) -> list[MovedJob]:
        """Return the queued jobs whose wake-ups are lost, and mark them as sent. Redis may be unavailable."""
        lost = []
        for tier in tiers:
            backlog = await self._queue.backlog(tier)
            if backlog is not None:
                lost += await resend_jobs(self._database, tier, backlog, resend_seconds=self._settings.resend_seconds)
        return lost

    def _wake(self, jobs: Sequence[MovedJob]) -> None:
        tiers: dict[str, list[str]] = defaultdict(list)
        for job in jobs:
            if job.state is State.QUEUED:
                tiers[job.tier].append(job.id)
        for tier, job_ids in tiers.items():
            self._queue.wake(job_ids, tier=tier)
