"""Which job a worker runs next while more jobs wait than it has slots."""

from __future__ import annotations

import asyncio
import time
from functools import partial

import pytest

from headrace.ids import new_id
from headrace.jobs.records import NewLine
from headrace.jobs.sql.find import find_fair
from headrace.jobs.sql.lines import feed_lines
from headrace.jobs.state import State
from headrace.settings import Settings
from headrace.stores.database import Database, execute
from tests.fakes.provider import Gate, Provider, answer
from tests.integration.batches.test_queries import create
from tests.integration.job_rows import Jobs, Owner
from tests.integration.worker.test_executor import REQUEST, collected, executing, settings  # noqa: F401
from tests.waiting import eventually
from worker import run
from worker.executor import Executor

NARROW = """
[providers.narrow]
kind = "openai"
base_url = "{url}"
api_key = "env:TESTS_PROVIDER_KEY"
max_concurrency = 2

[models."narrow-*"]
routes = ["narrow/*"]
"""


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


async def test_lines_that_wait_for_their_provider_leave_slots_to_the_lines_of_others(
    settings: Settings,  # noqa: F811  (the fixture)
    jobs: Jobs,
    others: Jobs,
    model: str,
    provider: Provider,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run, "_PATIENCE_SECONDS", 1.0)
    assert settings.config is not None
    with settings.config.open("a") as file:
        file.write(NARROW.format(url=provider.url()))
    gate = Gate()
    provider.always(f"narrow-{model}", answer("slow", hold=gate))
    provider.always(model, answer("quick"))
    async with Executor.running(settings, line_slots=40) as executor:
        slow = await lines(jobs, f"narrow-{model}", 200)
        taken = [asyncio.create_task(executor.take(slow, tier="batch"))]
        await eventually(lambda: executor._slots.lines == 40, "lines in every slot")
        began = time.monotonic()
        quick = await lines(others, model, 60)
        taken.append(asyncio.create_task(executor.take(quick, tier="batch")))
        try:
            for job_id in quick:
                await eventually(partial(ended, others, job_id), "the end of a quick line")
            # Two calls are under way. Each second 16 lines wait for the next call, and the others stay in the queue.
            claimed = "SELECT sum(attempt) FROM jobs WHERE id = ANY(%(ids)b::text[])"
            count = (await execute(jobs.database.durable, claimed, {"ids": slow}))[0][0]
            assert count <= 40 + 16 * (2 + time.monotonic() - began)
        finally:
            gate.release()
            for task in taken:
                task.cancel()


async def lines(jobs: Jobs, model: str, count: int) -> list[str]:
    """Make jobs of the lines of a new batch, and return their ids."""
    batch_id = await create(jobs.database, jobs.owner, total=count)
    new = [
        NewLine(new_id("job"), number, f"r{number}", model, REQUEST % model, None, 3600, None, None)
        for number in range(1, count + 1)
    ]
    assert await feed_lines(jobs.database, batch_id, new, start=0, end=1, next_line=count + 1)
    return [line.id for line in new]


async def ended(jobs: Jobs, job_id: str) -> bool:
    return (await jobs.state(job_id)).is_final
