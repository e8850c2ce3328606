"""No statement reads jobs that have nothing to do with it, however many are queued, run, or did so before."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from headrace.jobs.sql import rescue, run
from headrace.jobs.sql.accept import insert_jobs
from headrace.stores.plain import Prepared
from tests.integration.databases import Session
from tests.integration.job_rows import Jobs, new_job

STATEMENTS = {
    "claim": run._CLAIM_ALL,
    "claim of one": run._CLAIM_ONE,
    "heartbeat": run._HEARTBEAT,
    "segments": run._SEGMENTS,
    "finish": run._FINISH_ALL,
    "finish of one": run._FINISH_ONE,
    "finish with turns": run._FINISH_WITH_TURNS,
}


def nodes_on_jobs(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the parts of a plan that read the table."""
    if plan.get("Relation Name") == "jobs" and plan["Node Type"] != "ModifyTable":
        yield plan
    for part in plan.get("Plans", ()):
        yield from nodes_on_jobs(part)


async def plan_of(statement: Prepared, session: Session, jobs: Jobs, *, analyzed: bool) -> list[dict[str, Any]]:
    """Return the parts of a statement's plan that read the table, which is new or analyzed."""
    if analyzed:  # a usual table: of many jobs hardly one is queued or running
        await insert_jobs(jobs.database, [new_job(jobs.owner) for _ in range(500)])
        await session.execute("UPDATE jobs SET state = 'cancelled', finished_at = now(), error = '{}'")
        await session.commit()
        await jobs.run()
        await session.execute("ANALYZE jobs")
    await session.execute("SET LOCAL enable_seqscan = off")  # as for every prepared statement
    found = await session.execute(b"EXPLAIN (GENERIC_PLAN, FORMAT JSON) " + statement.query)
    [[[document]]] = await found.fetchall()
    reads = list(nodes_on_jobs(document["Plan"]))
    assert reads
    return reads


@pytest.mark.parametrize("analyzed", [False, True])
@pytest.mark.parametrize("statement", STATEMENTS.values(), ids=list(STATEMENTS))
async def test_a_worker_looks_each_job_up_by_its_id(
    jobs: Jobs, other_session: Session, statement: Prepared, analyzed: bool
) -> None:
    for node in await plan_of(statement, other_session, jobs, analyzed=analyzed):
        assert node["Node Type"] == "Index Scan"
        assert "(id = " in node["Index Cond"]


@pytest.mark.parametrize("analyzed", [False, True])
async def test_a_sweep_reads_only_jobs_that_have_not_ended(jobs: Jobs, other_session: Session, analyzed: bool) -> None:
    reads = await plan_of(rescue._LOOK, other_session, jobs, analyzed=analyzed)
    assert {node["Index Name"] for node in reads} <= {"ix_jobs_running", "ix_jobs_waiting", "ix_jobs_queued"}
