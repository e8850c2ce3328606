"""A request that was answered with 503 does not run, even if Postgres committed it and its reply was lost."""

from __future__ import annotations

import asyncio
import functools
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy.exc import DBAPIError

import api.jobs.cancellations
from api.jobs.cancellations import Cancellations
from headrace.errors import OutcomeUnknownError
from headrace.jobs.cancellation import cancel_job
from headrace.jobs.sql.accept import insert_jobs
from headrace.jobs.state import State
from headrace.stores.failures import NoAnswerError
from tests.integration.job_rows import Jobs, new_job
from tests.waiting import eventually


def asking(**headers: str) -> Any:
    return SimpleNamespace(headers=headers)


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api.jobs.cancellations, "_AGAIN_SECONDS", 0.01)
    monkeypatch.setattr(api.jobs.cancellations, "_REPEAT_SECONDS", 0.3)


async def cancelled(jobs: Jobs, job_id: str) -> bool:
    job = await cancel_job(jobs.database, None, job_id, jobs.owner.account_id)
    return job is None or job.never_ran


async def fail(
    cancellations: Cancellations, jobs: Jobs, job_id: str, request: Any, error: type[Exception] = NoAnswerError
) -> None:
    """Answer for a job whose insert gets no answer: its client gets `error`."""
    with pytest.raises(error):
        async with cancellations.answering(request, job_id, functools.partial(cancelled, jobs, job_id)):
            raise NoAnswerError


async def test_a_job_that_was_inserted_though_no_answer_came_is_cancelled_before_its_client_is_answered(
    jobs: Jobs, hurried: None
) -> None:
    job_id = await jobs.submit()
    await fail(Cancellations(), jobs, job_id, asking())
    assert await jobs.state(job_id) is State.CANCELLED


async def test_a_job_whose_insert_arrives_late_is_cancelled_then(jobs: Jobs, hurried: None) -> None:
    cancellations, new = Cancellations(), new_job(jobs.owner)
    await fail(cancellations, jobs, new.id, asking())
    running = asyncio.create_task(cancellations.run())
    await insert_jobs(jobs.database, [new])
    await eventually(lambda: not cancellations._pending, "the end of the cancellation")
    running.cancel()
    assert await jobs.state(new.id) is State.CANCELLED


async def test_the_outcome_of_a_job_that_has_run_by_then_is_unknown(jobs: Jobs, hurried: None) -> None:
    """Another way than this process's leads to Postgres, so the scheduler and a worker may have gone on."""
    running, retried, ended = await jobs.run(), await jobs.run(), await jobs.complete()
    await jobs.retry(retried)
    for job in (running, retried, ended):
        await fail(Cancellations(), jobs, job.id, asking(), OutcomeUnknownError)


async def test_the_outcome_of_a_job_that_cannot_be_cancelled_in_time_is_unknown(jobs: Jobs, hurried: None) -> None:
    job_id = await jobs.submit()

    async def cancel() -> bool:
        raise NoAnswerError

    with pytest.raises(OutcomeUnknownError):
        async with Cancellations().answering(asking(), job_id, cancel):
            raise NoAnswerError


async def test_a_job_that_its_client_will_ask_for_again_runs(jobs: Jobs, hurried: None) -> None:
    job_id = await jobs.submit()
    await fail(Cancellations(), jobs, job_id, asking(**{"idempotency-key": "again"}))
    assert await jobs.state(job_id) is State.QUEUED


@pytest.mark.parametrize(("is_made", "state"), [(False, State.QUEUED), (True, State.CANCELLED)])
async def test_a_job_that_was_made_and_not_answered_for_is_cancelled(
    jobs: Jobs, hurried: None, is_made: bool, state: State
) -> None:
    job_id = await jobs.submit()

    async def answer() -> None:
        async with Cancellations().answering(asking(), job_id, functools.partial(cancelled, jobs, job_id)) as made:
            if is_made:
                made()
            raise DBAPIError("SELECT", None, Exception(), connection_invalidated=False)

    with pytest.raises(DBAPIError):
        await answer()
    assert await jobs.state(job_id) is state


async def test_a_job_that_cannot_be_cancelled_for_its_client_that_left_is_cancelled_later(
    jobs: Jobs, hurried: None
) -> None:
    job_id = await jobs.submit()
    failures = [NoAnswerError(), NoAnswerError()]

    async def cancel() -> object:
        if failures:
            raise failures.pop()
        return await cancel_job(jobs.database, None, job_id, jobs.owner.account_id)

    cancellations = Cancellations()
    await cancellations.cancel(job_id, cancel)
    assert await jobs.state(job_id) is State.QUEUED
    running = asyncio.create_task(cancellations.run())
    await cancellations.finish()
    assert await jobs.state(job_id) is State.CANCELLED
    await eventually(lambda: not cancellations._pending, "the end of the cancellation")
    running.cancel()


async def test_a_job_whose_insert_is_cut_off_by_the_end_of_the_process_is_cancelled(jobs: Jobs, hurried: None) -> None:
    job_id = await jobs.submit()
    cancellations = Cancellations()
    with pytest.raises(asyncio.CancelledError):
        async with cancellations.answering(asking(), job_id, functools.partial(cancelled, jobs, job_id)):
            raise asyncio.CancelledError
    running = asyncio.create_task(cancellations.run())
    await cancellations.finish()
    running.cancel()
    assert await jobs.state(job_id) is State.CANCELLED
