"""Every statement on a job, and the only writers of its state.

Each function is one statement and so one transaction. Writes of a worker are fenced: they name the attempt that the
worker claimed and touch nothing once the job has moved on. Only the database's clock is asked for the time. Statements
that lock several jobs skip what another has locked, so no two of them can wait for each other.

Arrays are sent in binary (`%(name)b`): in text, psycopg escapes each item with a regular expression, in Python, which
took half of a worker's time.

Whatever ends jobs of a batch tallies them for it, and notes in which transaction they ended: `headrace.batches` reads
both.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import DBAPIError

from headrace.database import PATIENCE_SECONDS, Database, Row, execute
from headrace.errors import ListTooLongError
from headrace.ids import id_before
from headrace.jobs.state import State
from headrace.jobs.tables import jobs
from headrace.keys.tables import accounts
from headrace.usage.spent import Charge, SpentUsage
from headrace.usage.tables import usage
from headrace.webhooks.queries import told_of_jobs


@dataclass(frozen=True, slots=True)
class NewJob:
    """What a client asks for, before there is a row."""

    id: str
    account_id: str
    key_id: str
    model: str
    request: str
    metadata: str | None
    tier: str
    background: bool
    streamed: bool
    origin: str | None
    timeout_seconds: float
    agent_id: str | None = None
    agent_version: int | None = None
    reserved_cost: Decimal | None = None
    delay_seconds: float = 0
    webhook: str | None = None
    stored: bool = True


@dataclass(frozen=True, slots=True)
class NewLine:
    """A line of a batch's input that is to become a job."""

    id: str
    line: int
    custom_id: str
    model: str
    request: str
    metadata: str | None
    timeout_seconds: float | None
    agent_id: str | None
    agent_version: int | None


@dataclass(frozen=True, slots=True)
class ClaimedJob:
    """A job under this worker's lease, and what it takes to run it."""

    id: str
    attempt: int
    account_id: str
    key_id: str
    model: str
    request: str
    background: bool
    streamed: bool
    origin: str | None
    tier: str
    route: int
    retries: int
    created: int
    seconds_left: float
    batch_id: str | None = None


@dataclass(frozen=True, slots=True)
class Segment:
    """Deltas `first_seq` to `last_seq` of an attempt, one a line."""

    job_id: str
    attempt: int
    first_seq: int
    last_seq: int
    chunks: str


@dataclass(frozen=True, slots=True)
class FinishedJob:
    """The end of an attempt, as the worker that holds it saw it."""

    id: str
    attempt: int
    state: State
    provider: str | None
    response: str | None
    error: str | None
    delta_count: int
    seconds_since_first_token: float | None
    segment: Segment | None
    spent: SpentUsage | None
    record: str
    """What the job's attempts say of this one, as JSON, but for when it ended."""


@dataclass(frozen=True, slots=True)
class MovedJob:
    """A job that was moved by another than its worker: to wake a worker for, or to tell its readers of its end."""

    id: str
    tier: str
    state: State
    attempt: int
    origin: str | None


@dataclass(frozen=True, slots=True)
class Backlog:
    """The messages that workers take next from a tier's queue: `job_ids` of all of them, `last_ids` of the last few."""

    job_ids: Sequence[str]
    last_ids: Sequence[str]
    whole: bool
    """Whether there are no others."""


_TRANSACTION = "pg_current_xact_id()::text::bigint"

_SPENT = """INSERT INTO usage (
        kind, job_id, attempt, account_id, key_id, model, agent_id, batch_id, metadata, tier, streamed, queue_ms,
        first_token_ms, duration_ms, provider, answered_model, end_user, prompt_tokens, completion_tokens,
        cached_tokens, reasoning_tokens, cache_write_tokens, prompt_audio_tokens, completion_audio_tokens, estimated,
        cost, price)"""
_SPENDER = (
    "jobs.id, jobs.account_id, jobs.key_id, jobs.model, jobs.agent_id, jobs.batch_id, jobs.metadata, "
    "jobs.tier, jobs.streamed, (extract(epoch FROM jobs.started_at - jobs.created_at) * 1000)::int AS queue_ms, "
    "(extract(epoch FROM jobs.first_token_at - jobs.created_at) * 1000)::int AS first_token_ms, "
    "(extract(epoch FROM now() - jobs.created_at) * 1000)::int AS duration_ms"
)
_OF_SPENDER = (
    "id, attempt, account_id, key_id, model, agent_id, batch_id, metadata, tier, streamed, queue_ms, "
    "first_token_ms, duration_ms"
)


def _tallied(moved: str) -> str:
    """Return the part of a statement that tallies the jobs of batches that it ends without an answer.

    `moved` is its part with the `batch_id` and the new `state` of each job.
    """
    return f"""
), tallied AS (
    INSERT INTO batch_tallies (batch_id, failed, cancelled)
    SELECT batch_id, count(*) FILTER (WHERE state <> 'cancelled'), count(*) FILTER (WHERE state = 'cancelled')
    FROM {moved} WHERE batch_id IS NOT NULL AND state NOT IN ('queued', 'running') GROUP BY batch_id
)"""


def _told(moved: str) -> str:
    """Return what `_tallied` does, and what tells of those that somebody is to be told of besides.

    `moved` has the `id`, `account_id` and `webhook` of each job too.
    """
    return f"{_tallied(moved).removesuffix(')')}{told_of_jobs(moved)})"


def _noted(status: str) -> str:
    """Return what notes of an attempt that its worker did not end how it went; nothing of an erased job."""
    return f"""tried = CASE WHEN deleted_at IS NULL THEN tried || jsonb_build_object(
                        'attempt', attempt, 'status', '{status}', 'ended_at', extract(epoch FROM now()))
                                 ELSE '[]' END"""


_INSERT = """
INSERT INTO jobs (id, account_id, key_id, model, request, metadata, tier, background, streamed, origin, agent_id,
                  agent_version, reserved_cost, webhook, stored, scheduled_at, deadline_at)
SELECT id, account_id, key_id, model, request, metadata::jsonb, tier, background, streamed, origin, agent_id,
       agent_version, reserved_cost, webhook, stored, now() + delay * interval '1 second',
       now() + timeout * interval '1 second'
FROM unnest(%(id)b::text[], %(account_id)b::text[], %(key_id)b::text[], %(model)b::text[], %(request)b::text[],
            %(metadata)b::text[], %(tier)b::text[], %(background)b::bool[], %(streamed)b::bool[], %(origin)b::text[],
            %(timeout)b::float8[], %(agent_id)b::text[], %(agent_version)b::int[], %(reserved_cost)b::numeric[],
            %(delay)b::float8[], %(webhook)b::text[], %(stored)b::bool[])
     AS new (id, account_id, key_id, model, request, metadata, tier, background, streamed, origin, timeout, agent_id,
             agent_version, reserved_cost, delay, webhook, stored)
ON CONFLICT (id) DO UPDATE SET id = excluded.id
RETURNING id, floor(extract(epoch FROM created_at))::bigint
"""


async def insert_jobs(database: Database, new: Sequence[NewJob]) -> Sequence[int]:
    """Accept jobs, all or none: they are safe on disk now. Returns when each was created, in Unix seconds."""
    rows = await execute(
        database.durable,
        _INSERT,
        {
            "id": [job.id for job in new],
            "account_id": [job.account_id for job in new],
            "key_id": [job.key_id for job in new],
            "model": [job.model for job in new],
            "request": [job.request for job in new],
            "metadata": [job.metadata for job in new],
            "tier": [job.tier for job in new],
            "background": [job.background for job in new],
            "streamed": [job.streamed for job in new],
            "origin": [job.origin for job in new],
            "timeout": [job.timeout_seconds for job in new],
            "agent_id": [job.agent_id for job in new],
            "agent_version": [job.agent_version for job in new],
            "reserved_cost": [job.reserved_cost for job in new],
            "delay": [job.delay_seconds for job in new],
            "webhook": [job.webhook for job in new],
            "stored": [job.stored for job in new],
        },
    )
    created = {row[0]: row[1] for row in rows}
    return [created[job.id] for job in new]


_FEED = """
WITH fed AS (
    UPDATE batches SET next_offset = %(end)s, next_line = %(next_line)s, fed = fed + %(count)s
    WHERE id = %(batch_id)s AND state = 'in_progress' AND next_offset = %(start)s AND expires_at > now()
    RETURNING id AS batch_id, account_id, key_id, expires_at
)
INSERT INTO jobs (id, account_id, key_id, batch_id, line, custom_id, model, request, metadata, tier, background,
                  streamed, agent_id, agent_version, deadline_at, state, attempt, worker, started_at, lease_until)
SELECT id, account_id, key_id, batch_id, line, custom_id, model, request, metadata::jsonb, 'batch', true,
       false, agent_id, agent_version, least(expires_at, now() + timeout * interval '1 second'),
       CASE WHEN %(parcel)s::text IS NULL THEN 'queued' ELSE 'running' END,
       CASE WHEN %(parcel)s::text IS NULL THEN 0 ELSE 1 END, %(parcel)s,
       CASE WHEN %(parcel)s::text IS NOT NULL THEN now() END,
       CASE WHEN %(parcel)s::text IS NOT NULL THEN expires_at END
FROM fed, unnest(%(id)b::text[], %(line)b::int[], %(custom_id)b::text[], %(model)b::text[], %(request)b::text[],
                 %(metadata)b::text[], %(timeout)b::float8[], %(agent_id)b::text[], %(agent_version)b::int[])
     AS new (id, line, custom_id, model, request, metadata, timeout, agent_id, agent_version)
RETURNING id
"""


async def feed_lines(
    database: Database,
    batch_id: str,
    lines: Sequence[NewLine],
    *,
    start: int,
    end: int,
    next_line: int,
    parcel: str | None = None,
) -> bool:
    """Make jobs of a batch's next lines, which are the bytes from `start` to `end` of its input, all or none.

    With `parcel` they are claimed at once, for as long as the batch has, by a parcel that goes to a provider's own
    batch API. Returns False when the batch does not stand at `start` any more, or is fed no more. Losing it only
    repeats it.
    """
    parameters = {
        "batch_id": batch_id,
        "parcel": parcel,
        "start": start,
        "end": end,
        "next_line": next_line,
        "count": len(lines),
        "id": [line.id for line in lines],
        "line": [line.line for line in lines],
        "custom_id": [line.custom_id for line in lines],
        "model": [line.model for line in lines],
        "request": [line.request for line in lines],
        "metadata": [line.metadata for line in lines],
        "timeout": [line.timeout_seconds for line in lines],
        "agent_id": [line.agent_id for line in lines],
        "agent_version": [line.agent_version for line in lines],
    }
    return bool(await execute(database.relaxed, _FEED, parameters))


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
    UPDATE jobs SET state = ended.state, finished_at = now(), finished_in = {_TRANSACTION},
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
    RETURNING {_SPENDER}, jobs.deleted_at, jobs.state, jobs.webhook
), kept AS (
    INSERT INTO job_deltas (job_id, attempt, first_seq, last_seq, chunks)
    SELECT id, attempt, first_seq, last_seq, chunks FROM ended JOIN finished USING (id)
    WHERE chunks IS NOT NULL AND deleted_at IS NULL
    ON CONFLICT (job_id, attempt, first_seq) DO UPDATE SET last_seq = excluded.last_seq, chunks = excluded.chunks
), erased AS (
    DELETE FROM job_deltas USING finished WHERE job_deltas.job_id = finished.id AND finished.deleted_at IS NOT NULL
), spent AS (
    {_SPENT}
    SELECT 'counted', {_OF_SPENDER}, ended.provider, answered_model, end_user, prompt_tokens,
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
        "record": [_storable(job.record) for job in ended],
    }
    return {**columns, **_spent_columns([job.spent for job in ended])}


_NUL = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")


def _storable(document: str) -> str:
    """Return a JSON text with another character for U+0000, which Postgres's `jsonb` has no place for."""
    return _NUL.sub(r"\1\\ufffd", document) if "\\u0000" in document else document


def _spent_columns(spent: Sequence[SpentUsage | None]) -> dict[str, list[Any]]:
    return {
        "prompt": [row and row.tokens.prompt_tokens for row in spent],
        "completion": [row and row.tokens.completion_tokens for row in spent],
        "cached": [row and row.tokens.cached_tokens for row in spent],
        "reasoning": [row and row.tokens.reasoning_tokens for row in spent],
        "written": [row and row.tokens.cache_write_tokens for row in spent],
        "prompt_audio": [row and row.tokens.prompt_audio_tokens for row in spent],
        "completion_audio": [row and row.tokens.completion_audio_tokens for row in spent],
        "estimated": [row and row.tokens.estimated for row in spent],
        "cost": [row and row.cost for row in spent],
        "price": [row and row.price for row in spent],
        "answered_model": [row and row.model for row in spent],
        "end_user": [row and row.end_user for row in spent],
    }


_RETRY = f"""
WITH put_back AS (
    UPDATE jobs SET state = CASE WHEN cancel_requested_at IS NULL THEN 'queued' ELSE 'cancelled' END,
                    finished_at = CASE WHEN cancel_requested_at IS NOT NULL THEN now() END,
                    finished_in = CASE WHEN cancel_requested_at IS NOT NULL THEN {_TRANSACTION} END,
                    error = CASE WHEN cancel_requested_at IS NOT NULL THEN %(cancelled)s END,
                    request = CASE WHEN deleted_at IS NULL THEN request END,
                    lease_until = NULL, worker = NULL, route = %(route)s,
                    retries = %(retries)s, scheduled_at = now() + %(delay)s * interval '1 second',
                    sent_at = now() + %(delay)s * interval '1 second',
                    tried = CASE WHEN deleted_at IS NOT NULL THEN '[]' WHEN %(record)s::text IS NULL THEN tried
                                 ELSE tried || (%(record)s::jsonb
                                                || jsonb_build_object('ended_at', extract(epoch FROM now()))) END
    WHERE id = %(id)s AND attempt = %(attempt)s AND state = 'running'
    RETURNING {_SPENDER}, attempt, state, webhook
), forgotten AS (
    DELETE FROM job_deltas USING put_back WHERE job_deltas.job_id = put_back.id
), spent AS (
    {_SPENT}
    SELECT 'discarded', {_OF_SPENDER}, %(provider)s, %(answered_model)s, %(end_user)s,
           %(prompt)s::bigint, %(completion)s::bigint, %(cached)s::bigint, %(reasoning)s::bigint, %(written)s::bigint,
           %(prompt_audio)s::bigint, %(completion_audio)s::bigint, %(estimated)s::bool, %(cost)s::numeric,
           %(price)s::jsonb
    FROM put_back WHERE %(prompt)s::bigint IS NOT NULL
{_told("put_back")}
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
        "record": None if record is None else _storable(record),
        "provider": spent and spent.provider,
        **{name: column[0] for name, column in _spent_columns([spent]).items()},
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
{_SPENT}
SELECT 'discarded', {_OF_SPENDER}, %(provider)s, %(answered_model)s, %(end_user)s,
       %(prompt)s::bigint, %(completion)s::bigint, %(cached)s::bigint, %(reasoning)s::bigint, %(written)s::bigint,
       %(prompt_audio)s::bigint, %(completion_audio)s::bigint, %(estimated)s::bool, %(cost)s::numeric,
       %(price)s::jsonb
FROM (SELECT {_SPENDER}, %(attempt)s::int AS attempt FROM jobs
      WHERE id = %(id)s AND NOT EXISTS (SELECT FROM usage WHERE job_id = jobs.id AND usage.attempt = %(attempt)s)
     ) AS spender
"""


async def record_discarded(database: Database, job_id: str, attempt: int, spent: SpentUsage) -> None:
    """Write what an attempt spent that lost its job; nothing if its usage is written already."""
    parameters = {
        "id": job_id,
        "attempt": attempt,
        "provider": spent.provider,
        **{name: column[0] for name, column in _spent_columns([spent]).items()},
    }
    await execute(database.durable, _DISCARD, parameters)


_CANCEL = f"""
WITH target AS MATERIALIZED (
    SELECT id, tier, state, attempt, origin FROM jobs
    WHERE id = %(id)s AND account_id = %(account_id)s AND deleted_at IS NULL FOR UPDATE
), changed AS (
    UPDATE jobs SET
        cancel_requested_at = coalesce(cancel_requested_at, now()),
        state = CASE WHEN jobs.state = 'queued' THEN 'cancelled' ELSE jobs.state END,
        finished_at = CASE WHEN jobs.state = 'queued' THEN now() END,
        finished_in = CASE WHEN jobs.state = 'queued' THEN {_TRANSACTION} END,
        error = CASE WHEN jobs.state = 'queued' THEN %(error)s END
    FROM target WHERE jobs.id = target.id AND target.state IN ('queued', 'running')
    RETURNING jobs.id, jobs.account_id, jobs.batch_id, jobs.state, jobs.webhook
{_told("changed")}
SELECT target.id, target.tier, coalesce(changed.state, target.state) AS state, target.attempt, target.origin
FROM target LEFT JOIN changed USING (id)
"""


async def cancel_job(database: Database, job_id: str, account_id: str, *, error: str) -> MovedJob | None:
    """Cancel a queued job at once, or ask for the cancellation of a running one; one that has ended stays as it is.

    Returns the job as it is then, or None if the account has no such job. `error` is the JSON that the row keeps.
    """
    rows = await execute(database.durable, _CANCEL, {"id": job_id, "account_id": account_id, "error": error})
    return _moved(rows)[0] if rows else None


_CANCEL_LINES = f"""
WITH target AS MATERIALIZED (
    SELECT id, state FROM jobs
    WHERE batch_id = %(batch_id)s
          AND (state = 'queued' OR (state = 'running' AND cancel_requested_at IS NULL))
    ORDER BY id LIMIT 1000 FOR UPDATE SKIP LOCKED
), changed AS (
    UPDATE jobs SET
        cancel_requested_at = coalesce(cancel_requested_at, now()),
        state = CASE WHEN target.state = 'queued' THEN 'cancelled' ELSE target.state END,
        finished_at = CASE WHEN target.state = 'queued' THEN now() END,
        finished_in = CASE WHEN target.state = 'queued' THEN {_TRANSACTION} END,
        error = CASE WHEN target.state = 'queued' THEN %(error)s END
    FROM target WHERE jobs.id = target.id
    RETURNING jobs.id, tier, jobs.state, attempt, origin, batch_id
{_tallied("changed")}
SELECT id, tier, state, attempt, origin FROM changed
"""


async def cancel_lines(database: Database, batch_id: str, *, error: str) -> list[MovedJob]:
    """Cancel up to 1,000 jobs of a batch as `cancel_job` does one, and return them as they are then.

    There may be more: none are left when it returns none.
    """
    return _moved(await execute(database.durable, _CANCEL_LINES, {"batch_id": batch_id, "error": error}))


_RELEASE = f"""
WITH target AS MATERIALIZED (
    SELECT id FROM jobs
    WHERE batch_id = %(batch_id)s AND worker = %(parcel)s AND state = 'running'
          AND (%(ids)b::text[] IS NULL OR id = ANY(%(ids)b::text[]))
    ORDER BY id LIMIT 1000 FOR UPDATE SKIP LOCKED
), moved AS (
    UPDATE jobs SET state = CASE WHEN cancel_requested_at IS NULL THEN 'queued' ELSE 'cancelled' END,
                    finished_at = CASE WHEN cancel_requested_at IS NOT NULL THEN now() END,
                    finished_in = CASE WHEN cancel_requested_at IS NOT NULL THEN {_TRANSACTION} END,
                    error = CASE WHEN cancel_requested_at IS NOT NULL THEN %(error)s END,
                    request = CASE WHEN deleted_at IS NULL THEN request END,
                    lease_until = NULL, worker = NULL, scheduled_at = now(), sent_at = now(),
                    {_noted("returned")}
    FROM target WHERE jobs.id = target.id
    RETURNING jobs.id, tier, state, attempt, origin, batch_id
{_tallied("moved")}
SELECT id, tier, state, attempt, origin FROM moved
"""


async def release_lines(
    database: Database, batch_id: str, parcel: str, *, job_ids: Sequence[str] | None = None, error: str
) -> list[MovedJob]:
    """Let workers have up to 1,000 jobs of a parcel, or of these in it; those that somebody has cancelled end.

    There may be more: none are left when it returns none. `error` is the JSON that rows of cancelled ones keep.
    """
    parameters = {
        "batch_id": batch_id,
        "parcel": parcel,
        "ids": None if job_ids is None else list(job_ids),
        "error": error,
    }
    return _moved(await execute(database.durable, _RELEASE, parameters))


@dataclass(frozen=True, slots=True)
class HeldLine:
    """A job in a parcel."""

    id: str
    line: int
    attempt: int
    created: int
    request: str


# Requests are up to 20 MB each: a page ends where it has enough of them.
_HELD_BYTES = 4 * 1024 * 1024
_HELD = """
SELECT id, line, attempt, created, request FROM (
    SELECT *, sum(octet_length(request)) OVER (ORDER BY line ROWS UNBOUNDED PRECEDING)
              - octet_length(request) AS before
    FROM (SELECT id, line, attempt, floor(extract(epoch FROM created_at))::bigint AS created, request FROM jobs
          WHERE batch_id = %(batch_id)s AND worker = %(parcel)s AND state = 'running' AND line > %(after)s
                AND (%(ids)b::text[] IS NULL OR id = ANY(%(ids)b::text[]))
          ORDER BY line LIMIT %(limit)s) AS held
) AS page
WHERE before < %(bytes)s ORDER BY line
"""


async def read_held(
    database: Database,
    batch_id: str,
    parcel: str,
    *,
    after: int = 0,
    job_ids: Sequence[str] | None = None,
    limit: int = 100,
) -> list[HeldLine]:
    """Return up to `limit` jobs that a parcel holds, or of these, in order of their lines, past the line `after`.

    They are fewer if their requests are large; none if there are no more.
    """
    parameters = {
        "batch_id": batch_id,
        "parcel": parcel,
        "after": after,
        "ids": None if job_ids is None else list(job_ids),
        "limit": limit,
        "bytes": _HELD_BYTES,
    }
    return [HeldLine(*row) for row in await execute(database.relaxed, _HELD, parameters)]


_DELETE = """
WITH erased AS (
    UPDATE jobs SET deleted_at = now(), response = NULL, metadata = NULL, tried = '[]',
                    request = CASE WHEN state IN ('queued', 'running') THEN request END
    WHERE id = %(id)s AND account_id = %(account_id)s AND deleted_at IS NULL
    RETURNING id
)
SELECT id FROM erased
"""
# By itself and after, so that it sees the deltas of an end that the erasure had to wait for.
_DELETE_DELTAS = "DELETE FROM job_deltas USING jobs WHERE job_id = %(id)s AND id = job_id AND deleted_at IS NOT NULL"


async def delete_job(database: Database, job_id: str, account_id: str) -> bool:
    """Erase a job's content; its usage stays. Returns False if the account has no such job."""
    erased = await execute(database.durable, _DELETE, {"id": job_id, "account_id": account_id})
    if erased:
        await execute(database.durable, _DELETE_DELTAS, {"id": job_id})
    return bool(erased)


_LABEL = """
UPDATE jobs SET metadata = %(metadata)s::jsonb
WHERE id = %(id)s AND account_id = %(account_id)s AND state = 'completed' AND stored AND deleted_at IS NULL
RETURNING id
"""


async def label_job(database: Database, job_id: str, account_id: str, metadata: str | None) -> bool:
    """Give a job other metadata, as JSON, in place of all it had. Usage keeps the metadata that the job ran with.

    Returns False if the account has no such job, or one without an answer that is stored.
    """
    parameters = {"id": job_id, "account_id": account_id, "metadata": metadata}
    return bool(await execute(database.durable, _LABEL, parameters))


_PRUNE = """
WITH over AS MATERIALIZED (
    SELECT jobs.id FROM job_deltas JOIN jobs ON jobs.id = job_id
    WHERE job_id < %(before)s AND finished_at < now() - %(seconds)s * interval '1 second'
    ORDER BY job_id LIMIT %(limit)s FOR UPDATE OF jobs SKIP LOCKED
), pruned AS (
    DELETE FROM job_deltas USING over WHERE job_id = over.id
)
UPDATE jobs SET delta_count = 0 FROM over WHERE jobs.id = over.id RETURNING jobs.id
"""


async def prune_deltas(database: Database, *, seconds: float, limit: int = 1000) -> int:
    """Delete some deltas of jobs that ended so long ago; returns of how many. What they made is their response."""
    parameters = {"before": id_before(seconds), "seconds": seconds, "limit": limit}
    return len(await execute(database.relaxed, _PRUNE, parameters))


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
    """Erase the content of jobs that are not to be stored: of one, or of some that ended so long ago."""
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
    """Delete some jobs that ended so long ago, with all that belongs to them but their usage; returns how many."""
    parameters = {"before": id_before(seconds), "seconds": seconds, "limit": limit}
    return len(await execute(database.relaxed, _FORGET, parameters))


_RESCUE = f"""
WITH dead AS MATERIALIZED (
    SELECT id, CASE WHEN cancel_requested_at IS NOT NULL THEN 'cancelled'
                    WHEN lost + 1 >= %(max_lost)s THEN 'failed'
                    WHEN NOT background AND streamed AND EXISTS (SELECT FROM job_deltas WHERE job_id = jobs.id)
                         THEN 'interrupted'
                    ELSE 'queued' END AS fate
    FROM jobs WHERE state = 'running' AND lease_until < now()
    ORDER BY id LIMIT 1000 FOR UPDATE SKIP LOCKED
), moved AS (
    UPDATE jobs SET state = CASE fate WHEN 'interrupted' THEN 'failed' ELSE fate END,
                    lost = lost + 1, lease_until = NULL, worker = NULL,
                    {_noted("lost")},
                    scheduled_at = now() + %(delay)s * interval '1 second', sent_at = now(),
                    finished_at = CASE WHEN fate <> 'queued' THEN now() END,
                    finished_in = CASE WHEN fate <> 'queued' THEN {_TRANSACTION} END,
                    request = CASE WHEN fate = 'queued' OR deleted_at IS NULL THEN request END,
                    error = CASE fate WHEN 'cancelled' THEN %(cancelled)s WHEN 'failed' THEN %(poisonous)s
                                      WHEN 'interrupted' THEN %(interrupted)s END
    FROM dead WHERE jobs.id = dead.id
    RETURNING jobs.id, jobs.account_id, jobs.tier, jobs.state, jobs.attempt, jobs.origin, jobs.batch_id,
              jobs.deleted_at, jobs.webhook
), forgotten AS (
    DELETE FROM job_deltas USING moved WHERE job_deltas.job_id = moved.id
    AND (moved.state = 'queued' OR moved.deleted_at IS NOT NULL)
{_told("moved")}
SELECT id, tier, state, attempt, origin FROM moved
"""


async def rescue_jobs(
    database: Database, *, max_lost: int, delay_seconds: float, cancelled: str, poisonous: str, interrupted: str
) -> list[MovedJob]:
    """Take running jobs from workers whose lease ran out: back to the queue, or to an end.

    A job under which `max_lost` workers went away is taken for the cause and fails. One whose client has begun to read
    fails too, rather than repeat itself. The others are due in `delay_seconds`. `cancelled`, `poisonous` and
    `interrupted` are the errors that rows keep, as JSON.
    """
    parameters = {
        "max_lost": max_lost,
        "delay": delay_seconds,
        "cancelled": cancelled,
        "poisonous": poisonous,
        "interrupted": interrupted,
    }
    return _moved(await execute(database.durable, _RESCUE, parameters))


_EXPIRE = f"""
WITH late AS MATERIALIZED (
    SELECT id FROM jobs WHERE state = 'queued' AND deadline_at <= now() ORDER BY id LIMIT 10000 FOR UPDATE SKIP LOCKED
), moved AS (
    UPDATE jobs SET state = 'expired', finished_at = now(), finished_in = {_TRANSACTION}, error = %(error)s,
                    request = CASE WHEN deleted_at IS NULL THEN request END
    FROM late WHERE jobs.id = late.id
    RETURNING jobs.id, account_id, tier, state, attempt, origin, batch_id, webhook
{_told("moved")}
SELECT id, tier, state, attempt, origin FROM moved
"""


async def expire_jobs(database: Database, *, error: str) -> list[MovedJob]:
    """End queued jobs whose deadline has passed; a running one is ended by its worker."""
    return _moved(await execute(database.durable, _EXPIRE, {"error": error}))


_UNSENT = """
WITH waiting AS MATERIALIZED (
    SELECT id FROM jobs WHERE id = ANY(%(ids)b::text[]) AND state = 'queued' ORDER BY id FOR UPDATE SKIP LOCKED
)
UPDATE jobs SET sent_at = 'epoch' FROM waiting WHERE jobs.id = waiting.id RETURNING jobs.id
"""


async def mark_unsent(database: Database, job_ids: Sequence[str]) -> None:
    """Note of queued jobs that their wake-ups may not have been sent: the next sweep sends them."""
    await execute(database.relaxed, _UNSENT, {"ids": list(job_ids)})


# Of a long queue only the head is known. What was sent before its last messages were, and is not in it, was lost; a
# moment's doubt, as jobs that are committed together are not sent together.
_RESEND = """
WITH edge AS (
    SELECT CASE WHEN %(whole)s THEN 'infinity'
                ELSE (SELECT min(sent_at) - interval '2 seconds' FROM jobs
                      WHERE id = ANY(%(last)b::text[]) AND sent_at > 'epoch') END AS at
), oldest AS MATERIALIZED (
    SELECT id, sent_at, scheduled_at FROM jobs WHERE state = 'queued' AND tier = %(tier)s ORDER BY id LIMIT 20000
), lost AS MATERIALIZED (
    SELECT id FROM oldest, edge
    WHERE scheduled_at <= now()
          AND (sent_at = 'epoch' OR sent_at < least(now() - %(resend)s * interval '1 second', edge.at))
          AND NOT EXISTS (SELECT FROM unnest(%(waiting)b::text[]) AS waiting (id) WHERE waiting.id = oldest.id)
), free AS MATERIALIZED (
    SELECT jobs.id FROM jobs JOIN lost USING (id) WHERE state = 'queued' ORDER BY jobs.id FOR UPDATE OF jobs SKIP LOCKED
)
UPDATE jobs SET sent_at = now() FROM free WHERE jobs.id = free.id
RETURNING jobs.id, tier, state, attempt, origin
"""


async def resend_jobs(database: Database, tier: str, backlog: Backlog, *, resend_seconds: float) -> list[MovedJob]:
    """Mark as sent and return due jobs of a tier whose wake-up is on no queue.

    A job counts if its wake-up was sent at least `resend_seconds` ago, or if `mark_unsent` marked it.
    """
    parameters = {
        "tier": tier,
        "resend": resend_seconds,
        "waiting": list(backlog.job_ids),
        "last": list(backlog.last_ids),
        "whole": backlog.whole,
    }
    return _moved(await execute(database.relaxed, _RESEND, parameters))


_IN_HAND = """
WITH held AS MATERIALIZED (
    SELECT id FROM jobs WHERE id = ANY(%(ids)b::text[]) AND state = 'queued' ORDER BY id FOR UPDATE SKIP LOCKED
)
UPDATE jobs SET sent_at = now() FROM held WHERE jobs.id = held.id
"""


async def keep_in_hand(database: Database, job_ids: Sequence[str]) -> None:
    """Note that the wake-ups of queued jobs are not lost: a worker that lives has them."""
    await execute(database.relaxed, _IN_HAND, {"ids": list(job_ids)})


# From one account to the next by the index, in each tier and apart for those that a client waits for; then the accounts
# that are first, and their first jobs: `limit` of each are enough. No step depends on how much is queued.
_FAIR = """
WITH RECURSIVE place AS (
    SELECT tier, tier_order, background
    FROM unnest(%(tiers)s::text[]) WITH ORDINALITY AS known (tier, tier_order),
         (VALUES (false), (true)) AS kind (background)
), head AS (
    SELECT place.*, account_id, scheduled_at FROM place CROSS JOIN LATERAL (
        SELECT account_id, scheduled_at FROM jobs
        WHERE state = 'queued' AND tier = place.tier AND background = place.background
        ORDER BY account_id, scheduled_at LIMIT 1) AS first
    UNION ALL
    SELECT head.tier, head.tier_order, head.background, next.* FROM head CROSS JOIN LATERAL (
        SELECT account_id, scheduled_at FROM jobs
        WHERE state = 'queued' AND tier = head.tier AND background = head.background AND account_id > head.account_id
        ORDER BY account_id, scheduled_at LIMIT 1) AS next
), first AS MATERIALIZED (
    SELECT head.*, coalesce(running, 0) AS running
    FROM head LEFT JOIN (
        SELECT * FROM unnest(%(accounts)s::text[], %(running)s::int[], %(waited_for)s::int[])
        AS busy (account_id, running, waited_for)) AS busy USING (account_id)
    WHERE scheduled_at <= now() AND (%(below)s::int IS NULL
          OR coalesce(CASE WHEN background THEN running ELSE waited_for END, 0) < %(below)s)
    ORDER BY tier_order, background, running, scheduled_at LIMIT %(limit)s
)
SELECT id, tier, first.account_id, background FROM first CROSS JOIN LATERAL (
    SELECT id, scheduled_at, sent_at, row_number() OVER (ORDER BY scheduled_at) AS number FROM (
        SELECT id, scheduled_at, sent_at FROM jobs
        WHERE state = 'queued' AND tier = first.tier AND background = first.background
              AND account_id = first.account_id AND scheduled_at <= now()
        ORDER BY scheduled_at LIMIT %(limit)s) AS due) AS next
WHERE sent_at <= now() - %(seconds)s * interval '1 second'
ORDER BY tier_order, background, running + number, next.scheduled_at LIMIT %(limit)s
"""


@dataclass(frozen=True, slots=True)
class WaitingJob:
    """A due job that no worker has claimed."""

    id: str
    tier: str
    account_id: str
    background: bool


async def find_fair(
    database: Database,
    tiers: Sequence[str],
    *,
    running: Mapping[str, tuple[int, int]],
    limit: int,
    below: int | None = None,
    seconds: float = 0,
) -> list[WaitingJob]:
    """Return up to `limit` due jobs, those first that a worker should run first.

    The order is that of the tiers; in a tier, jobs that a client waits for come first; then each account in turn, the
    one with the fewest jobs `running` first. `running` has, of each account, all of its jobs that the worker runs, and
    those of them that a client waits for. With `below` only accounts count that run fewer than that here: of waiting
    clients' jobs, for those. Of the first `limit` jobs of an account
    only those count whose wake-up was sent at least `seconds` ago.
    """
    parameters = {
        "tiers": list(tiers),
        "accounts": list(running),
        "running": [count for count, _ in running.values()],
        "waited_for": [count for _, count in running.values()],
        "limit": limit,
        "below": below,
        "seconds": seconds,
    }
    return [WaitingJob(*row) for row in await execute(database.relaxed, _FAIR, parameters)]


_COUNT_WAITING = """
SELECT count(*) FROM (
    SELECT FROM jobs WHERE state = 'queued' AND tier IN ('priority', 'default', 'flex') AND background IN (false, true)
                           AND account_id = %(account_id)s LIMIT %(limit)s) AS waiting
"""


async def count_waiting(database: Database, account_id: str, *, limit: int) -> int:
    """Return how many jobs of an account wait, lines of batches aside, counted no further than `limit`."""
    rows = await execute(database.lists, _COUNT_WAITING, {"account_id": account_id, "limit": limit})
    return int(rows[0][0])


_TAKEN = """
SELECT known.id FROM unnest(%(ids)b::text[]) AS known (id)
WHERE NOT EXISTS (SELECT FROM jobs WHERE jobs.id = known.id AND state = 'queued')
"""


async def find_taken(database: Database, job_ids: Sequence[str]) -> list[str]:
    """Return those of the jobs that are not queued any more."""
    return [row[0] for row in await execute(database.relaxed, _TAKEN, {"ids": list(job_ids)})]


def _moved(rows: Sequence[Row]) -> list[MovedJob]:
    return [MovedJob(row.id, row.tier, State(row.state), row.attempt, row.origin) for row in rows]


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a job stands, for one who follows its events."""

    state: State
    attempt: int
    in_attempt: bool
    """Whether a worker holds it, or ended it: else it waits, or was ended from outside."""
    delta_count: int
    created: int
    response: str | None
    error: str | None
    charge: Charge


_PROGRESS = """
SELECT state, jobs.attempt, worker IS NOT NULL, delta_count, floor(extract(epoch FROM jobs.created_at))::bigint,
       response, error, coalesce(prompt_tokens + completion_tokens, 0), cost
FROM jobs LEFT JOIN usage ON usage.job_id = jobs.id AND usage.created_at = finished_at AND kind = 'counted'
WHERE jobs.id = %(id)s AND deleted_at IS NULL
"""


async def read_progress(database: Database, job_id: str) -> Progress | None:
    """Return where a job stands, or None if it was deleted."""
    rows = await execute(database.relaxed, _PROGRESS, {"id": job_id})
    if not rows:
        return None
    state, attempt, in_attempt, delta_count, created, response, error, tokens, cost = rows[0]
    charge = Charge(tokens, cost)
    return Progress(State(state), attempt, in_attempt, delta_count, created, response, error, charge)


_DELTAS = """
SELECT first_seq, chunks FROM job_deltas
WHERE job_id = %(id)s AND attempt = %(attempt)s AND last_seq > %(after)s ORDER BY first_seq
"""


async def read_deltas(database: Database, job_id: str, attempt: int, *, after: int) -> list[tuple[int, str]]:
    """Return what is kept of an attempt's deltas past `after`, as pairs of first sequence number and lines."""
    rows = await execute(database.relaxed, _DELTAS, {"id": job_id, "attempt": attempt, "after": after})
    return [(row[0], row[1]) for row in rows]


_POSITIONS = """
SELECT id, state, attempt, coalesce((SELECT max(last_seq) FROM job_deltas AS delta
                                     WHERE delta.job_id = jobs.id AND delta.attempt = jobs.attempt), 0) AS last_seq
FROM jobs WHERE id = ANY(%(ids)b::text[])
"""


async def read_positions(database: Database, job_ids: Sequence[str]) -> Sequence[Row]:
    """Return `(job_id, state, attempt, last sequence number kept)` of these jobs."""
    return await execute(database.relaxed, _POSITIONS, {"ids": list(job_ids)}) if job_ids else []


async def read_lease(database: Database, job_id: str) -> datetime | None:
    """Return until when a worker holds a job; None if none does."""
    rows = await execute(database.relaxed, "SELECT lease_until FROM jobs WHERE id = %(id)s", {"id": job_id})
    return rows[0][0] if rows else None


def _epoch(column: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    return sa.cast(sa.func.floor(sa.extract("epoch", column)), sa.BigInteger)


def _queue_position() -> sa.ColumnElement[Any]:
    """Return how many jobs of the same tier are before a queued one, counted no further than 1,000."""
    other = jobs.alias("other")
    before = (
        sa.select(other.c.id)
        .where(other.c.state == State.QUEUED.value, other.c.tier == jobs.c.tier, other.c.id < jobs.c.id)
        .limit(1000)
        .correlate(jobs)
        .subquery()
    )
    count = sa.select(sa.func.count()).select_from(before).scalar_subquery()
    return sa.case((jobs.c.state == State.QUEUED.value, count))


_VIEW = sa.select(
    jobs.c.id,
    jobs.c.state,
    jobs.c.model,
    jobs.c.agent_id,
    jobs.c.agent_version,
    jobs.c.batch_id,
    jobs.c.custom_id,
    jobs.c.provider,
    jobs.c.tier,
    jobs.c.attempt,
    *(
        _epoch(jobs.c[name]).label(name)
        for name in ("created_at", "started_at", "first_token_at", "finished_at", "deadline_at")
    ),
    _queue_position().label("queue_position"),
    jobs.c.metadata,
    jobs.c.background,
    jobs.c.tried,
    jobs.c.response,
    jobs.c.error,
    usage.c.prompt_tokens,
    usage.c.completion_tokens,
    usage.c.cached_tokens,
    usage.c.reasoning_tokens,
    usage.c.cache_write_tokens,
    usage.c.estimated,
    usage.c.cost,
).select_from(
    jobs.outerjoin(
        usage,
        # Both are the clock of the statement that ended the job: so one partition of the ledger is looked at.
        sa.and_(usage.c.job_id == jobs.c.id, usage.c.created_at == jobs.c.finished_at, usage.c.kind == "counted"),
    )
)


async def get_job(database: Database, job_id: str, account_id: str) -> Row | None:
    """Return an account's job with its usage, or None if the account has no such job."""
    query = _VIEW.where(jobs.c.id == job_id, jobs.c.account_id == account_id, jobs.c.deleted_at.is_(None))
    rows = await execute(database.relaxed, query)
    return rows[0] if rows else None


async def get_request(database: Database, job_id: str, account_id: str) -> str | None:
    """Return the chat request of an account's job as it came, or None if the account has no such job."""
    query = sa.select(jobs.c.request).where(
        jobs.c.id == job_id, jobs.c.account_id == account_id, jobs.c.deleted_at.is_(None)
    )
    rows = await execute(database.relaxed, query)
    return rows[0][0] if rows else None


@dataclass(frozen=True, slots=True)
class JobFilter:
    """What a list of jobs is narrowed to; None is no condition. Times are of creation."""

    state: State | None = None
    model: str | None = None
    agent_id: str | None = None
    batch_id: str | None = None
    metadata: Mapping[str, str] | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None


# The latest jobs of an account that are looked at for metadata before its index is: what many have is found there.
_RECENT_JOBS = 2_000
PAGE_BYTES = 16 * 1024 * 1024
"""Bytes of answers after which a page of jobs ends."""
_TIMED_OUT = "57014"


async def list_jobs(
    database: Database, account_id: str, wanted: JobFilter, *, after: str | None, limit: int, descending: bool
) -> tuple[Sequence[Row], bool]:
    """Return up to `limit` of an account's jobs past the job `after`, in order of creation, and whether there are more.

    A page with large answers has fewer: it ends with the job that takes it past `PAGE_BYTES`.

    Raises:
        ListTooLongError: It has to look at more jobs than it has time for.
    """
    try:
        where = _conditions(account_id, wanted, after=after, descending=descending)
        found = await _find(database, where, wanted.metadata, limit + 1, descending=descending)
        ids, size = list[str](), 0
        for row in found[:limit]:
            if size < PAGE_BYTES:
                ids.append(row.id)
                size += row.size
        query = _in_order(_VIEW.where(jobs.c.id.in_(ids)), jobs.c.id, descending=descending)
        return await execute(database.lists, query) if ids else [], len(found) > len(ids)
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) == _TIMED_OUT:
            raise ListTooLongError from error
        raise


async def _find(
    database: Database,
    where: Sequence[sa.ColumnElement[bool]],
    metadata: Mapping[str, str] | None,
    limit: int,
    *,
    descending: bool,
) -> Sequence[Row]:
    """Return `(id, size)` of the first jobs of a list, the bytes of their answers."""
    if not metadata:
        return await _sizes(database, sa.select(jobs.c.id).where(*where), limit, descending=descending)
    recent = _in_order(sa.select(jobs.c.id, jobs.c.metadata).where(*where), jobs.c.id, descending=descending)
    among = recent.limit(_RECENT_JOBS).subquery()
    has = sa.cast(dict(metadata), JSONB)
    query = sa.select(among.c.id).where(among.c.metadata.contains(has))
    found = await _sizes(database, query, limit, descending=descending)
    if len(found) == limit:
        return found
    # The planner does not know how few jobs have this metadata, so it is made to begin with those.
    having_it = sa.select(jobs.c.id).where(*where, jobs.c.metadata.contains(has)).cte("having_it")
    query = sa.select(having_it.prefix_with("MATERIALIZED").c.id)
    return await _sizes(database, query, limit, descending=descending)


async def _sizes(database: Database, found: sa.Select[tuple[str]], limit: int, *, descending: bool) -> Sequence[Row]:
    [column] = found.selected_columns
    ids = _in_order(found, column, descending=descending).limit(limit)
    size = sa.func.coalesce(sa.func.octet_length(jobs.c.response), 0).label("size")
    query = sa.select(jobs.c.id, size).where(jobs.c.id.in_(ids))
    return await execute(database.lists, _in_order(query, jobs.c.id, descending=descending))


def _conditions(
    account_id: str, wanted: JobFilter, *, after: str | None, descending: bool
) -> list[sa.ColumnElement[bool]]:
    """Return what a list of jobs is narrowed to but for metadata: columns of one index, so that no row is read."""
    where = [jobs.c.account_id == account_id, jobs.c.deleted_at.is_(None)]
    if wanted.state is not None:
        where.append(jobs.c.state == wanted.state.value)
    if wanted.model is not None:
        where.append(jobs.c.model == wanted.model)
    if wanted.agent_id is not None:
        where.append(jobs.c.agent_id == wanted.agent_id)
    if wanted.batch_id is not None:
        where.append(jobs.c.batch_id == wanted.batch_id)
    if wanted.created_after is not None:
        where.append(jobs.c.created_at > wanted.created_after)
    if wanted.created_before is not None:
        where.append(jobs.c.created_at < wanted.created_before)
    if after is not None:
        where.append(jobs.c.id < after if descending else jobs.c.id > after)
    return where


_Query = TypeVar("_Query", bound=sa.Select[Any])


def _in_order(query: _Query, column: sa.ColumnElement[Any], *, descending: bool) -> _Query:
    return query.order_by(column.desc() if descending else column)


# For operators, who see every account's jobs: with whose it is.
_ANYONES_VIEW = (
    _VIEW.add_columns(jobs.c.account_id, accounts.c.name.label("account"))
    .join(accounts, accounts.c.id == jobs.c.account_id)
    .where(jobs.c.deleted_at.is_(None))
)


async def get_anyones_job(database: Database, job_id: str) -> Row | None:
    """Return a job of whatever account, with `account_id` and `account`, its name; None if there is none."""
    rows = await execute(database.relaxed, _ANYONES_VIEW.where(jobs.c.id == job_id))
    return rows[0] if rows else None


async def list_anyones_jobs(
    database: Database, *, account: str | None, state: State | None, limit: int
) -> Sequence[Row]:
    """Return up to `limit` jobs of every account, or of the one of that name, newest first."""
    query = _ANYONES_VIEW
    if account is not None:
        query = query.where(accounts.c.name == account)
    if state is not None:
        query = query.where(jobs.c.state == state.value)
    return await execute(database.relaxed, query.order_by(jobs.c.id.desc()).limit(limit))
