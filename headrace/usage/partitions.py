"""The ledger's partitions, one a month.

Rows without a partition of their month are in `usage_other`. They are copied to a partition while every reader still
sees them in `usage_other`, and then one short transaction puts the new partitions in its place. That transaction locks
the ledger before anything else. A statement that waits for it has not looked up the partitions yet: one that has looked
them up, and then waits for `usage_other`, would read neither the old nor the new table.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy.exc import DBAPIError

from headrace.stores.connections import LONG_PATIENCE_SECONDS, Row
from headrace.stores.database import Database, execute
from headrace.stores.failures import is_locked

log = logging.getLogger(__name__)

# Months after this one that have partitions.
_MONTHS_AHEAD = 2
_NAME = re.compile(r"usage_(\d{4}_\d{2}|other(_next)?)")
# What becomes `usage_other`: rows of months that get no partition.
_NEXT = "usage_other_next"
# The CHECK of a table that is being filled, and is no partition yet.
_FILLING = "being_filled"
# Rows that one statement copies.
_STEP = 5_000
# Rows that are left to copy while the ledger is locked: a few milliseconds.
_LAST_STEP = 500
# Seconds between two statements that copy, and before the next try of one that found the ledger in use.
_REST_SECONDS = 0.05
_RETRY_SECONDS = 1.0
# Job ends may wait for as long, each time that the ledger is found in use.
_LOCK_TIMEOUT = "200ms"


def is_partition(table: str) -> bool:
    """Return whether a table is one of the ledger's partitions, which no model names."""
    return _NAME.fullmatch(table) is not None


def _first_of_month(months: int) -> datetime:
    """Return the first moment of a month in UTC, counted from the year 0."""
    return datetime(months // 12, months % 12 + 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class _Month:
    """A month that has no partition yet."""

    number: int
    """Counted from the year 0."""

    @property
    def name(self) -> str:
        return f"usage_{_first_of_month(self.number):%Y_%m}"

    @property
    def start(self) -> str:
        return f"'{_first_of_month(self.number).isoformat()}'"

    @property
    def end(self) -> str:
        return f"'{_first_of_month(self.number + 1).isoformat()}'"

    @property
    def inside(self) -> str:
        """The condition for a row to be of this month."""
        return f"created_at >= {self.start} AND created_at < {self.end}"


async def ensure_partitions(database: Database, *, now: datetime) -> None:
    """Make the partitions of this month and the next two, where there are none.

    If one is made, so is that of each month with rows in `usage_other`, which is empty afterwards. Job ends never wait
    longer than a moment, however many rows there are.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: Postgres is unavailable. The next call begins anew.
    """
    this = now.year * 12 + now.month - 1
    made = {row.name for row in await execute(database.relaxed, _MADE)}
    wanted = {_Month(number) for number in range(this, this + 1 + _MONTHS_AHEAD)}
    if all(month.name in made for month in wanted):
        return
    found = await execute(database.relaxed, _MONTHS, patience_seconds=LONG_PATIENCE_SECONDS)
    wanted |= {_Month(row.number) for row in found}
    months = sorted((month for month in wanted if month.name not in made), key=lambda month: month.number)
    rows = await _Filling(database, months).run()
    log.info("made %s of the ledger, with %d rows", ", ".join(month.name for month in months), rows)


# A month that was taken out of the ledger has its table still, and that is left alone.
_MADE = f"""
SELECT relname AS name FROM pg_class WHERE starts_with(relname, 'usage_') AND relkind = 'r' AND pg_table_is_visible(oid)
    AND NOT EXISTS (SELECT FROM pg_constraint WHERE conrelid = pg_class.oid AND conname = '{_FILLING}')
"""
_MONTHS = """
SELECT DISTINCT (extract(year FROM created_at AT TIME ZONE 'UTC') * 12
                 + extract(month FROM created_at AT TIME ZONE 'UTC') - 1)::int AS number FROM usage_other
"""
# Transactions before `oldest` have ended. Rows of a database from which this one was restored may have later ones than
# `newest`, until the next fold gives them others.
_NOW = """
SELECT pg_snapshot_xmin(now)::text::bigint AS oldest, pg_snapshot_xmax(now)::text::bigint AS newest,
       EXISTS (SELECT FROM usage_other WHERE transaction >= pg_snapshot_xmax(now)::text::bigint) AS restored
FROM pg_current_snapshot() AS now
"""
_REST = "SELECT count(*) FROM (SELECT FROM usage_other WHERE transaction BETWEEN %(start)s AND %(end)s LIMIT %(limit)s)"
_KEY = "job_id, attempt, created_at, kind"
# A scheduler that was frozen may find a partition, with its rows, where no table was before. The lock comes first, as
# another scheduler may be putting the table in place.
_DROP_UNFINISHED = f"""
DO $$
BEGIN
    IF to_regclass('{{name}}') IS NOT NULL THEN
        LOCK TABLE {{name}} IN ACCESS EXCLUSIVE MODE;
        IF EXISTS (SELECT FROM pg_constraint WHERE conrelid = '{{name}}'::regclass AND conname = '{_FILLING}') THEN
            DROP TABLE {{name}};
        END IF;
    END IF;
END $$"""


class _Filling:
    """Makes and fills the partitions of some months, and puts them in the place of `usage_other`."""

    def __init__(self, database: Database, months: Sequence[_Month]) -> None:
        self._database = database
        self._months = months
        others = " AND ".join(f"NOT ({month.inside})" for month in months)
        self._tables = {month.name: month.inside for month in months} | {_NEXT: others}
        """The condition for a row to go to each."""

    async def run(self) -> int:
        """Return how many rows were copied before the partitions were put in place."""
        oids = {name: await self._create(name) for name in self._tables}
        rows, done = 0, -1
        while True:
            now = (await execute(self._database.relaxed, _NOW))[0]
            if not now.restored:
                rows += await self._copy(done, now.oldest)
                done = now.oldest
                if await self._swap(oids, now):
                    return rows
            await asyncio.sleep(_RETRY_SECONDS)

    async def _create(self, name: str) -> int:
        """Make a table that is no partition yet, in place of one from a scheduler that died, and return its oid.

        Its constraints are checked as rows come in, so Postgres need not check them when it becomes a partition.
        """
        filling = f"CONSTRAINT {_FILLING} CHECK ({self._tables[name]})"
        create = f"CREATE TABLE {name} (LIKE usage INCLUDING ALL, {filling})"
        for statement in (_DROP_UNFINISHED.format(name=name), create):
            await execute(self._database.durable, statement)
        return int((await execute(self._database.relaxed, f"SELECT '{name}'::regclass::oid::bigint"))[0][0])

    async def _copy(self, start: int, end: int) -> int:
        """Copy the rows of transactions from `start` to just before `end`, a page at a time in the order of keys."""
        copies = ", ".join(
            f"{name}_copied AS (INSERT INTO {name} SELECT * FROM page WHERE {inside} ON CONFLICT DO NOTHING)"
            for name, inside in self._tables.items()
        )
        statement = f"""
WITH page AS MATERIALIZED (
    SELECT * FROM usage_other
    WHERE transaction >= %(start)s AND transaction < %(end)s
          AND ({_KEY}) > (%(job_id)s, %(attempt)s, %(created_at)s, %(kind)s)
    ORDER BY {_KEY} LIMIT {_STEP}
), {copies}
SELECT {_KEY}, (SELECT count(*) FROM page) AS rows FROM page
ORDER BY job_id DESC, attempt DESC, created_at DESC, kind DESC LIMIT 1
"""
        last: dict[str, Any] = {"job_id": "", "attempt": 0, "created_at": datetime(1, 1, 1, tzinfo=UTC), "kind": ""}
        window = {"start": start, "end": end}
        copied = 0
        while page := await execute(
            self._database.relaxed, statement, window | last, patience_seconds=LONG_PATIENCE_SECONDS
        ):
            last = page[0]._asdict()
            rows = last.pop("rows")
            copied += rows
            if rows < _STEP:
                break
            await asyncio.sleep(_REST_SECONDS)
        return copied

    async def _swap(self, oids: Mapping[str, int], now: Row) -> bool:
        """Put the partitions in the place of `usage_other`, or return False if that has to wait."""
        window = {"start": now.oldest, "end": now.newest, "limit": _LAST_STEP + 1}
        if (await execute(self._database.relaxed, _REST, window))[0][0] > _LAST_STEP:
            return False  # rows have gathered behind a transaction that has been under way for long
        attached = "".join(
            f"ALTER TABLE usage ATTACH PARTITION {month.name} FOR VALUES FROM ({month.start}) TO ({month.end});"
            for month in self._months
        )
        # A table with another oid was made anew by another scheduler, which copies to it as well.
        same = " AND ".join(f"'{name}'::regclass::oid = {oid}" for name, oid in oids.items())
        checked = "".join(f"ALTER TABLE {name} DROP CONSTRAINT {_FILLING};" for name in self._tables)
        statement = f"""
DO $$
BEGIN
    PERFORM set_config('lock_timeout', '{_LOCK_TIMEOUT}', true);
    LOCK TABLE ONLY usage IN ACCESS EXCLUSIVE MODE;
    LOCK TABLE usage_mark IN EXCLUSIVE MODE;
    ASSERT {same}, 'another scheduler makes these partitions as well';
    ALTER TABLE usage DETACH PARTITION usage_other;
    {attached}
    ALTER TABLE usage ATTACH PARTITION {_NEXT} DEFAULT;
    {checked}
    INSERT INTO usage SELECT * FROM usage_other
    WHERE transaction BETWEEN {now.oldest} AND pg_snapshot_xmax(pg_current_snapshot())::text::bigint
    ON CONFLICT DO NOTHING;
    DROP TABLE usage_other;
    ALTER TABLE {_NEXT} RENAME TO usage_other;
END $$"""
        try:
            await execute(self._database.durable, statement, patience_seconds=LONG_PATIENCE_SECONDS)
        except DBAPIError as error:
            if not is_locked(error):
                raise
            return False
        return True
