"""Cancelling jobs: a queued one ends at once, the worker of a running one is told to stop it."""

from __future__ import annotations

import orjson

from headrace.errors import JobCancelledError
from headrace.events.publisher import Publisher
from headrace.events.wire import Frame
from headrace.jobs.records import MovedJob
from headrace.jobs.sql import cancel
from headrace.jobs.state import State
from headrace.stores.database import Database

_ERROR = orjson.dumps(JobCancelledError().document()).decode()


async def cancel_job(database: Database, publisher: Publisher | None, job_id: str, account_id: str) -> MovedJob | None:
    """Cancel a job of an account and announce it; returns the job as it is then, or None if there is none.

    Without a publisher the job's worker learns of it at its next heartbeat, and its readers at their next check.
    """
    job = await cancel.cancel_job(database, job_id, account_id, error=_ERROR)
    if job is not None and publisher is not None:
        await announce(publisher, job)
    return job


async def announce(publisher: Publisher, job: MovedJob) -> None:
    """Tell workers to stop a job that runs, or readers that it is cancelled. A job in another state needs no word."""
    if job.state is State.RUNNING:
        await publisher.cancel(job.id)
    elif job.state is State.CANCELLED:
        publisher.publish(Frame(job.id, job.attempt, 0, job.state.value, ()), origin=job.origin)
