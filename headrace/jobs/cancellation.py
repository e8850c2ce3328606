"""Cancelling jobs: a queued job ends at once, and the worker of a running job stops it."""

from __future__ import annotations

from headrace.errors import JobCancelledError
from headrace.events.publisher import Publisher
from headrace.jobs.records import MovedJob
from headrace.jobs.sql import cancel
from headrace.jobs.state import State
from headrace.stores.database import Database

_ERROR = JobCancelledError().stored()


async def cancel_job(database: Database, publisher: Publisher | None, job_id: str, account_id: str) -> MovedJob | None:
    """Cancel a job of an account and announce it; returns the job afterwards, or None if the account has no such job.

    Without a publisher the job's worker stops it at its next heartbeat, and its readers notice at their next check.
    """
    job = await cancel.cancel_job(database, job_id, account_id, error=_ERROR)
    if job is not None and publisher is not None:
        await announce_cancellation(publisher, job)
    return job


async def announce_cancellation(publisher: Publisher, job: MovedJob) -> None:
    """Tell the worker of a running job to stop it, or the readers of a queued job that it is cancelled.

    A job that had ended before is not announced.
    """
    if job.state is State.RUNNING:
        await publisher.cancel(job.id)
    elif job.state is State.CANCELLED and job.moved:
        publisher.announce(job)
