"""A client's job on its way in: inserted, counted, and marked when its wake-up could not be sent."""

from __future__ import annotations

from collections.abc import Sequence

from headrace.jobs.records import NewJob
from headrace.stores.database import Database, execute

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


_UNSENT = """
WITH waiting AS MATERIALIZED (
    SELECT id FROM jobs WHERE id = ANY(%(ids)b::text[]) AND state = 'queued' ORDER BY id FOR UPDATE SKIP LOCKED
)
UPDATE jobs SET sent_at = 'epoch' FROM waiting WHERE jobs.id = waiting.id RETURNING jobs.id
"""


async def mark_unsent(database: Database, job_ids: Sequence[str]) -> None:
    """Note of queued jobs that their wake-ups may not have been sent: the next sweep sends them."""
    await execute(database.relaxed, _UNSENT, {"ids": list(job_ids)})


_COUNT_WAITING = """
SELECT count(*) FROM (
    SELECT FROM jobs WHERE state = 'queued' AND tier IN ('priority', 'default', 'flex') AND background IN (false, true)
                           AND account_id = %(account_id)s LIMIT %(limit)s) AS waiting
"""


async def count_waiting(database: Database, account_id: str, *, limit: int) -> int:
    """Return how many jobs of an account wait, lines of batches aside, counted no further than `limit`."""
    rows = await execute(database.lists, _COUNT_WAITING, {"account_id": account_id, "limit": limit})
    return int(rows[0][0])
