"""Which job a worker runs next while more jobs wait than it has slots."""

from __future__ import annotations

import asyncio

import pytest

from headrace.jobs.sql.find import find_fair
from headrace.jobs.state import State
from headrace.settings import Settings
from headrace.stores.database import Database
from tests.fakes.provider import Gate, Provider, answer
from tests.integration.job_rows import Jobs, Owner
from tests.integration.worker.test_executor import REQUEST, collected, executing, settings  # noqa: F401
from tests.waiting import eventually


@pytest.fixture
def others(database: Database, stranger: Owner) -> Jobs:
    """Another account's jobs."""
    return Jobs(database, stranger)


async def first(jobs: Jobs, count: int, **options: object) -> list[str]:
    found = await find_fair(
        jobs.database,
        ["priority", "default"],
        running={},
        limit=count,
        **options,  # type: ignore[arg-type]
    )
    return [job.id for job in found]


async def test_accounts_take_turns_whatever_one_has_waiting(jobs: Jobs, others: Jobs) -> None:
    many = [await jobs.submit() for _ in range(6)]
    few = [await others.submit() for _ in range(2)]
    found = await first(jobs, 4)
    assert set(found) == {*many[:2], *few}


async def test_jobs_that_clients_wait_for_come_before_those_of_the_background(jobs: Jobs, others: Jobs) -> None:
    later = await others.submit(background=True)
    waited_for = [await jobs.submit(background=False) for _ in range(2)]
    urgent = await jobs.submit(tier="priority")
    assert await first(jobs, 4) == [urgent, *waited_for, later]


async def test_accounts_that_run_more_come_later_and_may_be_left_out(jobs: Jobs, others: Jobs) -> None:
    await jobs.submit()
    few = await others.submit()
    running = {jobs.owner.account_id: (5, 0)}
    for below, count in ((None, 2), (5, 1)):
        found = await find_fair(jobs.database, ["default"], running=running, limit=9, below=below)
        assert (found[0].id, len(found)) == (few, count)


async def test_a_job_that_is_not_due_is_not_found(jobs: Jobs) -> None:
    await jobs.submit(delay_seconds=60)
    due = await jobs.submit()
    assert await first(jobs, 9) == [due]


async def test_one_accounts_long_calls_leave_a_slot_for_another_account(
    settings: Settings,  # noqa: F811  (the fixture)
    jobs: Jobs,
    others: Jobs,
    model: str,
    provider: Provider,
) -> None:
    gate = Gate()
    provider.script(model, *[answer("slow", hold=gate)] * 6, answer("quick"))
    narrow = settings.model_copy(update={"worker_slots": 6})
    async with executing(narrow, jobs, model) as rig:
        slow = [await rig.submit() for _ in range(12)]
        taken = asyncio.create_task(rig.executor.take(slow, tier="default"))
        await eventually(lambda: len(rig.executor._leases.attempts) == 6 or None, "six calls")
        quick = await others.submit(model=model, request=REQUEST % model, background=False)
        try:
            assert await rig.ended(quick) is State.COMPLETED
        finally:
            gate.release()
            taken.cancel()
