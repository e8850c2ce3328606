"""A worker picks the waiting jobs that it runs next. Nothing is moved here: `run` claims them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from headrace.jobs.records import WaitingJob
from headrace.stores.database import Database, execute
from headrace.stores.plain import Prepared

# Due jobs of an account that are read to find those for other models.
_MOST_READ = 1000

# The index leads from one account to the next, in each tier, apart for jobs that a client waits for. The first `limit`
# accounts, and the first `limit` jobs of each, are enough. No step depends on how many jobs are queued.
_FAIR = Prepared("""
WITH RECURSIVE place AS (
    SELECT tier, tier_order, background
    FROM unnest(%(tiers)s::text[]) WITH ORDINALITY AS known (tier, tier_order),
         unnest(%(kinds)s::bool[]) AS kind (background)
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
        SELECT id, model, scheduled_at, sent_at FROM jobs
        WHERE state = 'queued' AND tier = first.tier AND background = first.background
              AND account_id = first.account_id AND scheduled_at <= now()
        ORDER BY scheduled_at LIMIT %(read)s) AS due
    WHERE model <> ALL(%(besides)s::text[])) AS next
WHERE sent_at <= now() - %(seconds)s * interval '1 second'
ORDER BY tier_order, background, running + number, next.scheduled_at LIMIT %(limit)s
""")


async def find_fair(
    database: Database,
    tiers: Sequence[str],
    *,
    running: Mapping[str, tuple[int, int]],
    limit: int,
    below: int | None = None,
    seconds: float = 0,
    foreground: bool = False,
    besides: Collection[str] = (),
) -> list[WaitingJob]:
    """Return up to `limit` due jobs in the order in which a worker should run them.

    Tiers come in their order. In a tier, jobs that a client waits for come first; then accounts take turns, beginning
    with the one with the fewest jobs in `running`. `running` has two counts for each account: all of its jobs that this
    worker runs, and those of them that a client waits for. `below` leaves out accounts of which this worker already
    runs that many jobs, by the second count where a client waits for the job. `seconds` leaves out jobs whose wake-up
    was sent less than that long ago. With `foreground` only jobs that a client waits for are returned. `besides` leaves
    out the jobs for some models, among the first `_MOST_READ` due jobs of each account.
    """
    parameters = {
        "tiers": list(tiers),
        "accounts": list(running),
        "running": [count for count, _ in running.values()],
        "waited_for": [count for _, count in running.values()],
        "limit": limit,
        "kinds": [False] if foreground else [False, True],
        "read": _MOST_READ if besides else limit,
        "besides": list(besides),
        "below": below,
        "seconds": seconds,
    }
    return [WaitingJob(*row) for row in await execute(database.relaxed, _FAIR, parameters)]


_TAKEN = """
SELECT known.id FROM unnest(%(ids)b::text[]) AS known (id)
WHERE NOT EXISTS (SELECT FROM jobs WHERE jobs.id = known.id AND state = 'queued')
"""


async def find_taken(database: Database, job_ids: Sequence[str]) -> list[str]:
    """Return those of the jobs that are no longer queued."""
    return [row[0] for row in await execute(database.relaxed, _TAKEN, {"ids": list(job_ids)})]


_LINES = """
SELECT jobs.id, account_id, model FROM unnest(%(ids)b::text[]) AS known (id)
CROSS JOIN LATERAL (SELECT id, account_id, model FROM jobs WHERE jobs.id = known.id AND state = 'queued') AS jobs
"""


async def find_lines(database: Database, job_ids: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return the account and the model of each of the jobs that is queued."""
    rows = await execute(database.relaxed, _LINES, {"ids": list(job_ids)})
    return {job_id: (account_id, model) for job_id, account_id, model in rows}
