"""Claims jobs for this worker. Claims that come together share one statement."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Sequence

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from headrace.jobs.records import ClaimedJob
from headrace.jobs.sql.rescue import keep_in_hand
from headrace.jobs.sql.run import claim_jobs, find_claimable
from headrace.runtime.clock import now
from headrace.settings import Settings
from headrace.stores.database import Database
from headrace.stores.failures import is_unavailable
from headrace.stores.group_commit import STATEMENT_BYTES, GroupCommit
from worker.attempt import Lease
from worker.availability import Availability

log = logging.getLogger(__name__)

Claim = tuple[ClaimedJob, Lease]


class Claims:
    """The jobs that this worker has claimed, or may have."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        availability: Availability,
        *,
        worker: str,
        send_back: Callable[[Sequence[str], str], None],
    ) -> None:
        """Claim as `worker`, a name that no other worker has; `send_back` wakes another worker for jobs of a tier."""
        self.worker = worker
        self._settings = settings
        self._database = database
        self._availability = availability
        self._send_back = send_back
        self._group = GroupCommit(self._claim_all, statement="claim", size=len)
        self._held: dict[str, int] = {}
        """The newest attempt here of each job, from the moment that its claim returns."""
        self._left_out: set[str] = set()
        """Jobs that a claim has left out, although they may be queued and due."""
        self._marked: Collection[str] = ()
        """Jobs of the last mark, until a claim ends after it: that claim may have found their rows locked."""
        self._mark_over = asyncio.Event()
        self._doubtful: dict[str, str] = {}
        """Jobs that a claim may yet give this worker although Postgres did not answer, and the tier of each."""

    async def claim(self, job_id: str, tier: str) -> Claim | None:
        """Claim a job; None if another worker has it, if it has ended, or if Postgres refuses or does not answer."""
        try:
            claim = await self._group.submit(job_id)
            while claim is None and job_id in self._left_out:
                self._left_out.discard(job_id)
                if job_id in self._marked:
                    await self._mark_over.wait()
                claim = await self._group.submit(job_id)
            return claim
        except SQLAlchemyError as error:
            log.warning("could not claim a job: %s", error)
            if is_unavailable(error):
                self._doubtful[job_id] = tier
                self._send_back([job_id], tier)
            return None

    def release(self, job: ClaimedJob) -> None:
        """Forget an attempt that has ended, unless the worker has claimed the job again since."""
        if self._held.get(job.id) == job.attempt:
            del self._held[job.id]

    async def mark(self, in_hand: Collection[str]) -> None:
        """Mark jobs whose wake-ups wait here, so that the scheduler does not resend them.

        The mark locks their rows for a moment, and a claim passes over a locked row. So a claim here that meets the
        mark is made again after it. No other claim waits for it.

        Raises:
            sqlalchemy.exc.SQLAlchemyError: Postgres is unavailable.
        """
        if not in_hand:
            return
        self._marked = set(in_hand)
        self._mark_over.clear()
        try:
            await keep_in_hand(self._database, list(self._marked))
        finally:
            self._mark_over.set()

    @property
    def in_doubt(self) -> bool:
        """Whether a claim got no answer, and Postgres has not shown yet who has its job."""
        return bool(self._doubtful)

    async def find_doubtful(self) -> Mapping[str, str]:
        """Return, with their tiers, the jobs in doubt that this worker may claim again; forget those that it may not.

        A claim that got no answer may commit much later. Until then its job is queued and locked, so a second claim
        passes over it. The job stays in doubt until a claim here has it, or Postgres shows it elsewhere or ended.
        """
        asked = list(self._doubtful)
        try:
            claimable = dict(await find_claimable(self._database, asked, worker=self.worker))
        except SQLAlchemyError as error:
            log.warning("could not look for jobs in doubt: %s", error)
            return {}
        for job_id in asked:
            if job_id not in claimable or claimable[job_id] == self._held.get(job_id):
                self._doubtful.pop(job_id, None)
        return {job_id: self._doubtful[job_id] for job_id in asked if job_id in self._doubtful}

    async def _claim_all(self, job_ids: Sequence[str]) -> list[Claim | None]:
        if not self._availability.reachable.is_set():
            raise sa.exc.TimeoutError("Postgres is unavailable.")
        settings, asked = self._settings, now()
        try:
            jobs = await claim_jobs(
                self._database,
                job_ids,
                held=[job_id for job_id in job_ids if job_id in self._held],
                worker=self.worker,
                lease_seconds=settings.lease_seconds,
                patience_seconds=settings.heartbeat_seconds,
            )
        except SQLAlchemyError as error:
            if is_unavailable(error):
                self._availability.lost(error)
            raise
        self._held.update((job.id, job.attempt) for job in jobs)
        if self._doubtful:
            for job in jobs:
                self._doubtful.pop(job.id, None)
        claimed = {job.id: (job, Lease(asked + settings.lease_seconds)) for job in jobs}
        full = sum(job.size for job in jobs) >= STATEMENT_BYTES
        if full or self._marked:
            left_out = [job_id for job_id in job_ids if full or job_id in self._marked]
            self._left_out.update(job_id for job_id in left_out if job_id not in claimed)
            if self._mark_over.is_set():
                self._marked = ()
        # Of an id that was sent twice, one task runs the job.
        return [claimed.pop(job_id, None) for job_id in job_ids]
