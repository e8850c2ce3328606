"""The scheduler moves lines of batches: makes them jobs, and releases those held for a provider's own batch API."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

from headrace.jobs.records import HeldLine, MovedJob, NewLine
from headrace.jobs.sql.columns import Column, Columns, unnest
from headrace.jobs.sql.fragments import append_unfinished, put_back, read_moved, tally
from headrace.stores.connections import LONG_PATIENCE_SECONDS
from headrace.stores.database import Database, execute

NEW_LINE = Columns[NewLine](
    Column("id", "text"),
    Column("line", "int"),
    Column("custom_id", "text"),
    Column("model", "text"),
    Column("format", "text"),
    Column("request", "text"),
    Column("metadata", "text", value="{}::jsonb"),
    Column("agent_id", "text"),
    Column("agent_version", "int"),
    Column(
        "deadline_at", "float8", attrgetter("timeout_seconds"), "least(expires_at, now() + {} * interval '1 second')"
    ),
)

_FEED = f"""
WITH fed AS (
    UPDATE batches SET next_offset = %(end)s, next_line = %(next_line)s, fed = fed + %(count)s
    WHERE id = %(batch_id)s AND state = 'in_progress' AND next_offset = %(start)s AND expires_at > now()
    RETURNING id AS batch_id, account_id, key_id, trace_context, expires_at
), lines AS (
    INSERT INTO jobs ({NEW_LINE.names}, account_id, key_id, batch_id, trace_context, tier, background, streamed,
                      state, attempt, worker, started_at, lease_until)
    SELECT {NEW_LINE.values("new")}, account_id, key_id, batch_id, trace_context, 'batch', true, false,
           CASE WHEN %(parcel)s::text IS NULL THEN 'queued' ELSE 'running' END,
           CASE WHEN %(parcel)s::text IS NULL THEN 0 ELSE 1 END, %(parcel)s,
           CASE WHEN %(parcel)s::text IS NOT NULL THEN now() END,
           CASE WHEN %(parcel)s::text IS NOT NULL THEN expires_at END
    FROM fed, {unnest("new", NEW_LINE)}
)
SELECT batch_id FROM fed
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

    With `parcel` the statement also claims them, until the batch expires, for a parcel that goes to a provider's own
    batch API. Returns False if the batch no longer stands at `start`, or no longer accepts lines. A lost commit repeats
    the feeding.
    """
    parameters = {
        "batch_id": batch_id,
        "parcel": parcel,
        "start": start,
        "end": end,
        "next_line": next_line,
        "count": len(lines),
        **NEW_LINE.for_all(lines),
    }
    return bool(await execute(database.relaxed, _FEED, parameters))


_RELEASE = f"""
WITH target AS MATERIALIZED (
    SELECT id FROM jobs
    WHERE batch_id = %(batch_id)s AND worker = %(parcel)s AND state = 'running'
          AND (%(ids)b::text[] IS NULL OR id = ANY(%(ids)b::text[]))
    ORDER BY id LIMIT 1000 FOR UPDATE SKIP LOCKED
), moved AS (
    UPDATE jobs SET {put_back("%(error)s")}, scheduled_at = now(), sent_at = now(),
                    {append_unfinished("returned")}
    FROM target WHERE jobs.id = target.id
    RETURNING jobs.id, tier, state, attempt, origin, batch_id
){tally("moved")}
SELECT id, tier, state, attempt, origin FROM moved
"""


async def release_lines(
    database: Database, batch_id: str, parcel: str, *, job_ids: Sequence[str] | None = None, error: str
) -> list[MovedJob]:
    """Put up to 1,000 jobs of a parcel, all or those of `job_ids`, back in the queue. Cancelled ones end instead.

    The caller repeats it until it returns no job. `error` is the JSON error of the cancelled jobs.
    """
    parameters = {
        "batch_id": batch_id,
        "parcel": parcel,
        "ids": None if job_ids is None else list(job_ids),
        "error": error,
    }
    return read_moved(await execute(database.durable, _RELEASE, parameters))


# Bytes of requests after which a page of held jobs ends; a request has up to 20 MB.
_HELD_BYTES = 4 * 1024 * 1024
_HELD = """
SELECT id, line, attempt, created, request, format FROM (
    SELECT *, sum(octet_length(request)) OVER (ORDER BY line ROWS UNBOUNDED PRECEDING)
              - octet_length(request) AS before
    FROM (SELECT id, line, attempt, floor(extract(epoch FROM created_at))::bigint AS created, request, format FROM jobs
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
    """Return up to `limit` jobs of a parcel, all or those of `job_ids`, in order of lines, past the line `after`.

    A page with large requests has fewer. An empty page is the end.
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


# The ends get numbers before those of all transactions of this database, in the order that they have.
_SETTLE_RESTORED = """
WITH restored AS MATERIALIZED (
    SELECT line.id FROM batches CROSS JOIN LATERAL (
        SELECT id FROM jobs WHERE batch_id = batches.id
                                  AND finished_in >= pg_snapshot_xmax(pg_current_snapshot())::text::bigint
        LIMIT %(limit)s
    ) AS line LIMIT %(limit)s
)
UPDATE jobs SET finished_in = finished_in - 4611686018427387904 FROM restored WHERE jobs.id = restored.id
RETURNING jobs.id
"""


async def settle_restored_ends(database: Database, *, limit: int = 1000) -> int:
    """Put lines that ended in the database from which this one was restored before those that end here.

    Their transactions have numbers that this database may not have reached yet. Returns how many lines it changed, at
    most `limit`; the caller repeats it until none are left.
    """
    rows = await execute(database.relaxed, _SETTLE_RESTORED, {"limit": limit}, patience_seconds=LONG_PATIENCE_SECONDS)
    return len(rows)
