"""A worker's statements look each job up by its id, however many jobs are queued, run, or did so before."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from headrace.jobs.sql import run
from headrace.jobs.sql.accept import insert_jobs
from headrace.stores.plain import Prepared
from tests.integration.databases import Session
from tests.integration.job_rows import Jobs, new_job

STATEMENTS = {
    "claim": run._CLAIM,
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


@pytest.mark.parametrize("analyzed", [False, True])
@pytest.mark.parametrize("statement", STATEMENTS.values(), ids=list(STATEMENTS))
async def test_no_statement_reads_all_running_jobs(
    jobs: Jobs, other_session: Session, statement: Prepared, analyzed: bool
) -> None:
    if analyzed:  # a usual table: of many jobs hardly one is queued or running
        await insert_jobs(jobs.database, [new_job(jobs.owner) for _ in range(500)])
        await other_session.execute("UPDATE jobs SET state = 'cancelled', finished_at = now(), error = '{}'")
        await other_session.commit()
        await jobs.run()
        await other_session.execute("ANALYZE jobs")
    await other_session.execute("SET LOCAL enable_seqscan = off")  # as for every prepared statement
    found = await other_session.execute(b"EXPLAIN (GENERIC_PLAN, FORMAT JSON) " + statement.query)
    [[[document]]] = await found.fetchall()
    reads = list(nodes_on_jobs(document["Plan"]))
    assert reads
    for node in reads:
        assert node["Node Type"] == "Index Scan"
        assert "(id = " in node["Index Cond"]
