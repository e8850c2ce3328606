"""Ending a job for a client: cancelled or erased at its request, or abandoned because the client left."""

from __future__ import annotations

import asyncio
import contextlib
import functools

from api.http.request import ApiRequest
from headrace.events.follow import follow
from headrace.events.job_events import Ended
from headrace.events.listener import ListenerClosedError
from headrace.jobs.cancellation import cancel_job
from headrace.jobs.records import MovedJob
from headrace.jobs.sql.erase import delete_job
from headrace.jobs.state import State

# Seconds to wait for a worker to stop. It stops within a second, or at its next heartbeat if it missed the message.
_PATIENCE_SECONDS = 4.0
# Seconds before each further look at a cancelled job while the API process shuts down: all within its last seconds.
_LOOK_SECONDS = (0.1, 0.2, 0.4, 0.8)


async def cancel(request: ApiRequest, job_id: str, account_id: str) -> MovedJob | None:
    """Cancel a job of an account. Returns the job afterwards, or None if the account has no such job."""
    return await cancel_job(request.state["database"], request.state["publisher"], job_id, account_id)


async def cancel_and_wait(request: ApiRequest, job_id: str, account_id: str) -> MovedJob | None:
    """Cancel a job, and wait a few seconds for its worker to end it."""
    state = request.state
    async with state["hub"].listen(job_id, own=False) as listener:
        job = await cancel(request, job_id, account_id)
        if job is not None and job.state is State.RUNNING:
            with contextlib.suppress(TimeoutError, ListenerClosedError):
                async with asyncio.timeout(_PATIENCE_SECONDS):
                    async for event in follow(listener, state["database"]):
                        if isinstance(event, Ended):
                            break
        return job


async def erase(request: ApiRequest, job_id: str, account_id: str) -> bool:
    """Stop a job if it has not ended, and erase its content. Returns False if the account has no such job."""
    await cancel_and_wait(request, job_id, account_id)
    return await delete_job(request.state["database"], job_id, account_id)


async def abandon(request: ApiRequest, job_id: str, account_id: str) -> MovedJob | None:
    """Cancel the job of a client that left, and try again if Postgres is unavailable.

    Returns the job afterwards, or None while Postgres is unavailable.
    """
    cancellations = request.state["cancellations"]
    return await cancellations.cancel(job_id, functools.partial(cancel, request, job_id, account_id))


async def is_ended_by_cancelling(request: ApiRequest, job_id: str, account_id: str) -> bool:
    """Cancel a job, and tell within two seconds whether it ended without an answer.

    The worker of a running job may still complete it, so this looks until the job has ended.
    """
    job = await abandon(request, job_id, account_id)
    for seconds in _LOOK_SECONDS:
        if job is None or job.state is not State.RUNNING:
            break
        await asyncio.sleep(seconds)
        job = await abandon(request, job_id, account_id)
    return job is not None and job.state is State.CANCELLED
