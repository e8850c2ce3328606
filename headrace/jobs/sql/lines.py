"""Lines of batches: made to jobs, released, and held for a provider's own batch API."""

from __future__ import annotations

from collections.abc import Sequence

from headrace.jobs.records import HeldLine, MovedJob, NewLine
from headrace.jobs.sql.fragments import TRANSACTION, append_record, moved_jobs, tally
from headrace.stores.database import Database, execute

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


_RELEASE = f"""
WITH target AS MATERIALIZED (
    SELECT id FROM jobs
    WHERE batch_id = %(batch_id)s AND worker = %(parcel)s AND state = 'running'
          AND (%(ids)b::text[] IS NULL OR id = ANY(%(ids)b::text[]))
    ORDER BY id LIMIT 1000 FOR UPDATE SKIP LOCKED
), moved AS (
    UPDATE jobs SET state = CASE WHEN cancel_requested_at IS NULL THEN 'queued' ELSE 'cancelled' END,
                    finished_at = CASE WHEN cancel_requested_at IS NOT NULL THEN now() END,
                    finished_in = CASE WHEN cancel_requested_at IS NOT NULL THEN {TRANSACTION} END,
                    error = CASE WHEN cancel_requested_at IS NOT NULL THEN %(error)s END,
                    request = CASE WHEN deleted_at IS NULL THEN request END,
                    lease_until = NULL, worker = NULL, scheduled_at = now(), sent_at = now(),
                    {append_record("returned")}
    FROM target WHERE jobs.id = target.id
    RETURNING jobs.id, tier, state, attempt, origin, batch_id
{tally("moved")}
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
    return moved_jobs(await execute(database.durable, _RELEASE, parameters))


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
