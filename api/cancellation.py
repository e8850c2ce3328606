"""Cancelling a job, wherever it is: in the queue at once, at a worker by telling it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from contextlib import aclosing

import orjson
from fastapi import Request
from sqlalchemy.exc import SQLAlchemyError

from headrace.errors import JobCancelledError
from headrace.follow import Ended, follow
from headrace.jobs import queries
from headrace.jobs.queries import MovedJob
from headrace.jobs.state import State
from headrace.live import Frame, ListenerClosedError

log = logging.getLogger(__name__)

# A worker stops within a second; one that did not hear of it in time does so at its next heartbeat.
_PATIENCE_SECONDS = 4.0
_ERROR = orjson.dumps(JobCancelledError().document()).decode()


async def cancel(request: Request, job_id: str, account_id: str) -> MovedJob | None:
    """Cancel a job and tell its worker and its readers; returns the job as it is then, or None if there is none."""
    state = request.state
    job = await queries.cancel_job(state.database, job_id, account_id, error=_ERROR)
    if job is None:
        return None
    if job.state is State.RUNNING:
        await state.publisher.cancel(job_id)
    elif job.state is State.CANCELLED:
        state.publisher.publish(Frame(job_id, job.attempt, 0, job.state.value, ()), origin=job.origin)
    return job


async def cancel_and_wait(request: Request, job_id: str, account_id: str) -> MovedJob | None:
    """Cancel a job, and give its worker a moment to end it."""
    state = request.state
    async with state.hub.listen(job_id, own=False) as listener:
        job = await cancel(request, job_id, account_id)
        if job is not None and job.state is State.RUNNING:
            with contextlib.suppress(TimeoutError, ListenerClosedError):
                async with asyncio.timeout(_PATIENCE_SECONDS), aclosing(follow(listener, state.database)) as events:
                    async for event in events:
                        if isinstance(event, Ended):
                            break
        return job


async def abandon(request: Request, job_id: str, account_id: str) -> None:
    """Cancel the job of a client that went away; if Postgres is away too, the job runs to its end."""
    try:
        await cancel(request, job_id, account_id)
    except SQLAlchemyError as error:
        log.warning("could not cancel %s of a client that left: %s", job_id, error)
