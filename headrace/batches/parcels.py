"""Statements on parcels: lines that a provider's own batch API runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from headrace.ids import new_id
from headrace.stores.database import Database, execute


@dataclass(frozen=True, slots=True)
class NativeParcel:
    """Lines that are with a provider's own batch API, or on their way there."""

    id: str
    state: Literal["filling", "submitting", "submitted"]
    remote_id: str | None
    failures: int
    due: bool


_PARCELS = """
SELECT id, state, remote_id, failures, due_at <= now() FROM native_parcels
WHERE batch_id = %(batch_id)s AND state <> 'done' ORDER BY id
"""
_OPEN_PARCEL = """
INSERT INTO native_parcels (id, batch_id) VALUES (%(id)s, %(batch_id)s) ON CONFLICT (id) DO NOTHING
"""
_MOVE_PARCEL = """
UPDATE native_parcels SET state = %(state)s, remote_id = coalesce(%(remote_id)s, remote_id),
    failures = %(failures)s, error = coalesce(%(error)s, error),
    due_at = now() + %(seconds)s * interval '1 second'
WHERE id = %(id)s AND state <> 'done'
"""


async def list_parcels(database: Database, batch_id: str) -> list[NativeParcel]:
    """Return the parcels of a batch that still hold lines, oldest first."""
    return [NativeParcel(*row) for row in await execute(database.relaxed, _PARCELS, {"batch_id": batch_id})]


async def open_parcel(database: Database, batch_id: str) -> str:
    """Make a parcel for lines of a batch, and return its id."""
    parcel_id = new_id("parcel")
    await execute(database.durable, _OPEN_PARCEL, {"id": parcel_id, "batch_id": batch_id})
    return parcel_id


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


async def run_here(database: Database, batch_id: str) -> None:
    """Let the rest of a batch be run by our own workers."""
    await execute(database.durable, "UPDATE batches SET native_route = NULL WHERE id = %(id)s", {"id": batch_id})
