"""Roll-ups rebuilt from the ledger: new tables are filled day by day, and then take the place of the present ones.

The new tables get the rows of transactions before an edge, and have a mark of their own. Questions and folds use the
present tables meanwhile. Each day is one transaction, which also notes that the day is done, so an interrupted rebuild
resumes. Then the new tables get the present cells of months whose partition was detached from the ledger, and their
keys. Folds add the rows since the edge, and a short transaction swaps the tables. The mark never goes back, because a
question reads it a moment before the roll-ups.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any

from sqlalchemy.exc import DBAPIError

from headrace.stores.connections import (
    ENDLESS_PATIENCE_SECONDS,
    LONG_PATIENCE_SECONDS,
    PATIENCE_SECONDS,
    Connections,
    Row,
)
from headrace.stores.database import Database, execute
from headrace.stores.failures import is_locked
from headrace.usage import cells

log = logging.getLogger(__name__)

# The number of the advisory lock, which nothing else in the database takes.
_LOCK = 0x726F6C6C
_ROLLUPS, _LATENCIES = "usage_rollups_next", "usage_latencies_next"
_MARK = "usage_mark_next"
# The days to add. Each has the number of its rows once it is done.
_DAYS = "usage_days_next"
_TABLES = (_ROLLUPS, _LATENCIES, _MARK, _DAYS)
# Days that are added at the same time.
_DAYS_AT_ONCE = 2
# Memory of Postgres for each step of adding up a day. A step that needs more uses the disk.
_MEMORY = "64MB"
# Rows that one fold adds at most, and rows that are left for the swap itself: a few milliseconds.
_MOST_AT_ONCE = 20_000
_LAST_ROWS = 500
# Seconds before the next try of a swap, and the next look whether another process has ended its rebuild.
_RETRY_SECONDS = 1.0
# Questions and folds may wait for as long, each time that the roll-ups are found in use.
_LOCK_TIMEOUT = "200ms"


def _present(table: str) -> str:
    """Return the table whose place a new one takes."""
    return table.removesuffix("_next")


def _foreign_key(table: str) -> str:
    return f"fk_{_present(table)}_account_id"


def is_new_rollup(table: str) -> bool:
    """Return whether a table is one of those that a rebuild fills, which no model names."""
    return table in _TABLES


async def rebuild_rollups(database: Database, *, metadata_keys: Sequence[str]) -> int:
    """Rebuild every roll-up from the ledger, or finish an interrupted rebuild. Returns the ledger's rows.

    Months without rows in the ledger, as their partition was detached, keep their roll-ups. It takes about 15 µs a row,
    and as much room on the disk as the roll-ups have.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: Postgres is unavailable, or a view of an operator depends on the roll-ups.
    """
    keys = sorted(metadata_keys)
    async with _alone(database):
        await _begin(database, keys)
        await _add_days(database, keys)
        await _finish(database)
        [(rows,)] = await execute(database.relaxed, f"SELECT coalesce(sum(rows), 0) FROM {_DAYS}")
        await _swap(database, keys)
    return int(rows)


@contextlib.asynccontextmanager
async def _alone(database: Database) -> AsyncIterator[None]:
    """Wait until no other process rebuilds, and keep others waiting meanwhile."""
    take = f"SELECT pg_try_advisory_lock({_LOCK})"
    async with database.durable.session() as session:
        [(taken,)] = await session.execute(take, None, patience_seconds=PATIENCE_SECONDS)
        while not taken:
            await asyncio.sleep(_RETRY_SECONDS)
            [(taken,)] = await session.execute(take, None, patience_seconds=PATIENCE_SECONDS)
        yield


_OLDEST = "pg_snapshot_xmin(pg_current_snapshot())::text::bigint"
_NEXT = "pg_snapshot_xmax(pg_current_snapshot())::text::bigint"
RESTORED = (
    f"(EXISTS (SELECT FROM usage_mark WHERE transaction > {_OLDEST})"
    f" OR EXISTS (SELECT FROM usage WHERE transaction >= {_NEXT}))"
)
"""The condition that the database was restored into a cluster with fewer transactions, as there are future ones."""

_CAN_RESUME = f"""
SELECT metadata_keys = %(keys)s::text[] AND transaction <= {_OLDEST} AND NOT {RESTORED} FROM {_MARK}
"""
_SETTLE_RESTORED = f"UPDATE usage SET transaction = 0 WHERE transaction >= {_NEXT}"
# Rows before the oldest open transaction no longer change, so the statements of all days see the same ones.
_FIRST_MARK = f"INSERT INTO {_MARK} (transaction, metadata_keys) VALUES ({_OLDEST}, %(keys)s::text[])"
_FIND_DAYS = f"""
CREATE TABLE {_DAYS} AS SELECT DISTINCT {cells.start_of("day", "created_at")} AS day, NULL::bigint AS rows
FROM usage, {_MARK} AS mark WHERE usage.transaction < mark.transaction
"""


async def _begin(database: Database, keys: Sequence[str]) -> None:
    """Make the new tables, unless there are some to go on with."""
    async with database.durable.transaction("READ COMMITTED") as transaction:
        [(exists,)] = await run(transaction, f"SELECT to_regclass('{_MARK}') IS NOT NULL")
        if exists and (await run(transaction, _CAN_RESUME, {"keys": keys}))[0][0]:
            return
        await run(transaction, f"DROP TABLE IF EXISTS {', '.join(_TABLES)}")
        await run(transaction, _SETTLE_RESTORED)
        for table in (_ROLLUPS, _LATENCIES, _MARK):
            create = f"CREATE TABLE {table} (LIKE {_present(table)} INCLUDING ALL EXCLUDING INDEXES)"
            await run(transaction, create)
        await run(transaction, _FIRST_MARK, {"keys": keys})
        await run(transaction, _FIND_DAYS)


# The accounts let Postgres find a day by its index.
_ADD_DAY = f"""
WITH fresh AS (
    SELECT usage.* FROM usage
    WHERE account_id = ANY(ARRAY(SELECT id FROM accounts)) AND transaction < %(edge)s
          AND created_at >= %(day)s AND created_at < %(day)s + interval '24 hours'
), {cells.HOURS},
added AS ({cells.insert(_ROLLUPS, ["day"])}),
timed AS ({cells.insert_times(_LATENCIES, ["day"])})
UPDATE {_DAYS} SET rows = (SELECT count(*) FROM facts) WHERE day = %(day)s
"""
# Each plan is made for its day.
_SET = f"SELECT set_config('work_mem', '{_MEMORY}', true), set_config('plan_cache_mode', 'force_custom_plan', true)"
_NEXT_DAY = f"""
SELECT day, transaction AS edge FROM {_DAYS} AS days, {_MARK}
WHERE rows IS NULL ORDER BY day LIMIT 1 FOR UPDATE OF days SKIP LOCKED
"""


async def _add_days(database: Database, keys: Sequence[str]) -> None:
    """Add every day to the new tables, some at the same time."""

    async def add_some() -> None:
        while await _add_day(database, keys):
            pass

    while True:
        await asyncio.gather(*(add_some() for _ in range(_DAYS_AT_ONCE)))
        if not await execute(database.relaxed, f"SELECT FROM {_DAYS} WHERE rows IS NULL LIMIT 1"):
            return
        await asyncio.sleep(_RETRY_SECONDS)  # Postgres is still adding a day for a process that died


async def _add_day(database: Database, keys: Sequence[str]) -> bool:
    """Add a day to the new tables, or return False if no day is left to take."""
    async with database.relaxed.transaction("READ COMMITTED") as transaction:
        taken = await run(transaction, _NEXT_DAY)
        if taken:
            await run(transaction, _SET)
            await run(transaction, _ADD_DAY, {**taken[0]._asdict(), "metadata_keys": keys})
        return bool(taken)


_HAS_KEY = f"SELECT FROM pg_constraint WHERE conrelid = '{_ROLLUPS}'::regclass AND contype = 'p'"
_KEY = "view, grain, account_id, start, digest"
_FINISH = (
    f"INSERT INTO {_ROLLUPS} ({cells.CELL}) {cells.months(_ROLLUPS)}",
    f"INSERT INTO {_LATENCIES} ({cells.TIMED_CELL}) {cells.timed_months(_LATENCIES)}",
    cells.keep_detached(_ROLLUPS, _present(_ROLLUPS), cells.CELL),
    cells.keep_detached(_LATENCIES, _present(_LATENCIES), cells.TIMED_CELL),
    f"ALTER TABLE {_ROLLUPS} ADD CONSTRAINT pk_{_ROLLUPS} PRIMARY KEY ({_KEY})",
    f"ALTER TABLE {_LATENCIES} ADD CONSTRAINT pk_{_LATENCIES} PRIMARY KEY ({_KEY}, metric, step)",
    # The check of all rows takes longer, and does not lock the accounts.
    *(
        f"ALTER TABLE {table} ADD CONSTRAINT {_foreign_key(table)} "
        "FOREIGN KEY (account_id) REFERENCES accounts (id) NOT VALID"
        for table in (_ROLLUPS, _LATENCIES)
    ),
)


async def _finish(database: Database) -> None:
    """Add the cells of months, and of months that are not in the ledger, and give the new tables their keys."""
    async with database.relaxed.transaction("READ COMMITTED") as transaction:
        if not await run(transaction, _HAS_KEY):
            await run(transaction, _SET)
            for statement in _FINISH:
                await run(transaction, statement)
    for table in (_ROLLUPS, _LATENCIES):
        validate = f"ALTER TABLE {table} VALIDATE CONSTRAINT {_foreign_key(table)}"
        for statement in (validate, f"ANALYZE {table}"):
            await execute(database.relaxed, statement, patience_seconds=ENDLESS_PATIENCE_SECONDS)


_FOLD = cells.fold(_ROLLUPS, _LATENCIES, _MARK, most=_MOST_AT_ONCE)
_FOLD_REST = cells.fold(_ROLLUPS, _LATENCIES, _MARK, most=None)
# In the order in which folds and questions lock them: the mark before the roll-ups, and those before the latencies.
_LOCKS = (
    f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'",
    "LOCK TABLE usage IN ACCESS SHARE MODE",
    "LOCK TABLE usage_mark IN EXCLUSIVE MODE",
    "LOCK TABLE usage_rollups, usage_latencies IN ACCESS EXCLUSIVE MODE",
)
# Roles that may use the present tables may use the new ones.
_GRANTS = """
SELECT 'GRANT ' || privilege_type || ' ON ' || relname || '_next TO '
       || CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END
FROM pg_class CROSS JOIN aclexplode(relacl)
WHERE pg_class.oid IN ('usage_rollups'::regclass, 'usage_latencies'::regclass) AND grantee <> relowner
"""
_MOVE_MARK = f"""
INSERT INTO usage_mark (transaction, metadata_keys) SELECT transaction, metadata_keys FROM {_MARK}
ON CONFLICT (single) DO UPDATE SET transaction = excluded.transaction, metadata_keys = excluded.metadata_keys
"""
_RENAME = (
    "DROP TABLE usage_rollups, usage_latencies",
    *(f"ALTER TABLE {table} RENAME TO {_present(table)}" for table in (_ROLLUPS, _LATENCIES)),
    *(f"ALTER INDEX pk_{table} RENAME TO pk_{_present(table)}" for table in (_ROLLUPS, _LATENCIES)),
    f"DROP TABLE {_MARK}, {_DAYS}",
)


async def _swap(database: Database, keys: Sequence[str]) -> None:
    """Add the rows since the edge, and put the new tables in the place of the present ones."""
    parameters = {"metadata_keys": keys}
    while True:
        [(rows,)] = await execute(database.relaxed, _FOLD, parameters, patience_seconds=LONG_PATIENCE_SECONDS)
        if rows > _LAST_ROWS:
            continue
        try:
            async with database.durable.transaction("READ COMMITTED") as transaction:
                await _put_in_place(transaction, parameters)
                return
        except DBAPIError as error:
            if not is_locked(error):
                raise
        await asyncio.sleep(_RETRY_SECONDS)


async def _put_in_place(transaction: Connections, parameters: dict[str, Any]) -> None:
    """Swap the tables. The new ones then have all rows that the present ones have."""
    for statement in _LOCKS:
        await run(transaction, statement)
    await run(transaction, _FOLD_REST, parameters)
    grants = [grant for (grant,) in await run(transaction, _GRANTS)]
    for statement in (*grants, _MOVE_MARK, *_RENAME):
        await run(transaction, statement)


async def run(transaction: Connections, statement: str, parameters: dict[str, Any] | None = None) -> Sequence[Row]:
    """Run a statement of a transaction, however long it takes."""
    return await transaction.execute(statement, parameters, patience_seconds=ENDLESS_PATIENCE_SECONDS)
