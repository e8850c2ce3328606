"""A worker's statements: it finds, claims and keeps jobs, writes their deltas, and ends each attempt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from headrace.jobs.records import ClaimedJob, FinishedJob, Segment
from headrace.jobs.sql.fragments import (
    OF_SPENDER,
    SPENDER,
    SPENT,
    TRANSACTION,
    spent_columns,
    storable,
    tally_and_announce,
)
from headrace.jobs.state import State
from headrace.stores.connections import PATIENCE_SECONDS
from headrace.stores.database import Database, execute
from headrace.usage.spent import SpentUsage
from headrace.webhooks.queries import told_of_jobs

_CLAIM = """
WITH due AS MATERIALIZED (
    SELECT id FROM jobs
    WHERE id = ANY(%(ids)b::text[]) AND deadline_at > now()
          AND (state = 'queued' AND scheduled_at <= now()
               OR state = 'running' AND worker = %(worker)s AND NOT id = ANY(%(held)b::text[]))
    ORDER BY id FOR UPDATE SKIP LOCKED
)
UPDATE jobs SET state = 'running', attempt = attempt + 1, worker = %(worker)s,
                lease_until = now() + %(lease)s * interval '1 second', started_at = coalesce(started_at, now())
FROM due WHERE jobs.id = due.id
RETURNING jobs.id, attempt, account_id, key_id, model, request, background, streamed, origin, tier,
          route, retries, floor(extract(epoch FROM created_at))::bigint,
          extract(epoch FROM deadline_at - now())::float8, batch_id
"""


async def claim_jobs(
    database: Database,
    job_ids: Sequence[str],
    *,
    worker: str,
    lease_seconds: float,
    held: Sequence[str] = (),
    patience_seconds: float = PATIENCE_SECONDS,
) -> list[ClaimedJob]:
    """Take those of the jobs that are queued and due; the others are another worker's, or have ended.

    A job that Postgres has as this worker's and that is not among `held`, those that the worker knows it has, was
    claimed by a statement whose answer was lost. It is claimed again. `worker` is unique to the process.

    This waits for the disk: a Postgres that forgot a claim would give its number to another attempt, whose events its
    readers could not tell from those that they have, and whose writes no fence.
    """
    parameters = {"ids": list(job_ids), "worker": worker, "lease": lease_seconds, "held": list(held)}
    rows = await execute(database.durable, _CLAIM, parameters, patience_seconds=patience_seconds)
    return [ClaimedJob(*row) for row in rows]


_HEARTBEAT = """
WITH held AS (
    SELECT * FROM unnest(%(id)b::text[], %(attempt)b::int[]) AS held (id, attempt)
), mine AS MATERIALIZED (
    SELECT jobs.id FROM jobs JOIN held USING (id)
    WHERE jobs.state = 'running' AND jobs.attempt = held.attempt
    ORDER BY jobs.id FOR UPDATE OF jobs SKIP LOCKED
), extended AS (
    UPDATE jobs SET lease_until = now() + %(lease)s * interval '1 second' FROM mine WHERE jobs.id = mine.id
)
SELECT held.id, held.attempt, coalesce(jobs.attempt <> held.attempt OR jobs.state <> 'running', true) AS lost
FROM held LEFT JOIN jobs USING (id)
WHERE jobs.id IS NULL OR jobs.attempt <> held.attempt OR jobs.state <> 'running'
      OR jobs.cancel_requested_at IS NOT NULL
"""


async def extend_leases(
    database: Database,
    held: Sequence[tuple[str, int]],
    *,
    lease_seconds: float,
    patience_seconds: float = PATIENCE_SECONDS,
) -> list[tuple[str, int, bool]]:
    """Extend the leases of `(job_id, attempt)` pairs and return those to stop: lost ones (true), and cancelled ones."""
    parameters = {
        "id": [job_id for job_id, _ in held],
        "attempt": [attempt for _, attempt in held],
        "lease": lease_seconds,
    }
    rows = await execute(database.relaxed, _HEARTBEAT, parameters, patience_seconds=patience_seconds)
    return [(row[0], row[1], row[2]) for row in rows]


_SEGMENTS = """
INSERT INTO job_deltas (job_id, attempt, first_seq, last_seq, chunks)
SELECT new.id, new.attempt, new.first_seq, new.last_seq, new.chunks
FROM unnest(%(id)b::text[], %(attempt)b::int[], %(first_seq)b::int[], %(last_seq)b::int[], %(chunks)b::text[])
     AS new (id, attempt, first_seq, last_seq, chunks)
JOIN jobs ON jobs.id = new.id
WHERE jobs.state = 'running' AND jobs.attempt = new.attempt AND jobs.deleted_at IS NULL
ON CONFLICT (job_id, attempt, first_seq) DO UPDATE SET last_seq = excluded.last_seq, chunks = excluded.chunks
"""


async def append_segments(database: Database, segments: Sequence[Segment]) -> None:
    """Keep deltas of running attempts. Those of an attempt that was lost meanwhile are dropped.

    This waits for the disk: whoever wrote them keeps them no longer.
    """
    parameters = {
        "id": [segment.job_id for segment in segments],
        "attempt": [segment.attempt for segment in segments],
        "first_seq": [segment.first_seq for segment in segments],
        "last_seq": [segment.last_seq for segment in segments],
        "chunks": [segment.chunks for segment in segments],
    }
    await execute(database.durable, _SEGMENTS, parameters)


_ENDED = f"""
WITH ended AS MATERIALIZED (
    SELECT * FROM unnest(
        %(id)b::text[], %(attempt)b::int[], %(state)b::text[], %(provider)b::text[], %(response)b::text[],
        %(error)b::text[], %(delta_count)b::int[], %(first_token)b::float8[],
        %(first_seq)b::int[], %(last_seq)b::int[], %(chunks)b::text[],
        %(prompt)b::bigint[], %(completion)b::bigint[], %(cached)b::bigint[], %(reasoning)b::bigint[],
        %(written)b::bigint[], %(prompt_audio)b::bigint[], %(completion_audio)b::bigint[], %(estimated)b::bool[],
        %(cost)b::numeric[], %(price)b::text[], %(answered_model)b::text[], %(end_user)b::text[], %(record)b::text[])
    AS ended (id, attempt, state, provider, response, error, delta_count, first_token, first_seq, last_seq, chunks,
              prompt_tokens, completion_tokens, cached_tokens, reasoning_tokens, cache_write_tokens,
              prompt_audio_tokens, completion_audio_tokens, estimated, cost, price, answered_model, end_user, record)
), finished AS (
    UPDATE jobs SET state = ended.state, finished_at = now(), finished_in = {TRANSACTION},
                    lease_until = NULL, provider = ended.provider,
                    request = CASE WHEN jobs.deleted_at IS NULL THEN jobs.request END,
                    response = CASE WHEN jobs.deleted_at IS NULL THEN ended.response END, error = ended.error,
                    delta_count = ended.delta_count,
                    tried = CASE WHEN jobs.deleted_at IS NULL
                                 THEN jobs.tried || (ended.record::jsonb
                                                     || jsonb_build_object('ended_at', extract(epoch FROM now())))
                                 ELSE '[]' END,
                    first_token_at = now() - ended.first_token * interval '1 second'
    FROM ended
    WHERE jobs.id = ended.id AND jobs.attempt = ended.attempt AND jobs.state = 'running'
    RETURNING {SPENDER}, jobs.deleted_at, jobs.state, jobs.webhook
), kept AS (
    INSERT INTO job_deltas (job_id, attempt, first_seq, last_seq, chunks)
    SELECT id, attempt, first_seq, last_seq, chunks FROM ended JOIN finished USING (id)
    WHERE chunks IS NOT NULL AND deleted_at IS NULL
    ON CONFLICT (job_id, attempt, first_seq) DO UPDATE SET last_seq = excluded.last_seq, chunks = excluded.chunks
), erased AS (
    DELETE FROM job_deltas USING finished WHERE job_deltas.job_id = finished.id AND finished.deleted_at IS NOT NULL
), spent AS (
    {SPENT}
    SELECT 'counted', {OF_SPENDER}, ended.provider, answered_model, end_user, prompt_tokens,
           completion_tokens, cached_tokens, reasoning_tokens, cache_write_tokens, prompt_audio_tokens,
           completion_audio_tokens, estimated, cost, price::jsonb
    FROM ended JOIN finished USING (id) WHERE prompt_tokens IS NOT NULL
), tallied AS (
    INSERT INTO batch_tallies (batch_id, completed, failed, cancelled, prompt_tokens, cached_tokens,
                               completion_tokens, reasoning_tokens, cost)
    SELECT batch_id, count(*) FILTER (WHERE finished.state = 'completed'),
           count(*) FILTER (WHERE finished.state NOT IN ('completed', 'cancelled')),
           count(*) FILTER (WHERE finished.state = 'cancelled'),
           coalesce(sum(prompt_tokens), 0), coalesce(sum(cached_tokens), 0), coalesce(sum(completion_tokens), 0),
           coalesce(sum(reasoning_tokens), 0), sum(cost)
    FROM ended JOIN finished USING (id) WHERE batch_id IS NOT NULL GROUP BY batch_id
{told_of_jobs("finished")})
SELECT id FROM finished
"""


async def finish_jobs(
    database: Database, ended: Sequence[FinishedJob], *, patience_seconds: float = PATIENCE_SECONDS
) -> list[bool]:
    """End jobs: state, response, last deltas and usage, all at once. Returns, for each, whether it was still ours."""
    rows = await execute(database.durable, _ENDED, _ended_columns(ended), patience_seconds=patience_seconds)
    finished = {row[0] for row in rows}
    return [job.id in finished for job in ended]


def _ended_columns(ended: Sequence[FinishedJob]) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {
        "id": [job.id for job in ended],
        "attempt": [job.attempt for job in ended],
        "state": [job.state.value for job in ended],
        "provider": [job.provider for job in ended],
        "response": [job.response for job in ended],
        "error": [job.error for job in ended],
        "delta_count": [job.delta_count for job in ended],
        "first_token": [job.seconds_since_first_token for job in ended],
        "first_seq": [job.segment and job.segment.first_seq for job in ended],
        "last_seq": [job.segment and job.segment.last_seq for job in ended],
        "chunks": [job.segment and job.segment.chunks for job in ended],
        "record": [storable(job.record) for job in ended],
    }
    return {**columns, **spent_columns([job.spent for job in ended])}


_RETRY = f"""
WITH put_back AS (
    UPDATE jobs SET state = CASE WHEN cancel_requested_at IS NULL THEN 'queued' ELSE 'cancelled' END,
                    finished_at = CASE WHEN cancel_requested_at IS NOT NULL THEN now() END,
                    finished_in = CASE WHEN cancel_requested_at IS NOT NULL THEN {TRANSACTION} END,
                    error = CASE WHEN cancel_requested_at IS NOT NULL THEN %(cancelled)s END,
                    request = CASE WHEN deleted_at IS NULL THEN request END,
                    lease_until = NULL, worker = NULL, route = %(route)s,
                    retries = %(retries)s, scheduled_at = now() + %(delay)s * interval '1 second',
                    sent_at = now() + %(delay)s * interval '1 second',
                    tried = CASE WHEN deleted_at IS NOT NULL THEN '[]' WHEN %(record)s::text IS NULL THEN tried
                                 ELSE tried || (%(record)s::jsonb
                                                || jsonb_build_object('ended_at', extract(epoch FROM now()))) END
    WHERE id = %(id)s AND attempt = %(attempt)s AND state = 'running'
    RETURNING {SPENDER}, attempt, state, webhook
), forgotten AS (
    DELETE FROM job_deltas USING put_back WHERE job_deltas.job_id = put_back.id
), spent AS (
    {SPENT}
    SELECT 'discarded', {OF_SPENDER}, %(provider)s, %(answered_model)s, %(end_user)s,
           %(prompt)s::bigint, %(completion)s::bigint, %(cached)s::bigint, %(reasoning)s::bigint, %(written)s::bigint,
           %(prompt_audio)s::bigint, %(completion_audio)s::bigint, %(estimated)s::bool, %(cost)s::numeric,
           %(price)s::jsonb
    FROM put_back WHERE %(prompt)s::bigint IS NOT NULL
{tally_and_announce("put_back")}
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
    """Put a running job back in the queue, due in `delay_seconds`, or end it if somebody has cancelled it.

    The next attempt takes `route`, on which `retries` have failed by then. What this one spent counts as discarded.
    `cancelled` is the error that the row keeps then, and `record` what the job's attempts say of this one if anything,
    both as JSON. Returns the job's state, or None if it was not ours.
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
        **{name: column[0] for name, column in spent_columns([spent]).items()},
    }
    rows = await execute(database.durable, _RETRY, parameters)
    return State(rows[0].state) if rows else None


async def rehearse(database: Database, *, patience_seconds: float) -> None:
    """Run what a worker writes, of no job: it fails as it would of one.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: Postgres cannot serve, or its schema is not the one that this release knows.
    """
    await claim_jobs(database, [], worker="", lease_seconds=0, patience_seconds=patience_seconds)
    await append_segments(database, [])
    await finish_jobs(database, [], patience_seconds=patience_seconds)


_DISCARD = f"""
{SPENT}
SELECT 'discarded', {OF_SPENDER}, %(provider)s, %(answered_model)s, %(end_user)s,
       %(prompt)s::bigint, %(completion)s::bigint, %(cached)s::bigint, %(reasoning)s::bigint, %(written)s::bigint,
       %(prompt_audio)s::bigint, %(completion_audio)s::bigint, %(estimated)s::bool, %(cost)s::numeric,
       %(price)s::jsonb
FROM (SELECT {SPENDER}, %(attempt)s::int AS attempt FROM jobs
      WHERE id = %(id)s AND NOT EXISTS (SELECT FROM usage WHERE job_id = jobs.id AND usage.attempt = %(attempt)s)
     ) AS spender
"""


async def record_discarded(database: Database, job_id: str, attempt: int, spent: SpentUsage) -> None:
    """Write what an attempt spent that lost its job; nothing if its usage is written already."""
    parameters = {
        "id": job_id,
        "attempt": attempt,
        "provider": spent.provider,
        **{name: column[0] for name, column in spent_columns([spent]).items()},
    }
    await execute(database.durable, _DISCARD, parameters)
