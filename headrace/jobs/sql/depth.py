"""How long the queues are, and which jobs run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headrace.stores.connections import LONG_PATIENCE_SECONDS
from headrace.stores.database import Database, execute

# The count reads one small index, and no row of a job that has ended; a limit of null counts them all. The oldest due
# job is sought among the first due jobs of the tier, whose ids sort by time.
_DEPTHS = """
SELECT tier,
       (SELECT count(*) FROM (
            SELECT FROM jobs WHERE state = 'queued' AND jobs.tier = known.tier LIMIT %(most)s
        ) AS queued) AS jobs,
       (SELECT extract(epoch FROM now() - min(scheduled_at))::float8 FROM (
            SELECT scheduled_at FROM jobs WHERE state = 'queued' AND jobs.tier = known.tier AND scheduled_at <= now()
            ORDER BY id LIMIT 1000
        ) AS oldest) AS seconds
FROM unnest(%(tiers)s::text[]) AS known (tier)
"""


@dataclass(frozen=True, slots=True)
class Depth:
    """The queue of one tier."""

    tier: str
    jobs: int
    oldest_seconds: float
    """How long ago its oldest job was due; 0 if none is due."""


async def read_depths(database: Database, tiers: Sequence[str], *, most: int | None = None) -> list[Depth]:
    """Return the number of queued jobs of each tier, and the age of its oldest due job.

    With `most` the count of a tier ends there, so that it is quick however many jobs wait.
    """
    parameters = {"tiers": list(tiers), "most": most}
    rows = await execute(database.lists, _DEPTHS, parameters, patience_seconds=LONG_PATIENCE_SECONDS)
    return [Depth(row.tier, row.jobs, row.seconds or 0.0) for row in rows]


# Of the running jobs that were accepted first: workers' slots bound the others, but lines that a provider's own batch
# API holds run too.
_RUNNING = """
WITH running AS MATERIALIZED (
    SELECT id, account_id, model, format, tier, state AS status, attempt AS attempts, worker,
           extract(epoch FROM created_at)::float8 AS created_at, extract(epoch FROM started_at)::float8 AS started_at
    FROM jobs WHERE state = 'running' ORDER BY id LIMIT %(most)s
)
SELECT coalesce((SELECT json_object_agg(tier, jobs)
                 FROM (SELECT tier, count(*) AS jobs FROM running GROUP BY tier) AS counted), '{}') AS tiers,
       coalesce((SELECT json_agg(first)
                 FROM (SELECT * FROM running ORDER BY started_at, id LIMIT %(first)s) AS first), '[]') AS first
"""


@dataclass(frozen=True, slots=True)
class Running:
    """The running jobs of all accounts."""

    tiers: Mapping[str, int]
    """How many run, by tier; tiers without a running job are left out."""
    first: Sequence[dict[str, Any]]
    """Those that began first, with their columns. Times are in Unix seconds."""


async def read_running(database: Database, *, most: int, first: int) -> Running:
    """Return how many jobs run, and the `first` that began first, among the `most` that were accepted first."""
    [row] = await execute(database.lists, _RUNNING, {"most": most, "first": first})
    return Running(row.tiers, row.first)
