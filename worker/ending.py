"""How an attempt ends in Postgres: its job ends, goes back to the queue, or was lost to another attempt.

The worker writes an end to Postgres before it publishes it, so no client sees an end that is lost later. While Postgres
is unavailable the writes wait.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from functools import partial
from operator import attrgetter
from typing import Any

import orjson
from sqlalchemy.exc import SQLAlchemyError

from headrace.conversations.turn import turn_of
from headrace.errors import HeadraceError, JobCancelledError
from headrace.events.publisher import Publisher
from headrace.jobs.records import FinishedJob, MovedJob
from headrace.jobs.sql.run import finish_jobs, record_discarded, retry_job
from headrace.jobs.state import State
from headrace.queue import JobQueue
from headrace.stores.database import Database
from headrace.stores.group_commit import GroupCommit
from headrace.usage.spent import NOTHING, SpentUsage
from worker.attempt import Attempt
from worker.attempt_log import DEFERRED, log_attempt
from worker.availability import Availability
from worker.deltas import DeltaWriter
from worker.measures import Measures
from worker.retry import Retry

log = logging.getLogger(__name__)


class Endings:
    """Writes the ends of attempts, those that come together in one statement."""

    def __init__(
        self,
        database: Database,
        availability: Availability,
        queue: JobQueue,
        publisher: Publisher,
        deltas: DeltaWriter,
        *,
        measures: Measures,
    ) -> None:
        self._database = database
        self._availability = availability
        self._queue = queue
        self._publisher = publisher
        self._deltas = deltas
        self._measures = measures
        self._group = GroupCommit(partial(finish_jobs, database), statement="finish", size=attrgetter("size"))

    async def finish(
        self,
        attempt: Attempt,
        state: State,
        *,
        response: dict[str, Any] | None = None,
        error: HeadraceError | None = None,
    ) -> None:
        """End a job in a final state, with the response or the error that its client gets."""
        attempt.begin_end()
        await self._deltas.settle(attempt.deltas)
        # A provider that failed before any text charges nothing.
        spent = attempt.spent() if attempt.started or attempt.stop is not None else None
        body = orjson.dumps(response if error is None else error.document())
        finished = _finished(attempt, state, body, error, spent)
        if response is not None and attempt.job.conversation_id is not None:
            finished = replace(finished, turn=turn_of(attempt.document, response))
        try:
            ours = await self._availability.until_available(lambda: self._group.submit(finished))
        except SQLAlchemyError:
            log.exception("Postgres refused an attempt's end: the job fails")
            state, body = State.FAILED, orjson.dumps(HeadraceError().document())
            broken = replace(finished, state=state, response=None, error=body.decode(), segment=None, turn=())
            ours = await self._availability.until_available(lambda: self._group.submit(broken))
        if ours:
            if attempt.deltas.on_saved is not None and finished.segment is not None:
                attempt.deltas.on_saved(finished.segment)
            charge = NOTHING if spent is None else spent.charge
            frame = attempt.frame(attempt.deltas.seq + 1, state, [body, charge.pack()])
            self._publisher.publish(frame, origin=attempt.job.origin)
            if attempt.job.has_webhook:
                self._publisher.call_scheduler()
            if attempt.job.origin is not None:
                await asyncio.sleep(0)  # the end leaves for the client that waits before it is logged and counted
            _conclude(attempt, state, spent=spent, error=error)
            self._measures.ended(attempt.job, state, spent)
        else:
            await self.discard(attempt, spent)

    async def put_back(
        self, attempt: Attempt, again: Retry, status: str | None, error: HeadraceError | None = None
    ) -> None:
        """Put a job back into the queue for its next attempt.

        `status` is how the job's list of attempts says that this one ended; None leaves it out of the list.
        """
        job = attempt.job
        record = None if status is None else attempt.record(status, error)
        attempt.begin_end()
        await self._deltas.settle(attempt.deltas)
        spent = attempt.spent() if attempt.started else None
        state = await self._availability.until_available(
            lambda: retry_job(
                self._database,
                job.id,
                job.attempt,
                delay_seconds=again.delay_seconds,
                route=again.route,
                retries=again.retries,
                record=record,
                cancelled=JobCancelledError().stored(),
                spent=spent,
            )
        )
        if state is None:
            await self.discard(attempt, spent)
            return
        _conclude(attempt, status or DEFERRED, spent=spent, error=error)
        self._measures.spent(job, spent)
        self._publisher.announce(MovedJob(job.id, job.tier, state, job.attempt, job.origin))
        if state is State.QUEUED:
            asyncio.get_running_loop().call_later(
                again.delay_seconds, lambda: self._queue.wake([job.id], tier=job.tier)
            )

    async def discard(self, attempt: Attempt, spent: SpentUsage | None) -> None:
        """Record what an attempt that lost its job spent: its provider charges for it all the same."""
        attempt.begin_end()
        job = attempt.job
        _conclude(attempt, "lost", spent=spent)
        if spent is not None:
            await self._availability.until_available(
                lambda: record_discarded(self._database, job.id, job.attempt, spent)
            )
            self._measures.spent(job, spent)


def _conclude(attempt: Attempt, outcome: str, *, spent: SpentUsage | None, error: HeadraceError | None = None) -> None:
    """Show in the log and in the trace how an attempt ended, once Postgres has its end."""
    log_attempt(attempt, outcome, spent=spent, error=error)
    if attempt.spans is not None:
        attempt.spans.ended(outcome, error)


def _finished(
    attempt: Attempt, state: State, body: bytes, error: HeadraceError | None, spent: SpentUsage | None
) -> FinishedJob:
    deltas = attempt.deltas
    return FinishedJob(
        id=attempt.job.id,
        attempt=attempt.job.attempt,
        state=state,
        provider=attempt.provider,
        response=body.decode() if error is None else None,
        error=None if error is None else body.decode(),
        record=attempt.record(state, error),
        delta_count=deltas.seq,
        seconds_since_first_token=deltas.seconds_since_first(),
        segment=deltas.segment(),
        spent=spent,
        followed=attempt.job.batch_id is not None or attempt.job.has_webhook,
    )
