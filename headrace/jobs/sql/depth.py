"""How long the queues are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headrace.stores.connections import LONG_PATIENCE_SECONDS
from headrace.stores.database import Database, execute

# The count reads one small index, and no row of a job that has ended. The oldest due job is sought among the first
# jobs of the tier, whose ids sort by time.
_DEPTHS = """
SELECT tier,
       (SELECT count(*) FROM jobs WHERE state = 'queued' AND jobs.tier = known.tier) AS jobs,
       (SELECT extract(epoch FROM now() - min(scheduled_at))::float8 FROM (
            SELECT scheduled_at FROM jobs WHERE state = 'queued' AND jobs.tier = known.tier ORDER BY id LIMIT 1000
        ) AS oldest WHERE scheduled_at <= now()) AS seconds
FROM unnest(%(tiers)s::text[]) AS known (tier)
"""


@dataclass(frozen=True, slots=True)
class Depth:
    """The queue of one tier."""

    tier: str
    jobs: int
    oldest_seconds: float
    """How long ago its oldest job was due; 0 if none is due."""


async def read_depths(database: Database, tiers: Sequence[str]) -> list[Depth]:
    """Return the number of queued jobs of each tier, and the age of its oldest due job."""
    rows = await execute(database.lists, _DEPTHS, {"tiers": list(tiers)}, patience_seconds=LONG_PATIENCE_SECONDS)
    return [Depth(row.tier, row.jobs, row.seconds or 0.0) for row in rows]
