"""The length of a queue, and the age of its oldest due job."""

from __future__ import annotations

from headrace.jobs.sql.depth import read_depths
from headrace.stores.database import execute
from tests.integration.job_rows import Jobs
from tests.integration.jobs.test_rescue import MANY_LATER


async def test_jobs_that_are_not_due_yet_hide_no_older_one_that_is(jobs: Jobs) -> None:
    due = await jobs.submit()
    await execute(jobs.database.durable, MANY_LATER, {"id": due})
    await jobs.set(due, "scheduled_at = now() - interval '2 hours'")
    [depth] = await read_depths(jobs.database, ["default"])
    assert depth.jobs == 20_001
    assert depth.oldest_seconds >= 7200
