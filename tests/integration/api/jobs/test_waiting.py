"""An account may have a bounded number of waiting jobs, and they do not delay other accounts."""

from __future__ import annotations

import pytest

from api.jobs import waiting as limiting
from api.jobs.waiting import WaitingJobs
from headrace.errors import RateLimitError
from headrace.runtime.chores import going_on
from tests.integration.job_rows import Jobs, Owner
from tests.waiting import eventually


async def submit(jobs: Jobs, waiting: WaitingJobs, count: int) -> list[str]:
    job_ids = []
    for _ in range(count):
        waiting.check(jobs.owner.account_id)
        job_ids.append(await jobs.submit())
        waiting.add(jobs.owner.account_id)
    return job_ids


async def test_an_account_with_as_many_waiting_jobs_as_it_may_have_is_refused_more_until_some_run(
    jobs: Jobs, stranger: Owner
) -> None:
    waiting = WaitingJobs(jobs.database, most=4)
    job_ids = await submit(jobs, waiting, 4)
    await waiting.count()
    with pytest.raises(RateLimitError, match="4 jobs of this account wait") as raised:
        await submit(jobs, waiting, 1)
    assert raised.value.code == "too_many_waiting_jobs"
    waiting.check(stranger.account_id)
    await jobs.claim(*job_ids[:2])
    await waiting.count()
    await submit(jobs, waiting, 2)
    with pytest.raises(RateLimitError):
        await submit(jobs, waiting, 1)


async def test_what_other_processes_accepted_is_counted(jobs: Jobs) -> None:
    here, elsewhere = WaitingJobs(jobs.database, most=6), WaitingJobs(jobs.database, most=6)
    await submit(jobs, elsewhere, 3)
    await submit(jobs, here, 4)
    await here.count()
    with pytest.raises(RateLimitError):
        await submit(jobs, here, 1)


async def test_an_account_whose_jobs_run_at_once_is_never_refused(jobs: Jobs) -> None:
    waiting = WaitingJobs(jobs.database, most=4)
    for _ in range(5):
        await jobs.claim(*await submit(jobs, waiting, 3))
        await waiting.count()


async def test_estimates_that_become_high_again_and_again_are_counted(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limiting, "_COUNT_SECONDS", 0.02)
    waiting = WaitingJobs(jobs.database, most=4)
    async with going_on(waiting.run):
        for _ in range(2):
            await jobs.claim(*await submit(jobs, waiting, 4))
            await eventually(lambda: not waiting._has_high.is_set(), "the count")
            waiting.check(jobs.owner.account_id)
