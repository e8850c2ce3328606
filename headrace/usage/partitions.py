"""The ledger's partitions, one a month."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from headrace.database import LONG_PATIENCE_SECONDS, Database, execute

_MONTHS_AHEAD = 2
_NAME = re.compile(r"usage_(\d{4}_\d{2}|other)")


def is_partition(table: str) -> bool:
    """Tell whether a table is one of the ledger's partitions, which no model names."""
    return _NAME.fullmatch(table) is not None


def _first_of_month(months: int) -> datetime:
    """Return the first moment of a month in UTC, counted from the year 0."""
    return datetime(months // 12, months % 12 + 1, 1, tzinfo=UTC)


async def ensure_partitions(database: Database, *, now: datetime) -> None:
    """Make the partitions of this month and the next two, where they are not there.

    Rows that came before their month's partition are in `usage_other`, and are moved.

    Raises:
        sqlalchemy.exc.DBAPIError: Postgres is away.
    """
    this = now.year * 12 + now.month - 1
    for months in range(this, this + 1 + _MONTHS_AHEAD):
        start, end = _first_of_month(months), _first_of_month(months + 1)
        await _ensure(database, f"usage_{start:%Y_%m}", start.isoformat(), end.isoformat())


async def _ensure(database: Database, name: str, start: str, end: str) -> None:
    if (await execute(database.relaxed, "SELECT to_regclass(%(name)s) IS NOT NULL", {"name": name}))[0][0]:
        return
    async with database.durable.transaction("READ COMMITTED") as transaction:
        for statement in (
            # Whoever adds rows meanwhile waits before the ledger, and then finds the partition.
            "LOCK TABLE ONLY usage IN SHARE ROW EXCLUSIVE MODE",
            f"CREATE TABLE {name} (LIKE usage INCLUDING ALL)",
            (
                f"WITH moved AS (DELETE FROM usage_other WHERE created_at >= '{start}' AND created_at < '{end}' "
                f"RETURNING *) INSERT INTO {name} SELECT * FROM moved"
            ),
            f"ALTER TABLE usage ATTACH PARTITION {name} FOR VALUES FROM ('{start}') TO ('{end}')",
        ):
            await transaction.execute(statement, None, patience_seconds=LONG_PATIENCE_SECONDS)
