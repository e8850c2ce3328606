"""The ledger's months: each row is in its own, also one that came before it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from headrace.database import Database, execute
from headrace.usage.partitions import ensure_partitions
from headrace.usage.rollups import fold_usage, verify_rollups
from tests.integration.jobs import Owner
from tests.integration.ledger import Entry, write

MONTH = datetime(2033, 5, 1, tzinfo=UTC)


async def partitions(database: Database) -> list[str]:
    rows = await execute(database.relaxed, "SELECT tableoid::regclass::text AS name FROM usage ORDER BY created_at")
    return [row.name for row in rows]


async def test_rows_that_came_before_their_partition_are_moved_and_counted_once(
    database: Database, owner: Owner
) -> None:
    entries = [Entry(owner.account_id, MONTH + timedelta(days=days)) for days in (-1, 0, 40, 100)]
    await write(database, entries)
    assert set(await partitions(database)) == {"usage_other"}
    await fold_usage(database, metadata_keys=[])
    await ensure_partitions(database, now=MONTH)
    assert await partitions(database) == ["usage_other", "usage_2033_05", "usage_2033_06", "usage_other"]
    await fold_usage(database, metadata_keys=[])
    verified = await verify_rollups(database)
    assert (verified.rows, verified.differences) == (4, 0)


async def test_making_them_again_changes_nothing(database: Database, owner: Owner) -> None:
    for _ in range(2):
        await ensure_partitions(database, now=MONTH)
    await write(database, [Entry(owner.account_id, MONTH)])
    assert await partitions(database) == ["usage_2033_05"]
