"""The scheduler moves jobs whose lease or deadline has expired, and marks those whose wake-ups it resends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from headrace.jobs.records import Backlog, MovedJob
from headrace.jobs.sql.fragments import STARTS_OVER, TRANSACTION, append_unfinished, read_moved, tally_and_notify
from headrace.stores.database import Database, execute
from headrace.stores.plain import Prepared
from headrace.webhooks.queries import JOB_FOR_WEBHOOK

# Jobs that one statement rescues, and that one expires; more wait for the next one.
RESCUED_AT_ONCE = 1000
EXPIRED_AT_ONCE = 10_000

# The jobs of a tier whose wake-ups may be lost: the oldest that are due.
_OLDEST = (
    "SELECT id, sent_at FROM jobs WHERE state = 'queued' AND tier = {tier} AND scheduled_at <= now() "
    "ORDER BY id LIMIT 20000"
)

_LOOK = Prepared(f"""
SELECT EXISTS (SELECT FROM jobs WHERE state = 'running' AND lease_until < now()) AS leases,
       EXISTS (SELECT FROM jobs WHERE state = 'queued' AND deadline_at <= now()) AS deadlines,
       ARRAY(SELECT asked.tier FROM unnest(%(tiers)s::text[]) AS asked (tier) WHERE EXISTS (
           SELECT FROM ({_OLDEST.format(tier="asked.tier")}) AS oldest
           WHERE sent_at < now() - %(resend)s * interval '1 second'
       )) AS tiers
""")


class Overdue(NamedTuple):
    """What a sweep would find."""

    leases: bool
    """Whether a lease has expired."""
    deadlines: bool
    """Whether the deadline of a queued job has passed."""
    tiers: Sequence[str]
    """The tiers with jobs whose wake-ups may be lost."""


async def find_overdue(database: Database, tiers: Sequence[str], *, resend_seconds: float) -> Overdue:
    """Return whether there is anything to rescue, to expire or to resend, at less cost than any of the three."""
    [found] = await execute(database.relaxed, _LOOK, {"tiers": list(tiers), "resend": resend_seconds})
    return Overdue(*found)


_RESCUE = f"""
WITH dead AS MATERIALIZED (
    SELECT id, CASE WHEN cancel_requested_at IS NOT NULL THEN 'cancelled'
                    WHEN lost + 1 >= %(max_lost)s THEN 'failed'
                    WHEN NOT background AND streamed AND EXISTS (SELECT FROM job_deltas WHERE job_id = jobs.id)
                         THEN 'interrupted'
                    ELSE 'queued' END AS fate
    FROM jobs WHERE state = 'running' AND lease_until < now()
    ORDER BY id LIMIT {RESCUED_AT_ONCE} FOR UPDATE SKIP LOCKED
), moved AS (
    UPDATE jobs SET state = CASE fate WHEN 'interrupted' THEN 'failed' ELSE fate END,
                    lost = lost + 1, lease_until = NULL, worker = NULL,
                    {append_unfinished("lost")},
                    scheduled_at = now() + %(delay)s * interval '1 second', sent_at = now(),
                    finished_at = CASE WHEN fate <> 'queued' THEN now() END,
                    finished_in = CASE WHEN fate <> 'queued' THEN {TRANSACTION} END,
                    request = CASE WHEN fate = 'queued' OR deleted_at IS NULL THEN request END,
                    error = CASE fate WHEN 'cancelled' THEN %(cancelled)s WHEN 'failed' THEN %(poisonous)s
                                      WHEN 'interrupted' THEN %(interrupted)s END
    FROM dead WHERE jobs.id = dead.id
    RETURNING jobs.id, jobs.account_id, jobs.tier, jobs.state, jobs.attempt, jobs.origin, jobs.batch_id,
              jobs.deleted_at, {JOB_FOR_WEBHOOK}
), forgotten AS (
    DELETE FROM job_deltas USING moved WHERE job_deltas.job_id = moved.id
    AND (moved.state = 'queued' AND {STARTS_OVER} OR moved.deleted_at IS NOT NULL)
){tally_and_notify("moved")}
SELECT id, tier, state, attempt, origin FROM moved
"""


async def rescue_jobs(
    database: Database, *, max_lost: int, delay_seconds: float, cancelled: str, poisonous: str, interrupted: str
) -> list[MovedJob]:
    """Put running jobs whose lease has expired back in the queue, or end them: 1,000 of them at most.

    A job that lost `max_lost` workers is presumed to crash them, and fails. A job whose foreground client has read some
    of its stream fails too, because a new attempt would repeat it. The others are due in `delay_seconds`. `cancelled`,
    `poisonous` and `interrupted` are the errors that rows keep, as JSON.
    """
    parameters = {
        "max_lost": max_lost,
        "delay": delay_seconds,
        "cancelled": cancelled,
        "poisonous": poisonous,
        "interrupted": interrupted,
    }
    return read_moved(await execute(database.durable, _RESCUE, parameters))


_EXPIRE = f"""
WITH late AS MATERIALIZED (
    SELECT id FROM jobs WHERE state = 'queued' AND deadline_at <= now()
    ORDER BY id LIMIT {EXPIRED_AT_ONCE} FOR UPDATE SKIP LOCKED
), moved AS (
    UPDATE jobs SET state = 'expired', finished_at = now(), finished_in = {TRANSACTION}, error = %(error)s,
                    request = CASE WHEN deleted_at IS NULL THEN request END
    FROM late WHERE jobs.id = late.id
    RETURNING jobs.id, account_id, tier, state, attempt, origin, batch_id, {JOB_FOR_WEBHOOK}
){tally_and_notify("moved")}
SELECT id, tier, state, attempt, origin FROM moved
"""


async def expire_jobs(database: Database, *, error: str) -> list[MovedJob]:
    """End queued jobs whose deadline has passed: 10,000 of them at most.

    The worker of a running job ends it at its deadline.
    """
    return read_moved(await execute(database.durable, _EXPIRE, {"error": error}))


# Only the head of a long queue is known. A wake-up is lost if it was sent before the head's last messages and is not in
# the head. The 2 seconds are a margin, because jobs that are committed together are not sent at the same moment.
_RESEND = f"""
WITH edge AS (
    SELECT CASE WHEN %(whole)s THEN 'infinity'
                ELSE (SELECT min(sent_at) - interval '2 seconds' FROM jobs
                      WHERE id = ANY(%(last)b::text[]) AND sent_at > 'epoch') END AS at
), oldest AS MATERIALIZED (
    {_OLDEST.format(tier="%(tier)s")}
), lost AS MATERIALIZED (
    SELECT id FROM oldest, edge
    WHERE (sent_at = 'epoch' OR sent_at < least(now() - %(resend)s * interval '1 second', edge.at))
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
    return read_moved(await execute(database.relaxed, _RESEND, parameters))


_IN_HAND = """
WITH held AS MATERIALIZED (
    SELECT id FROM jobs WHERE id = ANY(%(ids)b::text[]) AND state = 'queued' ORDER BY id FOR UPDATE SKIP LOCKED
)
UPDATE jobs SET sent_at = now() FROM held WHERE jobs.id = held.id
"""


async def keep_in_hand(database: Database, job_ids: Sequence[str]) -> None:
    """Mark queued jobs as sent again, because a live worker holds their wake-ups."""
    await execute(database.relaxed, _IN_HAND, {"ids": list(job_ids)})
