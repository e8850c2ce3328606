"""The ledger's partitions, one a month."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from headrace.database import Database, execute

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

    Raises:
        sqlalchemy.exc.DBAPIError: Rows of such a month are elsewhere already, or Postgres is away.
    """
    this = now.year * 12 + now.month - 1
    for months in range(this, this + 1 + _MONTHS_AHEAD):
        start, end = _first_of_month(months), _first_of_month(months + 1)
        await execute(
            database.durable,
            f"CREATE TABLE IF NOT EXISTS usage_{start:%Y_%m} PARTITION OF usage "
            f"FOR VALUES FROM ('{start.isoformat()}') TO ('{end.isoformat()}')",
        )
