"""The API moves a client's job in: inserts it as queued, and marks it when its wake-up could not be sent."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

from headrace.jobs.records import NewJob
from headrace.jobs.sql.columns import Column, Columns, one_row, unnest
from headrace.stores.database import Database, execute
from headrace.stores.plain import Prepared

NEW_JOB = Columns[NewJob](
    Column("id", "text"),
    Column("account_id", "text"),
    Column("key_id", "text"),
    Column("model", "text"),
    Column("format", "text"),
    Column("conversation_id", "text"),
    Column("request", "text"),
    Column("metadata", "text", value="{}::jsonb"),
    Column("tier", "text"),
    Column("background", "bool"),
    Column("streamed", "bool"),
    Column("origin", "text"),
    Column("agent_id", "text"),
    Column("agent_version", "int"),
    Column("reserved_cost", "numeric"),
    Column("webhook", "text"),
    Column("stored", "bool"),
    Column("trace_context", "text"),
    Column("scheduled_at", "float8", attrgetter("delay_seconds"), "now() + {} * interval '1 second'"),
    Column("deadline_at", "float8", attrgetter("timeout_seconds"), "now() + {} * interval '1 second'"),
)
"""What a client's new job sets. Other columns have their defaults."""


def _insert(new: str) -> Prepared:
    return Prepared(f"""
INSERT INTO jobs ({NEW_JOB.names})
SELECT {NEW_JOB.values("new")}
FROM {new}
ON CONFLICT (id) DO UPDATE SET id = excluded.id
RETURNING id, floor(extract(epoch FROM created_at))::bigint
""")


_INSERT_ALL = _insert(unnest("new", NEW_JOB))
_INSERT_ONE = _insert(one_row("new", NEW_JOB))


async def insert_jobs(database: Database, new: Sequence[NewJob]) -> Sequence[int]:
    """Accept jobs, all or none. Returns when each was created, in Unix seconds.

    They are on disk when this returns, unless all clients wait for whole answers. Such a client learns nothing of its
    job before the job's end. Its job reaches the disk with its claim, before a provider is called.
    """
    connections = database.relaxed if all(job.silent_until_end for job in new) else database.durable
    if len(new) == 1:
        rows = await execute(connections, _INSERT_ONE, NEW_JOB.for_one(new[0]))
    else:
        rows = await execute(connections, _INSERT_ALL, NEW_JOB.for_all(new))
    created = {row[0]: row[1] for row in rows}
    return [created[job.id] for job in new]


_UNSENT = """
WITH waiting AS MATERIALIZED (
    SELECT id FROM jobs WHERE id = ANY(%(ids)b::text[]) AND state = 'queued' ORDER BY id FOR UPDATE SKIP LOCKED
)
UPDATE jobs SET sent_at = 'epoch' FROM waiting WHERE jobs.id = waiting.id RETURNING jobs.id
"""


async def mark_unsent(database: Database, job_ids: Sequence[str]) -> None:
    """Mark queued jobs whose wake-ups may not have been sent. The scheduler's next sweep sends them."""
    await execute(database.relaxed, _UNSENT, {"ids": list(job_ids)})


_COUNT_WAITING = """
SELECT count(*) FROM (
    SELECT FROM jobs WHERE state = 'queued' AND tier IN ('priority', 'default', 'flex') AND background IN (false, true)
                           AND account_id = %(account_id)s LIMIT %(limit)s) AS waiting
"""


async def count_waiting(database: Database, account_id: str, *, limit: int) -> int:
    """Return how many of an account's jobs wait, without lines of batches. Counts up to `limit`."""
    rows = await execute(database.lists, _COUNT_WAITING, {"account_id": account_id, "limit": limit})
    return int(rows[0][0])
