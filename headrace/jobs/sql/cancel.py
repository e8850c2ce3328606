"""A client or an operator cancels jobs, and the scheduler cancels the lines of a batch."""

from __future__ import annotations

from dataclasses import replace

from headrace.jobs.records import MovedJob
from headrace.jobs.sql.fragments import TRANSACTION, read_moved, tally, tally_and_notify
from headrace.stores.database import Database, execute
from headrace.webhooks.queries import JOB_FOR_WEBHOOK

# What a cancellation sets of a queued job, which ends, and of a running one, whose worker ends it.
_CANCELLED = f"""cancel_requested_at = coalesce(cancel_requested_at, now()),
                    state = CASE WHEN jobs.state = 'queued' THEN 'cancelled' ELSE jobs.state END,
                    finished_at = CASE WHEN jobs.state = 'queued' THEN now() END,
                    finished_in = CASE WHEN jobs.state = 'queued' THEN {TRANSACTION} END,
                    error = CASE WHEN jobs.state = 'queued' THEN %(error)s END"""

_CANCEL = f"""
WITH target AS MATERIALIZED (
    SELECT id, tier, state, attempt, origin FROM jobs
    WHERE id = %(id)s AND account_id = %(account_id)s AND deleted_at IS NULL FOR UPDATE
), changed AS (
    UPDATE jobs SET {_CANCELLED}
    FROM target WHERE jobs.id = target.id AND target.state IN ('queued', 'running')
    RETURNING jobs.id, jobs.account_id, jobs.batch_id, jobs.state, {JOB_FOR_WEBHOOK}
){tally_and_notify("changed")}
SELECT target.id, target.tier, coalesce(changed.state, target.state) AS state, target.attempt, target.origin,
       changed.id IS NOT NULL AS moved
FROM target LEFT JOIN changed USING (id)
"""


async def cancel_job(database: Database, job_id: str, account_id: str, *, error: str) -> MovedJob | None:
    """Cancel a queued job at once, or request the cancellation of a running one. An ended job stays unchanged.

    Returns the job as it is then, or None if the account has no such job. `error` is the JSON that the row keeps.
    """
    rows = await execute(database.durable, _CANCEL, {"id": job_id, "account_id": account_id, "error": error})
    if not rows:
        return None
    [job] = read_moved(rows)
    return replace(job, moved=rows[0].moved)


_CANCEL_LINES = f"""
WITH target AS MATERIALIZED (
    SELECT id, state FROM jobs
    WHERE batch_id = %(batch_id)s
          AND (state = 'queued' OR (state = 'running' AND cancel_requested_at IS NULL))
    ORDER BY id LIMIT 1000 FOR UPDATE SKIP LOCKED
), changed AS (
    UPDATE jobs SET {_CANCELLED}
    FROM target WHERE jobs.id = target.id
    RETURNING jobs.id, tier, jobs.state, attempt, origin, batch_id
){tally("changed")}
SELECT id, tier, state, attempt, origin FROM changed
"""


async def cancel_lines(database: Database, batch_id: str, *, error: str) -> list[MovedJob]:
    """Cancel up to 1,000 jobs of a batch as `cancel_job` does one, and return them as they are then.

    The caller repeats it until it returns no job.
    """
    return read_moved(await execute(database.durable, _CANCEL_LINES, {"batch_id": batch_id, "error": error}))
