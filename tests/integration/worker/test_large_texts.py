"""Many large texts at once: requests that are claimed, deltas that are kept, and answers."""

from __future__ import annotations

import asyncio
import json
from unittest.mock import Mock

from headrace.jobs.state import State
from headrace.settings import Settings
from headrace.stores.database import execute
from tests.fakes.provider import Gate, Provider, answer, settled
from tests.integration.databases import Session, waiting
from tests.integration.job_rows import Jobs
from tests.integration.worker.test_executor import Rig, collected, rig, settings  # noqa: F401
from tests.waiting import eventually
from worker.availability import Availability
from worker.claims import Claims
from worker.deltas import Deltas, DeltaWriter

_MIB = 1024 * 1024
_COUNT = 6
_TEXT = "x" * (4 * _MIB)


async def written(jobs: Jobs, table: str, column: str) -> list[int]:
    """Return for each transaction that has written rows of a table how many bytes of a column it wrote."""
    statement = f"SELECT sum(octet_length({column})) FROM {table} GROUP BY xmin::text"
    return [row[0] for row in await execute(jobs.database.durable, statement)]


async def test_a_statement_claims_few_large_requests_and_the_next_ones_the_others(
    settings: Settings,  # noqa: F811  (the fixture)
    jobs: Jobs,
) -> None:
    patient = settings.model_copy(update={"heartbeat_seconds": 10.0})
    claims = Claims(patient, jobs.database, Availability(), worker="this", send_back=Mock())
    job_ids = [await jobs.submit(request=json.dumps({"text": _TEXT})) for _ in range(_COUNT)]
    taken = await jobs.run()
    small = await jobs.submit()
    made = await asyncio.gather(*(claims.claim(job_id, "default") for job_id in (*job_ids, taken.id, small)))
    assert [claim and claim[0].id for claim in made] == [*job_ids, None, small]
    assert max(await written(jobs, "jobs", "request")) < (16 + 5) * _MIB
    row = await jobs.row(job_ids[-1])
    assert (row.state, row.attempt) == ("running", 1)


async def test_a_statement_keeps_deltas_of_few_attempts_that_hold_many(jobs: Jobs) -> None:
    writer = DeltaWriter(jobs.database, interval_seconds=3600)
    held = [Deltas(job.id, job.attempt) for job in [await jobs.run() for _ in range(_COUNT)]]
    for deltas in held:
        deltas.append([_TEXT.encode()])
        writer.touch(deltas)
    running = asyncio.create_task(writer.run())
    try:
        await eventually(lambda: all(deltas.kept for deltas in held), "the deltas to be kept")
    finally:
        running.cancel()
    assert max(await written(jobs, "job_deltas", "chunks")) <= 16 * _MIB


async def test_a_statement_ends_few_jobs_with_large_answers(
    rig: Rig,  # noqa: F811  (the fixture)
    provider: Provider,
    other_session: Session,
) -> None:
    begin, rest = Gate(), Gate()
    provider.script(rig.model, answer("first", hold=begin), *[answer(_TEXT, hold=rest)] * _COUNT)
    first = await rig.run(background=False)
    await settled(begin.reached)
    others = [await rig.run(background=False) for _ in range(_COUNT)]
    await eventually(lambda: len(provider.calls_for(rig.model)) == 1 + _COUNT, "their calls")
    await other_session.execute("SELECT FROM jobs WHERE id = %s FOR NO KEY UPDATE", [first])
    begin.release()
    await waiting(other_session)
    rest.release()
    await eventually(lambda: all(attempt.ending for attempt in rig.executor._leases.attempts), "their ends")
    await other_session.rollback()
    for job_id in others:
        assert await rig.ended(job_id) is State.COMPLETED
    assert max(await written(rig.jobs, "jobs", "response")) <= 16 * _MIB
