"""Reads one job: its progress and deltas for readers, its object for the API, any account's jobs for operators."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import psycopg

from headrace.jobs.records import Progress, StoredJob
from headrace.jobs.state import State
from headrace.jobs.tables import jobs
from headrace.keys.tables import accounts
from headrace.stores.connections import Row
from headrace.stores.database import Database, execute
from headrace.stores.plain import Prepared
from headrace.stores.tables import unix_seconds
from headrace.usage.spent import Charge
from headrace.usage.tables import usage

UNBOUNDED = 2**62
"""Bytes that nothing has more of."""


class Page(NamedTuple):
    """Stored lines in order, and whether there are more."""

    segments: list[tuple[int, int, list[bytes]]]
    """Each with its attempt, its first sequence number and its lines."""
    more: bool = False


_PROGRESS = Prepared("""
SELECT state, jobs.attempt, worker IS NOT NULL, delta_count, floor(extract(epoch FROM jobs.created_at))::bigint,
       CASE WHEN delta_count = 0 OR octet_length(response) <= %(most)s THEN response END, error,
       coalesce(prompt_tokens + completion_tokens, 0), cost, format
FROM jobs LEFT JOIN usage ON usage.job_id = jobs.id AND usage.created_at = finished_at AND kind = 'counted'
WHERE jobs.id = %(id)s AND deleted_at IS NULL
""")


async def read_progress(database: Database, job_id: str, *, most_bytes: int = UNBOUNDED) -> Progress | None:
    """Return where a job stands, or None if it was deleted; without a streamed answer of more than `most_bytes`."""
    rows = await execute(database.relaxed, _PROGRESS, {"id": job_id, "most": most_bytes})
    if not rows:
        return None
    state, attempt, in_attempt, delta_count, created, response, error, tokens, cost, form = rows[0]
    charge = Charge(tokens, cost)
    return Progress(State(state), attempt, in_attempt, delta_count, created, response, error, charge, form)


# A page ends with the segment that fills it. Sizes are read without the texts, which Postgres may store apart.
_SEGMENTS = """
SELECT attempt, first_seq, chunks, more FROM (
    SELECT attempt, first_seq, chunks, lead(first_seq) OVER page IS NOT NULL AS more,
           sum(octet_length(chunks)) OVER page - octet_length(chunks) AS bytes_before
    FROM job_deltas WHERE job_id = %(id)s AND {only} last_seq > %(after)s WINDOW page AS (ORDER BY attempt, first_seq)
) AS segments WHERE bytes_before < %(most)s ORDER BY attempt, first_seq
"""
_DELTAS = Prepared(_SEGMENTS.format(only="attempt = %(attempt)s AND"))
_LOG = Prepared(_SEGMENTS.format(only=""))


async def read_deltas(
    database: Database, job_id: str, attempt: int, *, after: int, most_bytes: int = UNBOUNDED
) -> Page:
    """Return an attempt's stored deltas past `after`; of more than `most_bytes`, the first."""
    parameters = {"id": job_id, "attempt": attempt, "after": after, "most": most_bytes}
    return _page(await execute(database.relaxed, _DELTAS, parameters))


async def read_log(database: Database, job_id: str, *, after: int = 0, most_bytes: int = UNBOUNDED) -> Page:
    """Return the stored lines of all attempts past `after`; of more than `most_bytes`, the first.

    This is for jobs whose format keeps its log, where sequence numbers go on from one attempt to the next.
    """
    return _page(await execute(database.relaxed, _LOG, {"id": job_id, "after": after, "most": most_bytes}))


def _page(rows: Sequence[Row]) -> Page:
    segments = [(row[0], row[1], row[2].encode().split(b"\n")) for row in rows]
    return Page(segments, more=bool(rows) and rows[-1][3])


async def read_log_length(database: Database, job_id: str) -> int:
    """Return the sequence number of the last stored line of a job whose format keeps its log, 0 without one."""
    query = "SELECT coalesce(max(last_seq), 0) FROM job_deltas WHERE job_id = %(id)s"
    rows = await execute(database.relaxed, query, {"id": job_id})
    return int(rows[0][0])


_POSITIONS = Prepared("""
SELECT id, state, attempt, coalesce((SELECT max(last_seq) FROM job_deltas AS delta
                                     WHERE delta.job_id = jobs.id AND delta.attempt = jobs.attempt), 0) AS last_seq
FROM jobs WHERE id = ANY(%(ids)b::text[])
""")


async def read_positions(database: Database, job_ids: Sequence[str]) -> Sequence[Row]:
    """Return `(job_id, state, attempt, last stored sequence number)` of these jobs."""
    return await execute(database.relaxed, _POSITIONS, {"ids": list(job_ids)}) if job_ids else []


_FOLLOWED = Prepared("""
SELECT state, format, floor(extract(epoch FROM created_at))::bigint AS created, attempt
FROM jobs WHERE id = %(id)s AND account_id = %(account_id)s AND deleted_at IS NULL
""")


async def read_followed(database: Database, job_id: str, account_id: str) -> Row | None:
    """Return `state`, `format`, `created` and `attempt` of an account's job, or None if it has no such job.

    That is what a subscriber that comes, or comes back, needs to know.
    """
    rows = await execute(database.relaxed, _FOLLOWED, {"id": job_id, "account_id": account_id})
    return rows[0] if rows else None


# Literals and not parameters, so that a prepared statement matches the partial index of queued jobs.
_QUEUED: sa.ColumnElement[str] = sa.literal_column("'queued'")
_COUNTED: sa.ColumnElement[str] = sa.literal_column("'counted'")
_MOST_BEFORE: sa.ColumnElement[int] = sa.literal_column("1000")


def _queue_position() -> sa.ColumnElement[Any]:
    """Return SQL for how many jobs of its tier are queued before a queued job, counted up to 1,000."""
    other = jobs.alias("other")
    before = (
        sa.select(other.c.id)
        .where(other.c.state == _QUEUED, other.c.tier == jobs.c.tier, other.c.id < jobs.c.id)
        .limit(_MOST_BEFORE)
        .correlate(jobs)
        .subquery()
    )
    count = sa.select(sa.func.count()).select_from(before).scalar_subquery()
    return sa.case((jobs.c.state == _QUEUED, count))


VIEW = sa.select(
    jobs.c.id,
    jobs.c.state,
    jobs.c.model,
    jobs.c.format,
    jobs.c.agent_id,
    jobs.c.agent_version,
    jobs.c.batch_id,
    jobs.c.custom_id,
    jobs.c.provider,
    jobs.c.tier,
    jobs.c.attempt,
    *(
        unix_seconds(jobs.c[name])
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
        # Both times are those of the statement that ended the job, so Postgres reads one partition of the ledger.
        sa.and_(usage.c.job_id == jobs.c.id, usage.c.created_at == jobs.c.finished_at, usage.c.kind == _COUNTED),
    )
)


_GET = Prepared(
    str(
        VIEW.where(
            jobs.c.id == sa.bindparam("id"),
            jobs.c.account_id == sa.bindparam("account_id"),
            jobs.c.deleted_at.is_(None),
        ).compile(dialect=psycopg.dialect())
    )
)


async def get_job(database: Database, job_id: str, account_id: str) -> Row | None:
    """Return an account's job with its usage, or None if the account has no such job."""
    rows = await execute(database.relaxed, _GET, {"id": job_id, "account_id": account_id})
    return rows[0] if rows else None


async def get_request(database: Database, job_id: str, account_id: str) -> str | None:
    """Return the request of an account's chat job as it came, or None if the account has no such job."""
    query = sa.select(jobs.c.request).where(
        jobs.c.id == job_id, jobs.c.account_id == account_id, jobs.c.format == "chat", jobs.c.deleted_at.is_(None)
    )
    rows = await execute(database.relaxed, query)
    return rows[0][0] if rows else None


_STORED = """
SELECT id, state, format, model, background, floor(extract(epoch FROM created_at))::bigint AS created,
       floor(extract(epoch FROM finished_at))::bigint AS finished, request, response, error, stored
FROM jobs WHERE id = %(id)s AND account_id = %(account_id)s AND deleted_at IS NULL
"""


async def read_stored(database: Database, job_id: str, account_id: str) -> StoredJob | None:
    """Return what an account's job has stored, or None if the account has no such job."""
    rows = await execute(database.relaxed, _STORED, {"id": job_id, "account_id": account_id})
    return StoredJob(rows[0][0], State(rows[0][1]), *rows[0][2:]) if rows else None


# Postgres knows the size of a text without reading it.
_RESPONSE_SIZES = """
SELECT id, octet_length(request) + coalesce(octet_length(response), 0) FROM jobs
WHERE id = ANY(%(ids)s) AND account_id = %(account_id)s AND format = 'responses' AND stored AND deleted_at IS NULL
"""


async def read_response_sizes(database: Database, job_ids: Collection[str], account_id: str) -> dict[str, int]:
    """Return the bytes of request and answer of those jobs that are stored responses of the account."""
    rows = await execute(database.relaxed, _RESPONSE_SIZES, {"ids": list(job_ids), "account_id": account_id})
    return {row[0]: row[1] for row in rows}


# For operators, who see the jobs of every account.
_ANYONES_VIEW = (
    VIEW.add_columns(jobs.c.account_id, accounts.c.name.label("account"))
    .join(accounts, accounts.c.id == jobs.c.account_id)
    .where(jobs.c.deleted_at.is_(None))
)


async def get_anyones_job(database: Database, job_id: str) -> Row | None:
    """Return a job of any account, with `account_id` and the account's name as `account`, or None."""
    rows = await execute(database.relaxed, _ANYONES_VIEW.where(jobs.c.id == job_id))
    return rows[0] if rows else None


async def list_anyones_jobs(
    database: Database, *, account_id: str | None, state: State | None, limit: int
) -> Sequence[Row]:
    """Return up to `limit` jobs of every account, or of one account, newest first."""
    query = _ANYONES_VIEW
    if account_id is not None:
        query = query.where(jobs.c.account_id == account_id)
    if state is not None:
        query = query.where(jobs.c.state == state.value)
    return await execute(database.relaxed, query.order_by(jobs.c.id.desc()).limit(limit))
