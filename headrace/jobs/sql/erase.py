"""A client deletes the content of a job. The scheduler prunes deltas, content and rows past their retention."""

from __future__ import annotations

from headrace.ids import id_before
from headrace.stores.database import Database, execute

_DELETE = """
WITH erased AS (
    UPDATE jobs SET deleted_at = now(), response = NULL, metadata = NULL, tried = '[]',
                    request = CASE WHEN state IN ('queued', 'running') THEN request END
    WHERE id = %(id)s AND account_id = %(account_id)s AND deleted_at IS NULL
    RETURNING id
)
SELECT id FROM erased
"""
# A second statement, so that it sees the deltas of an end for which the first had to wait.
_DELETE_DELTAS = "DELETE FROM job_deltas USING jobs WHERE job_id = %(id)s AND id = job_id AND deleted_at IS NOT NULL"


async def delete_job(database: Database, job_id: str, account_id: str) -> bool:
    """Erase a job's content; its usage stays. Returns False if the account has no such job."""
    erased = await execute(database.durable, _DELETE, {"id": job_id, "account_id": account_id})
    if erased:
        await execute(database.durable, _DELETE_DELTAS, {"id": job_id})
    return bool(erased)


# The arrays are complete before the first row changes. A join would go on to read while jobs are updated: a job that it
# has updated is skipped and does not count, so the limit would depend on the plan. Some plans would also read
# both tables whole.
_PRUNE = """
WITH over AS MATERIALIZED (
    SELECT jobs.id FROM job_deltas JOIN jobs ON jobs.id = job_id
    WHERE job_id < %(before)s AND finished_at < now() - %(seconds)s * interval '1 second'
    ORDER BY job_id LIMIT %(limit)s FOR UPDATE OF jobs SKIP LOCKED
), emptied AS (
    UPDATE jobs SET delta_count = 0 WHERE id = ANY (ARRAY(SELECT id FROM over))
), pruned AS (
    DELETE FROM job_deltas WHERE job_id = ANY (ARRAY(SELECT id FROM over)) RETURNING job_id
)
SELECT count(*) FROM pruned
"""


async def prune_deltas(database: Database, *, seconds: float, limit: int = 1000) -> int:
    """Delete `limit` rows of deltas of jobs that ended `seconds` ago, and the rest of the last job's.

    Returns how many. The responses stay.
    """
    parameters = {"before": id_before(seconds), "seconds": seconds, "limit": limit}
    [(pruned,)] = await execute(database.relaxed, _PRUNE, parameters)
    return int(pruned)


_ERASE = """
WITH read AS MATERIALIZED (
    SELECT id FROM jobs
    WHERE NOT stored AND finished_at IS NOT NULL AND deleted_at IS NULL
          AND (id = %(id)s OR %(id)s::text IS NULL AND finished_at < now() - %(seconds)s * interval '1 second')
    ORDER BY finished_at LIMIT 500 FOR UPDATE SKIP LOCKED
), forgotten AS (
    DELETE FROM job_deltas USING read WHERE job_id = read.id
)
UPDATE jobs SET deleted_at = now(), request = NULL, response = NULL, metadata = NULL, tried = '[]' FROM read
WHERE jobs.id = read.id RETURNING jobs.id
"""


async def erase_unstored(database: Database, *, job_id: str | None = None, seconds: float = 0) -> int:
    """Erase the content of jobs with `store: false`: of one job, or of up to 500 that ended `seconds` ago."""
    return len(await execute(database.relaxed, _ERASE, {"id": job_id, "seconds": seconds}))


_FORGET = """
WITH old AS MATERIALIZED (
    SELECT jobs.id FROM jobs LEFT JOIN batches ON batches.id = jobs.batch_id
    WHERE jobs.id < %(before)s AND finished_at < now() - %(seconds)s * interval '1 second'
          AND (jobs.batch_id IS NULL OR batches.state IN ('completed', 'failed', 'expired', 'cancelled'))
    ORDER BY jobs.id LIMIT %(limit)s FOR UPDATE OF jobs SKIP LOCKED
)
DELETE FROM jobs USING old WHERE jobs.id = old.id RETURNING jobs.id
"""


async def forget_jobs(database: Database, *, seconds: float, limit: int = 500) -> int:
    """Delete up to `limit` jobs that ended `seconds` ago, and all of theirs except usage. Returns how many."""
    parameters = {"before": id_before(seconds), "seconds": seconds, "limit": limit}
    return len(await execute(database.relaxed, _FORGET, parameters))
