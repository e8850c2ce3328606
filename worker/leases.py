"""The leases of one worker: one statement renews them all, and calls stop whose jobs were lost or cancelled.

A lease says until when a job is this worker's, by this worker's own clock. Postgres decides, but it may not answer: a
worker that was frozen, or that lost its connection, goes by its last heartbeat. Once a lease has expired the job may be
with another attempt, so the worker publishes none of the job's events until a heartbeat has renewed the lease. The call
itself goes on, as Postgres may be unavailable to every worker; the next heartbeat shows whether the job was lost.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from redis.asyncio import Redis
from sqlalchemy.exc import SQLAlchemyError

from headrace.events.subscription import hear_cancellations
from headrace.jobs.sql.run import extend_leases, rehearse
from headrace.runtime.chores import next_tick
from headrace.runtime.clock import now
from headrace.settings import Settings
from headrace.stores.database import Database
from headrace.telemetry.health import HEALTH
from worker.attempt import Attempt, Stop
from worker.availability import Availability

log = logging.getLogger(__name__)

# Seconds between two heartbeats while Redis is unavailable, as heartbeats find cancellations then.
_WITHOUT_REDIS_SECONDS = 0.7
# Seconds for which a cancellation that comes before its job is remembered.
_REMEMBER_SECONDS = 0.7
# Seconds between two heartbeats while Postgres is unavailable.
_AGAIN_SECONDS = 0.5


class Leases:
    """Every attempt of this worker, the newest of each job, with its lease."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        redis: Redis,
        availability: Availability,
    ) -> None:
        self._settings = settings
        self._database = database
        self._redis = redis
        self._availability = availability
        self._attempts: dict[str, Attempt] = {}
        self._cancelled: dict[str, float] = {}
        """Jobs that were cancelled a moment ago, which may be on their way here, and when."""
        self.without_redis = False
        """Whether Redis is unavailable, so that no cancellation comes by it."""

    @property
    def attempts(self) -> list[Attempt]:
        """The attempts that run."""
        return list(self._attempts.values())

    def add(self, attempt: Attempt) -> None:
        """Renew an attempt's lease from now on; an older attempt of its job is stopped."""
        job_id = attempt.job.id
        if (older := self._attempts.get(job_id)) is not None:
            older.interrupt(Stop.LOST)
        self._attempts[job_id] = attempt
        if job_id in self._cancelled:
            attempt.interrupt(Stop.CANCELLED)

    def remove(self, attempt: Attempt) -> None:
        """Stop renewing an attempt's lease."""
        if self._attempts.get(attempt.job.id) is attempt:
            del self._attempts[attempt.job.id]

    async def run(self, mark: Callable[[], Awaitable[None]]) -> None:
        """Renew every lease, and stop the calls of jobs that were lost or cancelled; until cancelled.

        Each heartbeat calls `mark`, which marks the jobs that have no slot here yet.
        """
        while True:
            await self._pause()
            try:
                await self._beat()
                await mark()
            except SQLAlchemyError as error:
                log.warning("could not extend leases: %s", error)
                self._availability.lost(error)
            else:
                HEALTH.beat()
                self._availability.found()

    async def _pause(self) -> None:
        if not self._availability.reachable.is_set():
            await asyncio.sleep(_AGAIN_SECONDS)
        elif self.without_redis:
            await asyncio.sleep(min(self._settings.heartbeat_seconds, _WITHOUT_REDIS_SECONDS))
        else:
            await next_tick(self._settings.heartbeat_seconds)

    async def _beat(self) -> None:
        lease, patience = self._settings.lease_seconds, self._settings.heartbeat_seconds
        held = {(attempt.job.id, attempt.job.attempt): attempt for attempt in self._attempts.values()}
        if held:
            asked = now()
            to_stop = await extend_leases(self._database, list(held), lease_seconds=lease, patience_seconds=patience)
            lost = {(job_id, number): lost for job_id, number, lost in to_stop}
            for key, attempt in held.items():
                if key in lost:
                    attempt.interrupt(Stop.LOST if lost[key] else Stop.CANCELLED)
                if not lost.get(key):
                    attempt.lease.until = asked + lease
        if not self._availability.reachable.is_set():
            await rehearse(self._database, patience_seconds=patience)

    async def hear_cancellations(self, on_calls: Callable[[], None] | None) -> None:
        """Stop the calls of jobs that are cancelled, as soon as Redis says so; until cancelled.

        `on_calls` is called when a worker of this machine that was quiet makes a call.
        """
        await hear_cancellations(self._redis, self._hear, on_calls=on_calls)

    def _hear(self, job_id: str) -> None:
        self._cancelled[job_id] = now()
        if (attempt := self._attempts.get(job_id)) is not None:
            attempt.interrupt(Stop.CANCELLED)
        while (oldest := next(iter(self._cancelled))) and self._cancelled[oldest] < now() - _REMEMBER_SECONDS:
            del self._cancelled[oldest]
