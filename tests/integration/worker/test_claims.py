"""Claims that get no answer, and claims that meet other statements of this worker."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from unittest.mock import Mock

import sqlalchemy as sa

from headrace.jobs.state import State
from headrace.settings import Settings
from headrace.stores.database import Database, execute
from headrace.telemetry.metrics import GROUP_COMMIT
from tests.fakes.provider import Gate, Provider, answer, settled
from tests.integration.databases import Session, waiting
from tests.integration.job_rows import Jobs, end_of
from tests.integration.worker.test_executor import Rig, collected, rig, settings  # noqa: F401
from tests.waiting import eventually
from worker.availability import Availability
from worker.claims import Claims
from worker.executor import Executor

# The number of the advisory lock that statements of a test wait for.
_GATE = 7


@contextlib.asynccontextmanager
async def gate(database: Database, session: Session, trigger: str) -> AsyncIterator[None]:
    """Have what fires a trigger on `jobs` wait until the end of this block."""
    await execute(
        database.durable,
        "CREATE OR REPLACE FUNCTION wait_for_gate() RETURNS trigger LANGUAGE plpgsql AS "
        f"'BEGIN PERFORM pg_advisory_xact_lock_shared({_GATE}); RETURN NEW; END'",
    )
    await execute(database.durable, trigger)
    await session.execute(f"SELECT pg_advisory_lock({_GATE})")
    try:
        yield
    finally:
        await session.execute(f"SELECT pg_advisory_unlock({_GATE})")
        await session.commit()
        await execute(database.durable, "DROP TRIGGER gate ON jobs")


async def test_a_claim_that_commits_after_the_worker_has_looked_again_is_run(
    rig: Rig,  # noqa: F811  (the fixture)
    other_session: Session,
) -> None:
    slow_commit = (
        "CREATE CONSTRAINT TRIGGER gate AFTER UPDATE OF attempt ON jobs DEFERRABLE INITIALLY DEFERRED "
        "FOR EACH ROW EXECUTE FUNCTION wait_for_gate()"
    )
    job_id = await rig.submit()
    before = statements()
    async with gate(rig.jobs.database, other_session, slow_commit):
        await rig.executor.take([job_id], tier="default")
        await waiting(other_session)
        # The claim in doubt holds its row, so the next one passes over it.
        await eventually(lambda: statements() >= before + 2, "the next claim")
        await eventually(lambda: not rig.executor._intake.tasks, "its answer")
        assert await rig.jobs.state(job_id) is State.QUEUED
    assert await rig.ended(job_id) is State.COMPLETED
    row = await rig.jobs.row(job_id)
    assert (row.attempt, row.lost) == (2, 0)
    await eventually(lambda: not rig.executor._claims.in_doubt, "no doubt")


async def test_a_claim_is_in_doubt_until_it_is_known_who_has_its_job(
    settings: Settings,  # noqa: F811  (the fixture)
    jobs: Jobs,
) -> None:
    availability = Availability()
    claims = Claims(settings, jobs.database, availability, worker="this", send_back=Mock())
    queued, mine, others, ended, later, here = [await jobs.submit() for _ in range(6)]
    availability.lost(sa.exc.TimeoutError())
    for job_id in (queued, mine, others, ended, later):
        assert await claims.claim(job_id, "flex") is None
    availability.found()
    assert await claims.claim(here, "flex") is not None
    availability.lost(sa.exc.TimeoutError())
    assert await claims.claim(here, "flex") is None  # its wake-up came twice
    availability.found()
    await jobs.claim(mine, worker="this")
    await jobs.claim(others, worker="another")
    [first, again] = await jobs.claim(ended, later, worker="another")
    await jobs.finish(end_of(first))
    await jobs.retry(again, delay_seconds=60)
    for _ in range(2):
        assert await claims.find_doubtful() == {queued: "flex", mine: "flex"}
    for job_id in (queued, mine):
        assert await claims.claim(job_id, "flex") is not None
    assert not claims.in_doubt


async def test_a_line_whose_claim_meets_the_mark_of_the_lines_that_wait_here_is_claimed_after_it(
    settings: Settings,  # noqa: F811  (the fixture)
    jobs: Jobs,
    model: str,
    provider: Provider,
    other_session: Session,
) -> None:
    slow_mark = "CREATE TRIGGER gate BEFORE UPDATE OF sent_at ON jobs FOR EACH ROW EXECUTE FUNCTION wait_for_gate()"
    held = Gate()
    provider.script(model, answer("the first line", hold=held), answer("the second line"))
    patient = settings.model_copy(update={"resend_seconds": 3600.0})  # no look finds the line that waits
    async with Executor.running(patient, line_slots=1) as executor:
        rig = Rig(executor, jobs, model)
        lines = [await rig.submit(tier="batch") for _ in range(2)]
        taken = asyncio.create_task(executor.take(lines, tier="batch"))
        await settled(held.reached)
        async with gate(jobs.database, other_session, slow_mark):
            await waiting(other_session)
            before = statements()
            held.release()
            await eventually(lambda: statements() > before and executor._claims._group._task is None, "the next claim")
        for job_id in lines:
            assert await rig.ended(job_id) is State.COMPLETED
        await taken


def statements() -> float:
    """Return how many statements of this process have claimed jobs."""
    return sum(
        sample.value
        for metric in GROUP_COMMIT.collect()
        for sample in metric.samples
        if sample.name.endswith("_count") and sample.labels["statement"] == "claim"
    )
