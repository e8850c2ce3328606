"""Statements on parcels: lines that a provider's own batch API runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from headrace.ids import new_id
from headrace.stores.connections import LONG_PATIENCE_SECONDS
from headrace.stores.database import Database, execute


@dataclass(frozen=True, slots=True)
class NativeParcel:
    """Lines that are with a provider's own batch API, or on their way there."""

    id: str
    state: Literal["filling", "submitting", "submitted"]
    remote_id: str | None
    failures: int
    route: str | None
    """The route whose batch API has it. None if the previous release has let the batch be run by workers."""
    cancelled: bool
    """Whether the provider was asked to cancel it."""
    due: bool

    @property
    def provider(self) -> str:
        """The provider's name, also of a route that the configuration does not have any more."""
        return (self.route or "").partition("/")[0]


# A parcel that would wait for longer than `seconds` got its time when they were more, as before a cancellation.
# It is due now. One that has failed waits for `retry_seconds`, or a short outage would use up its failures.
_PARCELS = """
SELECT parcels.id, parcels.state, remote_id, failures, coalesce(route, native_route), parcels.cancelled,
       due_at <= now() OR due_at > now() + interval '1 second'
                                           * CASE WHEN failures = 0 THEN %(seconds)s ELSE %(retry_seconds)s END
FROM native_parcels AS parcels JOIN batches ON batches.id = batch_id
WHERE batch_id = %(batch_id)s AND parcels.state <> 'done' ORDER BY parcels.id
"""
_OPEN_PARCEL = """
WITH native AS (
    SELECT id, native_route FROM batches WHERE id = %(batch_id)s AND native_route IS NOT NULL
), opened AS (
    INSERT INTO native_parcels (id, batch_id) SELECT %(id)s, id FROM native ON CONFLICT (id) DO NOTHING
)
SELECT native_route FROM native
"""
_MOVE_PARCEL = """
UPDATE native_parcels SET state = %(state)s, remote_id = coalesce(%(remote_id)s, remote_id),
    failures = %(failures)s, error = coalesce(%(error)s, error),
    due_at = now() + %(seconds)s * interval '1 second'
WHERE id = %(id)s AND state <> 'done'
"""


async def list_parcels(
    database: Database, batch_id: str, *, seconds: float, retry_seconds: float
) -> list[NativeParcel]:
    """Return the parcels of a batch that are not done, oldest first.

    None of them waits for longer than `seconds`, or than `retry_seconds` after a failure.
    """
    parameters = {"batch_id": batch_id, "seconds": seconds, "retry_seconds": retry_seconds}
    return [NativeParcel(*row) for row in await execute(database.relaxed, _PARCELS, parameters)]


async def open_parcel(database: Database, batch_id: str) -> NativeParcel | None:
    """Make a parcel for lines of a batch. Returns None if workers run the batch meanwhile."""
    parcel_id = new_id("parcel")
    rows = await execute(database.durable, _OPEN_PARCEL, {"id": parcel_id, "batch_id": batch_id})
    return NativeParcel(parcel_id, "filling", None, 0, rows[0].native_route, False, True) if rows else None


async def move_parcel(
    database: Database,
    parcel_id: str,
    state: Literal["filling", "submitting", "submitted", "done"],
    *,
    remote_id: str | None = None,
    failures: int = 0,
    error: str | None = None,
    seconds: float = 0,
) -> None:
    """Note where a parcel stands, and look at it again in so many seconds; one that is done stays done."""
    parameters = {
        "id": parcel_id,
        "state": state,
        "remote_id": remote_id,
        "failures": failures,
        "error": error,
        "seconds": seconds,
    }
    await execute(database.durable, _MOVE_PARCEL, parameters)


_HELD = """
SELECT count(*) FROM jobs
WHERE batch_id = %(batch_id)s AND state = 'running'
      AND worker IN (SELECT id FROM native_parcels WHERE batch_id = %(batch_id)s AND state <> 'done')
"""


async def count_held(database: Database, batch_id: str) -> int:
    """Return how many lines of a batch its parcels hold. It takes about 1 µs a running line."""
    [(held,)] = await execute(database.relaxed, _HELD, {"batch_id": batch_id}, patience_seconds=LONG_PATIENCE_SECONDS)
    return int(held)


async def mark_cancelled(database: Database, parcel_id: str) -> None:
    """Note that a parcel's provider was asked to cancel it."""
    query = "UPDATE native_parcels SET cancelled = true WHERE id = %(id)s"
    await execute(database.durable, query, {"id": parcel_id})


_RUN_HERE = """
WITH parted AS (
    UPDATE native_parcels SET route = native_route FROM batches
    WHERE batches.id = %(id)s AND batch_id = %(id)s AND native_parcels.state <> 'done' AND native_route IS NOT NULL
)
UPDATE batches SET native_route = NULL WHERE id = %(id)s
"""


async def run_here(database: Database, batch_id: str) -> None:
    """Let our own workers run the rest of a batch. Its open parcels keep its route."""
    await execute(database.durable, _RUN_HERE, {"id": batch_id})
