"""Roll-ups: sums of the ledger by hour, day and month, kept up to date as it grows.

Each row has the number of the transaction that wrote it. A fold adds the rows between the mark and the oldest open
transaction, and moves the mark there, in one statement. So every row is added once, however late its transaction
commits and whichever process fails. `headrace.usage.queries` reads rows past the mark from the ledger itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from headrace.stores.connections import LONG_PATIENCE_SECONDS, Row
from headrace.stores.database import Database, execute
from headrace.stores.plain import Prepared
from headrace.usage import cells
from headrace.usage.rebuild import RESTORED, rebuild_rollups, run

# Rows that one fold adds at most, so that it stays short after a long pause.
_MOST_AT_ONCE = 20_000

# To plan it takes longer than to fold some rows.
_FOLD = Prepared(cells.fold("usage_rollups", "usage_latencies", "usage_mark", most=_MOST_AT_ONCE))
# Postgres reads no whole table for a prepared statement. Any other one reads all of the ledger until Postgres has
# statistics of it.
_STATE = Prepared(f"SELECT metadata_keys, {RESTORED} AS restored FROM usage_mark")


async def fold_usage(database: Database, *, metadata_keys: Sequence[str]) -> int:
    """Add rows of the ledger since the last fold, up to 20,000. Returns how many.

    Rebuilds the roll-ups if `metadata_keys` has changed, or if the database was restored into a cluster with fewer
    transactions.
    """
    state = await execute(database.relaxed, _STATE, {})
    if not state or state[0].metadata_keys != sorted(metadata_keys) or state[0].restored:
        return await rebuild_rollups(database, metadata_keys=metadata_keys)
    parameters = {"metadata_keys": sorted(metadata_keys)}
    rows = await execute(database.durable, _FOLD, parameters, patience_seconds=LONG_PATIENCE_SECONDS)
    return int(rows[0][0]) if rows else 0


_FRESH_OF_MONTH = (
    f"fresh AS (SELECT * FROM usage WHERE transaction < %(edge)s AND {cells.in_month('created_at', '%(month)s')})"
)
_ADD_MONTH = (
    f"WITH {_FRESH_OF_MONTH}, {cells.HOURS}, {cells.add('usage_rollups', 'usage_latencies')} SELECT count(*) FROM fresh"
)


_SHORT = """
WITH ledger AS (
    SELECT date_trunc('month', created_at, 'UTC') AS month, count(*) FILTER (WHERE kind = 'counted') AS counted,
           count(*) FILTER (WHERE kind = 'discarded') AS discarded,
           coalesce(sum(cost) FILTER (WHERE kind <> 'discarded'), 0) AS cost
    FROM usage, usage_mark WHERE usage.transaction < usage_mark.transaction GROUP BY 1
), kept AS (
    SELECT start AS month, sum(requests) AS counted, sum(discarded_attempts) AS discarded, sum(cost) AS cost
    FROM usage_rollups WHERE view = 'total' AND grain = 'month' GROUP BY 1
)
SELECT month FROM ledger LEFT JOIN kept USING (month)
WHERE ledger.counted > coalesce(kept.counted, 0) OR ledger.discarded > coalesce(kept.discarded, 0)
   OR (ledger.counted, ledger.discarded) = (kept.counted, kept.discarded) AND ledger.cost <> kept.cost
ORDER BY 1
"""


async def repair_short_months(database: Database) -> Sequence[datetime]:
    """Rebuild the sums of each month that has more rows in the ledger than its sums count. Returns those months.

    A month whose partition was removed keeps its sums. It takes about 1 µs a row of the ledger, and 0.1 ms a row of a
    rebuilt month.
    """
    async with database.relaxed.transaction("READ COMMITTED") as transaction:
        months = [row.month for row in await run(transaction, _SHORT)]
    for month in months:
        await _rebuild_month(database, month)
    return months


async def _rebuild_month(database: Database, month: datetime) -> None:
    async with database.durable.transaction("READ COMMITTED") as transaction:
        await run(transaction, "LOCK TABLE usage_mark IN EXCLUSIVE MODE")
        [(edge, keys)] = await run(transaction, "SELECT transaction, metadata_keys FROM usage_mark")
        parameters = {"month": month, "edge": edge, "metadata_keys": keys}
        for table in ("usage_rollups", "usage_latencies"):
            await run(transaction, f"DELETE FROM {table} WHERE {cells.in_month('start', '%(month)s')}", parameters)
        await run(transaction, _ADD_MONTH, parameters)


def _differences(kept: str, made: str) -> str:
    return f"(SELECT count(*) FROM (({kept} EXCEPT ALL {made}) UNION ALL ({made} EXCEPT ALL {kept})) AS differing)"


_IN_LEDGER = f"{cells.start_of('month', 'start')} <> ALL(ARRAY(SELECT month FROM detached))"
_AMOUNT_DIFFERENCES = _differences(f"SELECT {cells.CELL} FROM usage_rollups WHERE {_IN_LEDGER}", cells.amounts())
_TIME_DIFFERENCES = _differences(f"SELECT {cells.TIMED_CELL} FROM usage_latencies WHERE {_IN_LEDGER}", cells.times())
_VERIFY = f"""
WITH state AS (
    SELECT transaction FROM usage_mark
), fresh AS (
    SELECT usage.* FROM usage, state WHERE usage.transaction < state.transaction
), {cells.HOURS}, {cells.DETACHED}
SELECT (SELECT count(*) FROM fresh) AS rows, (SELECT count(*) FROM usage_rollups) AS cells,
       {_AMOUNT_DIFFERENCES} + {_TIME_DIFFERENCES} AS differences,
       (SELECT count(*) FROM (SELECT job_id FROM usage WHERE kind = 'counted' GROUP BY job_id HAVING count(*) > 1)
                             AS twice) AS counted_twice,
       ARRAY(SELECT to_char(month AT TIME ZONE 'UTC', 'YYYY-MM') FROM detached ORDER BY month) AS detached_months
"""


async def verify_rollups(database: Database) -> Row:
    """Sum up the ledger and compare with the roll-ups.

    Returns the numbers of `rows` of the ledger, of `cells`, of `differences` (cells that are wrong, missing or
    surplus), and of jobs `counted_twice` in the ledger; and the `detached_months`, such as `2026-11`: the ledger has no
    row of them, and their cells are not compared. It takes about 20 µs a row.
    """
    async with database.relaxed.transaction("REPEATABLE READ") as transaction:
        # The lock comes before the snapshot, which would see no rows in tables that a rebuild swaps in later.
        await run(transaction, "LOCK TABLE usage_rollups, usage_latencies IN ACCESS SHARE MODE")
        state = await run(transaction, "SELECT metadata_keys FROM usage_mark")
        keys = state[0][0] if state else []
        return (await run(transaction, _VERIFY, {"metadata_keys": keys}))[0]


__all__ = ["fold_usage", "rebuild_rollups", "repair_short_months", "verify_rollups"]
