"""A worker moves the jobs it runs: it claims jobs, extends leases, writes deltas, and ends or puts back attempts."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

from headrace.conversations.appending import NEW_ITEMS, append_items, item_parameters
from headrace.jobs.records import ClaimedJob, FinishedJob, Segment
from headrace.jobs.sql.columns import Column, Columns, one_row, unnest
from headrace.jobs.sql.fragments import STARTS_OVER, TRANSACTION, append_attempt, put_back, storable, tally_and_notify
from headrace.jobs.sql.usage import FROM_JOB, INSERT_USAGE, JOB_FOR_USAGE, SPENT
from headrace.jobs.state import State
from headrace.stores.connections import PATIENCE_SECONDS
from headrace.stores.database import Database, execute
from headrace.stores.group_commit import STATEMENT_BYTES
from headrace.stores.plain import Prepared
from headrace.usage.spent import SpentUsage
from headrace.webhooks.queries import JOB_FOR_WEBHOOK, insert_job_deliveries

# These statements look each job up by its id. Postgres estimates that hardly any job is queued or running, so it
# prefers to read all such jobs by their partial indexes, which also have an entry for each job that was one since the
# last vacuum. Two forms prevent that: Postgres does not merge a subquery that locks its row into a join, and no partial
# index is on `lease_until`, which running jobs alone have.


def _claim(due: str, condition: str) -> Prepared:
    return Prepared(f"""
WITH due AS MATERIALIZED (
    SELECT {due} FROM unnest(%(ids)b::text[]) AS wanted (id) CROSS JOIN LATERAL (
        SELECT id, octet_length(request) AS size FROM jobs
        WHERE jobs.id = wanted.id AND deadline_at > now()
              AND (state = 'queued' AND scheduled_at <= now()
                   OR state = 'running' AND worker = %(worker)s AND NOT jobs.id = ANY(%(held)b::text[]))
        FOR UPDATE SKIP LOCKED) AS job
)
UPDATE jobs SET state = 'running', attempt = attempt + 1, worker = %(worker)s,
                lease_until = now() + %(lease)s * interval '1 second', started_at = coalesce(started_at, now())
FROM due WHERE jobs.id = due.id{condition}
RETURNING jobs.id, attempt, account_id, key_id, model, request, background, streamed, origin, tier,
          route, retries, floor(extract(epoch FROM created_at))::bigint,
          extract(epoch FROM deadline_at - now())::float8, batch_id, format, conversation_id,
          extract(epoch FROM now() - scheduled_at)::float8 AS seconds_waited, trace_context,
          webhook IS NOT NULL, octet_length(request)
""")


_CLAIM_ONE = _claim("job.id", "")
_CLAIM_ALL = _claim(
    "job.id, sum(size) OVER (ROWS UNBOUNDED PRECEDING) - size AS before", f" AND before < {STATEMENT_BYTES}"
)


async def claim_jobs(
    database: Database,
    job_ids: Sequence[str],
    *,
    worker: str,
    lease_seconds: float,
    held: Sequence[str] = (),
    patience_seconds: float = PATIENCE_SECONDS,
) -> list[ClaimedJob]:
    """Claim those of the jobs that are queued and due. Another worker has claimed the others, or they have ended.

    The job whose request takes the sum of all past `STATEMENT_BYTES` is the last: others may be queued and due then.

    `held` are the jobs that the worker knows it holds. A job that it holds by Postgres's account but not by its own was
    claimed by a statement whose answer was lost, so it is claimed again. `worker` is unique to the process.

    The commit waits for the disk. If Postgres lost a claim, it would give the same attempt number to another claim:
    readers could not tell the two attempts' events apart, and the fence would let both write.
    """
    parameters = {"ids": list(job_ids), "worker": worker, "lease": lease_seconds, "held": list(held)}
    statement = _CLAIM_ONE if len(job_ids) == 1 else _CLAIM_ALL
    rows = await execute(database.durable, statement, parameters, patience_seconds=patience_seconds)
    return [ClaimedJob(*row) for row in rows]


_CLAIMABLE = """
SELECT id, attempt FROM jobs
WHERE id = ANY(%(ids)b::text[]) AND deadline_at > now()
      AND (state = 'queued' AND scheduled_at <= now() OR state = 'running' AND worker = %(worker)s)
"""


async def find_claimable(database: Database, job_ids: Sequence[str], *, worker: str) -> list[tuple[str, int]]:
    """Return those of the jobs that are queued and due, or that the worker has claimed, with their last attempts.

    A job whose claim has not committed yet is among the queued ones.
    """
    rows = await execute(database.relaxed, _CLAIMABLE, {"ids": list(job_ids), "worker": worker})
    return [(row[0], row[1]) for row in rows]


_HEARTBEAT = Prepared("""
WITH held AS (
    SELECT * FROM unnest(%(id)b::text[], %(attempt)b::int[]) AS held (id, attempt)
), mine AS MATERIALIZED (
    SELECT job.id FROM held CROSS JOIN LATERAL (
        SELECT id FROM jobs WHERE jobs.id = held.id AND attempt = held.attempt AND state = 'running'
        FOR NO KEY UPDATE SKIP LOCKED) AS job
), extended AS (
    UPDATE jobs SET lease_until = now() + %(lease)s * interval '1 second' FROM mine WHERE jobs.id = mine.id
)
SELECT held.id, held.attempt, coalesce(jobs.attempt <> held.attempt OR jobs.state <> 'running', true) AS lost
FROM held LEFT JOIN jobs USING (id)
WHERE jobs.id IS NULL OR jobs.attempt <> held.attempt OR jobs.state <> 'running'
      OR jobs.cancel_requested_at IS NOT NULL
""")


async def extend_leases(
    database: Database,
    held: Sequence[tuple[str, int]],
    *,
    lease_seconds: float,
    patience_seconds: float = PATIENCE_SECONDS,
) -> list[tuple[str, int, bool]]:
    """Extend the leases of `(job_id, attempt)` pairs. Returns those to stop, with true if lost, false if cancelled."""
    parameters = {
        "id": [job_id for job_id, _ in held],
        "attempt": [attempt for _, attempt in held],
        "lease": lease_seconds,
    }
    rows = await execute(database.relaxed, _HEARTBEAT, parameters, patience_seconds=patience_seconds)
    return [(row[0], row[1], row[2]) for row in rows]


_SEGMENT_OF = Columns[Segment](Column("job_id", "text"), Column("attempt", "int"))
SEGMENT = Columns[Segment](Column("first_seq", "int"), Column("last_seq", "int"), Column("chunks", "text"))

_SEGMENTS = Prepared(f"""
INSERT INTO job_deltas ({_SEGMENT_OF.names}, {SEGMENT.names})
SELECT {_SEGMENT_OF.values("new")}, {SEGMENT.values("new")}
FROM {unnest("new", _SEGMENT_OF, SEGMENT)} CROSS JOIN LATERAL (
    SELECT FROM jobs WHERE jobs.id = new.job_id AND attempt = new.attempt AND state = 'running' AND deleted_at IS NULL
    FOR KEY SHARE) AS job
ON CONFLICT (job_id, attempt, first_seq) DO UPDATE SET last_seq = excluded.last_seq, chunks = excluded.chunks
""")


async def append_segments(database: Database, segments: Sequence[Segment]) -> None:
    """Store deltas of running attempts, and drop those of attempts that no longer hold their job.

    The commit waits for the disk, because the worker frees its copy afterwards. The lock keeps a job from another
    attempt until then: what that attempt reads of an earlier one is final.
    """
    await execute(database.durable, _SEGMENTS, {**_SEGMENT_OF.for_all(segments), **SEGMENT.for_all(segments)})


_ATTEMPT = Columns[FinishedJob](Column("id", "text"), Column("attempt", "int"))
FINISHED_JOB = Columns[FinishedJob](
    Column("state", "text", attrgetter("state.value")),
    Column("provider", "text"),
    Column("response", "text", value="CASE WHEN jobs.deleted_at IS NULL THEN {} END"),
    Column("error", "text"),
    Column("delta_count", "int"),
    Column("tried", "text", lambda job: storable(job.record), append_attempt("{}::jsonb")),
    Column("first_token_at", "float8", attrgetter("seconds_since_first_token"), "now() - {} * interval '1 second'"),
)


_TALLIED_AND_NOTIFIED = f""", tallied AS (
    INSERT INTO batch_tallies (batch_id, completed, failed, cancelled, prompt_tokens, cached_tokens,
                               completion_tokens, reasoning_tokens, cost)
    SELECT batch_id, count(*) FILTER (WHERE state = 'completed'),
           count(*) FILTER (WHERE state NOT IN ('completed', 'cancelled')),
           count(*) FILTER (WHERE state = 'cancelled'),
           coalesce(sum(prompt_tokens), 0), coalesce(sum(cached_tokens), 0), coalesce(sum(completion_tokens), 0),
           coalesce(sum(reasoning_tokens), 0), sum(cost)
    FROM finished WHERE batch_id IS NOT NULL GROUP BY batch_id
){insert_job_deliveries("finished")}"""


def _finish(ended: str, *, followed: bool) -> str:
    # What the ends bring along goes through the update, so that no later part has to look for it by the job's id.
    return f"""
WITH finished AS (
    UPDATE jobs SET {FINISHED_JOB.assignments("ended")},
                    finished_at = now(), finished_in = {TRANSACTION}, lease_until = NULL,
                    request = CASE WHEN jobs.deleted_at IS NULL THEN jobs.request END
    FROM {ended}
    WHERE jobs.id = ended.id AND jobs.attempt = ended.attempt AND jobs.lease_until IS NOT NULL
    RETURNING {JOB_FOR_USAGE}, jobs.attempt, jobs.provider, jobs.deleted_at, jobs.state, {JOB_FOR_WEBHOOK},
              jobs.conversation_id, {SEGMENT.parameters("ended")}, {SPENT.parameters("ended")}
), kept AS (
    INSERT INTO job_deltas (job_id, attempt, {SEGMENT.names})
    SELECT id, attempt, {SEGMENT.names} FROM finished WHERE chunks IS NOT NULL AND deleted_at IS NULL
    ON CONFLICT (job_id, attempt, first_seq) DO UPDATE SET last_seq = excluded.last_seq, chunks = excluded.chunks
), erased AS (
    DELETE FROM job_deltas USING finished WHERE job_deltas.job_id = finished.id AND finished.deleted_at IS NOT NULL
), spent AS (
    {INSERT_USAGE}
    SELECT 'counted', {FROM_JOB}, provider, {SPENT.values("finished")}
    FROM finished WHERE prompt_tokens IS NOT NULL
){_TALLIED_AND_NOTIFIED if followed else ""}"""


_TURNS = append_items(f"""
    SELECT conversation_id, new_item.id, new_item.item, new_item.number
    FROM {NEW_ITEMS} JOIN finished ON finished.id = new_item.owner
    WHERE finished.state = 'completed' AND finished.deleted_at IS NULL AND conversation_id IS NOT NULL
""")
_ENDED = ("ended", _ATTEMPT, FINISHED_JOB, SEGMENT, SPENT)
# Most ends that come alone are of requests without a batch and without a webhook.
_FINISH_ONE = Prepared(f"{_finish(one_row(*_ENDED), followed=False)} SELECT id FROM finished")
_FINISH_ALL = Prepared(f"{_finish(unnest(*_ENDED), followed=True)} SELECT id FROM finished")
_FINISH_WITH_TURNS = Prepared(f"{_finish(unnest(*_ENDED), followed=True)}, {_TURNS} SELECT id FROM finished")


async def finish_jobs(
    database: Database, ended: Sequence[FinishedJob], *, patience_seconds: float = PATIENCE_SECONDS
) -> list[bool]:
    """End jobs: state, response, last deltas and usage in one statement, and what their conversations get.

    Returns for each job whether the attempt still held it. A job that another attempt took, or that has ended, stays
    as it is.
    """
    has_turns = any(job.turn for job in ended)  # no other end pays for the conversations' part
    is_one = len(ended) == 1 and not ended[0].followed
    statement = _FINISH_WITH_TURNS if has_turns else _FINISH_ONE if is_one else _FINISH_ALL
    parts: Sequence[tuple[Columns[Any], Sequence[Any]]] = (
        (_ATTEMPT, ended),
        (FINISHED_JOB, ended),
        (SEGMENT, [job.segment for job in ended]),
        (SPENT, [job.spent for job in ended]),
    )
    parameters: dict[str, Any] = {}
    for columns, records in parts:
        parameters |= columns.for_one(records[0]) if statement is _FINISH_ONE else columns.for_all(records)
    if has_turns:
        parameters |= item_parameters([(job.id, job.turn) for job in ended])
    rows = await execute(database.durable, statement, parameters, patience_seconds=patience_seconds)
    finished = {row[0] for row in rows}
    return [job.id in finished for job in ended]


_RETRY = f"""
WITH put_back AS (
    UPDATE jobs SET {put_back("%(cancelled)s")}, route = %(route)s,
                    retries = %(retries)s, scheduled_at = now() + %(delay)s * interval '1 second',
                    sent_at = now() + %(delay)s * interval '1 second',
                    tried = {append_attempt("%(record)s::jsonb")}
    WHERE id = %(id)s AND attempt = %(attempt)s AND state = 'running'
    RETURNING {JOB_FOR_USAGE}, attempt, state, {JOB_FOR_WEBHOOK}
), forgotten AS (
    DELETE FROM job_deltas USING put_back WHERE job_deltas.job_id = put_back.id AND {STARTS_OVER}
), spent AS (
    {INSERT_USAGE}
    SELECT 'discarded', {FROM_JOB}, %(provider)s, {SPENT.single}
    FROM put_back WHERE %(prompt_tokens)s::bigint IS NOT NULL
){tally_and_notify("put_back")}
SELECT state FROM put_back
"""


async def retry_job(
    database: Database,
    job_id: str,
    attempt: int,
    *,
    delay_seconds: float,
    route: int,
    retries: int,
    cancelled: str,
    record: str | None,
    spent: SpentUsage | None = None,
) -> State | None:
    """Put a running job back in the queue, due in `delay_seconds`, or end it if its cancellation was requested.

    The next attempt takes `route`, on which `retries` attempts have failed by then. This attempt's usage is written as
    discarded. As JSON, `cancelled` is the error of a job that ends here, and `record` describes the attempt in the
    job's `attempts`; None leaves it out. Returns the job's state, or None if the attempt no longer held the job.
    """
    parameters = {
        "id": job_id,
        "attempt": attempt,
        "delay": delay_seconds,
        "route": route,
        "retries": retries,
        "cancelled": cancelled,
        "record": None if record is None else storable(record),
        "provider": spent and spent.provider,
        **SPENT.for_one(spent),
    }
    rows = await execute(database.durable, _RETRY, parameters)
    return State(rows[0].state) if rows else None


async def rehearse(database: Database, *, patience_seconds: float) -> None:
    """Run a worker's writing statements without a job. They fail where they would fail with one.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: Postgres cannot serve, or its schema is not the one that this release knows.
    """
    await claim_jobs(database, [], worker="", lease_seconds=0, patience_seconds=patience_seconds)
    await append_segments(database, [])
    await finish_jobs(database, [], patience_seconds=patience_seconds)


_DISCARD = f"""
{INSERT_USAGE}
SELECT 'discarded', {FROM_JOB}, %(provider)s, {SPENT.single}
FROM (SELECT {JOB_FOR_USAGE}, %(attempt)s::int AS attempt FROM jobs
      WHERE id = %(id)s AND NOT EXISTS (SELECT FROM usage WHERE job_id = jobs.id AND usage.attempt = %(attempt)s)
     ) AS spender
"""


async def record_discarded(database: Database, job_id: str, attempt: int, spent: SpentUsage) -> None:
    """Write the usage of an attempt that lost its job, unless the attempt already has a row of usage."""
    parameters = {
        "id": job_id,
        "attempt": attempt,
        "provider": spent.provider,
        **SPENT.for_one(spent),
    }
    await execute(database.durable, _DISCARD, parameters)
