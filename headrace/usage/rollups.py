"""Roll-ups: sums of the ledger by hour, day and month, kept up to date as it grows.

Each row has the number of the transaction that wrote it. A fold adds the rows between the mark and the oldest open
transaction, and moves the mark there, in one statement. So every row is added once, however late its transaction
commits and whichever process fails. `headrace.usage.queries` reads rows past the mark from the ledger itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from headrace.stores.connections import ENDLESS_PATIENCE_SECONDS, LONG_PATIENCE_SECONDS, Connections, Row
from headrace.stores.database import Database, execute
from headrace.usage.rows import AMOUNTS_OF_ROW, STEPS_OF_ROW, has_metric, total
from headrace.usage.tables import DIMENSIONS
from headrace.usage.views import LATENCY_VIEWS, VIEWS

# Rows that one fold adds at most, so that it stays short after a long pause.
_MOST_AT_ONCE = 20_000

_COLUMNS = [name for name in DIMENSIONS if not name.startswith("metadata")]
_SETS = [view for view in VIEWS if view != "metadata"]
_DIMENSIONS = ", ".join(DIMENSIONS)
_AMOUNTS = ", ".join(AMOUNTS_OF_ROW)
_DIGEST = f"md5(row({_DIMENSIONS})::text)::uuid"


def _grouping(views: Sequence[str], *others: str) -> str:
    """Return a GROUP BY that makes a cell for each combination of these views' dimensions."""
    sets = (", ".join(["account_id", "hour", *others, *VIEWS[view]]) for view in views)
    return "GROUP BY GROUPING SETS (" + ", ".join(f"({columns})" for columns in sets) + ")"


def _view(views: Sequence[str]) -> str:
    """Return the columns `view`, the cell's view, and the dimensions, for such a grouping."""
    names = [name for name in DIMENSIONS if any(name in VIEWS[view] for view in views)]
    bits = {
        sum(1 << place for place, name in enumerate(reversed(names)) if name not in VIEWS[view]): view for view in views
    }
    cases = " ".join(f"WHEN {mask} THEN '{view}'" for mask, view in bits.items())
    columns = ", ".join(name if name in names else f"NULL AS {name}" for name in DIMENSIONS)
    return f"CASE grouping({', '.join(names)}) {cases} END AS view, {columns}"


_HOUR = "date_trunc('hour', created_at, 'UTC') AS hour"
_SUMS = ", ".join(total(name, name) for name in AMOUNTS_OF_ROW)
_FACTS = f"""
facts AS MATERIALIZED (
    SELECT account_id, {_HOUR}, {", ".join(_COLUMNS)}, metadata,
           {", ".join(f"{expression} AS {name}" for name, expression in AMOUNTS_OF_ROW.items())},
           {", ".join(f"CASE WHEN {has_metric(name)} THEN {step} END AS {name}" for name, step in STEPS_OF_ROW.items())}
    FROM fresh
), hours AS MATERIALIZED (
    SELECT {_view(_SETS)}, account_id, hour, {_SUMS} FROM facts {_grouping(_SETS)}
    UNION ALL
    SELECT 'metadata', {", ".join("NULL" for _ in _COLUMNS)}, key, metadata ->> key, account_id, hour, {_SUMS}
    FROM facts CROSS JOIN unnest(%(metadata_keys)s::text[]) AS key GROUP BY account_id, hour, key, metadata ->> key
), times AS MATERIALIZED (
    SELECT {_view(LATENCY_VIEWS)}, account_id, hour, metric, step, count(*) AS requests
    FROM facts CROSS JOIN LATERAL (VALUES {", ".join(f"('{name}', facts.{name})" for name in STEPS_OF_ROW)})
         AS timed (metric, step)
    WHERE step IS NOT NULL {_grouping(LATENCY_VIEWS, "metric", "step")}
)"""


def _grains(source: str, keys: str, sums: str, kept: str) -> str:
    """Return a query that makes cells of an hour, a day and a month from cells of an hour."""
    longer = (
        f"SELECT view, '{grain}', account_id, date_trunc('{grain}', hour, 'UTC'), {keys}{_DIMENSIONS}, {sums} "
        f"FROM {source} GROUP BY view, account_id, date_trunc('{grain}', hour, 'UTC'), {keys}{_DIMENSIONS}"
        for grain in ("day", "month")
    )
    return " UNION ALL ".join(
        [f"SELECT view, 'hour' AS grain, account_id, hour AS start, {keys}{_DIMENSIONS}, {kept} FROM {source}", *longer]
    )


_CELLS = (
    f"SELECT view, grain, account_id, start, {_DIGEST}, {_DIMENSIONS}, {_AMOUNTS} "
    f"FROM ({_grains('hours', '', _SUMS, _AMOUNTS)}) AS cells"
)
_TIMED_CELLS = (
    f"SELECT view, grain, account_id, start, {_DIGEST}, metric, step, {_DIMENSIONS}, requests "
    f"FROM ({_grains('times', 'metric, step, ', 'sum(requests)::bigint', 'requests')}) AS cells"
)
_ADD = (
    f"INSERT INTO usage_rollups (view, grain, account_id, start, digest, {_DIMENSIONS}, {_AMOUNTS}) {_CELLS} "
    "ON CONFLICT (view, grain, account_id, start, digest) DO UPDATE SET "
    + ", ".join(f"{name} = usage_rollups.{name} + excluded.{name}" for name in AMOUNTS_OF_ROW)
)
_ADD_TIMES = (
    f"INSERT INTO usage_latencies (view, grain, account_id, start, digest, metric, step, {_DIMENSIONS}, requests) "
    f"{_TIMED_CELLS} ON CONFLICT (view, grain, account_id, start, digest, metric, step) "
    "DO UPDATE SET requests = usage_latencies.requests + excluded.requests"
)

# A fold that waited for the lock of the mark sees the new mark, but the rows and transactions from before it waited. It
# then finds no rows at or past the mark, and leaves the mark there.
_FOLD = f"""
WITH mark AS MATERIALIZED (
    SELECT transaction FROM usage_mark FOR UPDATE
), edge AS MATERIALIZED (
    SELECT least(pg_snapshot_xmin(pg_current_snapshot())::text::bigint, coalesce(
        (SELECT greatest(nth.transaction, mark.transaction + 1) FROM usage AS nth
         WHERE nth.transaction >= mark.transaction ORDER BY nth.transaction OFFSET {_MOST_AT_ONCE} LIMIT 1),
        {2**63 - 1})) AS transaction
    FROM mark
), fresh AS MATERIALIZED (
    SELECT usage.* FROM usage, mark, edge
    WHERE usage.transaction >= mark.transaction AND usage.transaction < edge.transaction
), {_FACTS},
added AS ({_ADD}),
timed AS ({_ADD_TIMES})
UPDATE usage_mark SET transaction = greatest(usage_mark.transaction, edge.transaction) FROM edge
RETURNING (SELECT count(*) FROM fresh)
"""
_STATE = """
SELECT transaction, metadata_keys,
       transaction > pg_snapshot_xmin(pg_current_snapshot())::text::bigint OR EXISTS (
           SELECT FROM usage WHERE transaction >= pg_snapshot_xmax(pg_current_snapshot())::text::bigint) AS restored
FROM usage_mark
"""


async def fold_usage(database: Database, *, metadata_keys: Sequence[str]) -> int:
    """Add rows of the ledger since the last fold, up to 20,000. Returns how many.

    Rebuilds the roll-ups if `metadata_keys` has changed, or if the database was restored into a cluster with fewer
    transactions.
    """
    state = await execute(database.relaxed, _STATE)
    if not state or state[0].metadata_keys != sorted(metadata_keys) or state[0].restored:
        return await rebuild_rollups(database, metadata_keys=metadata_keys)
    parameters = {"metadata_keys": sorted(metadata_keys)}
    rows = await execute(database.durable, _FOLD, parameters, patience_seconds=LONG_PATIENCE_SECONDS)
    return int(rows[0][0]) if rows else 0


# A row with the number of a future transaction comes from the database from which this one was restored.
_SETTLE_RESTORED = """
UPDATE usage SET transaction = 0 WHERE transaction >= pg_snapshot_xmax(pg_current_snapshot())::text::bigint
"""
_EDGE = """
INSERT INTO usage_mark (transaction, metadata_keys)
VALUES (pg_snapshot_xmin(pg_current_snapshot())::text::bigint, %(metadata_keys)s::text[])
ON CONFLICT (single) DO UPDATE SET transaction = excluded.transaction, metadata_keys = excluded.metadata_keys
RETURNING transaction
"""
_MONTHS = """
SELECT DISTINCT date_trunc('month', created_at, 'UTC') FROM usage WHERE transaction < %(edge)s ORDER BY 1
"""
# In UTC, whatever the session's time zone.
_IN_MONTH = (
    "{column} >= %(month)s AND {column} < (%(month)s AT TIME ZONE 'UTC' + interval '1 month') AT TIME ZONE 'UTC'"
)
_FRESH_OF_MONTH = (
    f"fresh AS (SELECT * FROM usage WHERE transaction < %(edge)s AND {_IN_MONTH.format(column='created_at')})"
)
_REBUILD = f"WITH {_FRESH_OF_MONTH}, {_FACTS}, added AS ({_ADD}), timed AS ({_ADD_TIMES}) SELECT count(*) FROM fresh"


async def rebuild_rollups(database: Database, *, metadata_keys: Sequence[str]) -> int:
    """Rebuild every roll-up from the ledger. Returns the ledger's rows. It takes about 0.1 ms a row."""
    async with database.durable.transaction("READ COMMITTED") as transaction:
        # The lock comes before the first look at the ledger, so that no other fold adds rows that this does not see.
        await _run(transaction, "LOCK TABLE usage_mark IN EXCLUSIVE MODE")
        await _run(transaction, _SETTLE_RESTORED)
        await _run(transaction, "DELETE FROM usage_rollups")
        await _run(transaction, "DELETE FROM usage_latencies")
        parameters: dict[str, Any] = {"metadata_keys": sorted(metadata_keys)}
        # Rows before the oldest open transaction no longer change, so all statements below see the same ones.
        [(parameters["edge"],)] = await _run(transaction, _EDGE, parameters)
        count = 0
        for (month,) in await _run(transaction, _MONTHS, parameters):
            [(rows,)] = await _run(transaction, _REBUILD, parameters | {"month": month})
            count += rows
        return count


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
        months = [row.month for row in await _run(transaction, _SHORT)]
    for month in months:
        await _rebuild_month(database, month)
    return months


async def _rebuild_month(database: Database, month: datetime) -> None:
    async with database.durable.transaction("READ COMMITTED") as transaction:
        await _run(transaction, "LOCK TABLE usage_mark IN EXCLUSIVE MODE")
        [(edge, keys)] = await _run(transaction, "SELECT transaction, metadata_keys FROM usage_mark")
        parameters = {"month": month, "edge": edge, "metadata_keys": keys}
        for table in ("usage_rollups", "usage_latencies"):
            await _run(transaction, f"DELETE FROM {table} WHERE {_IN_MONTH.format(column='start')}", parameters)
        await _run(transaction, _REBUILD, parameters)


async def _run(transaction: Connections, statement: str, parameters: dict[str, Any] | None = None) -> Sequence[Row]:
    return await transaction.execute(statement, parameters, patience_seconds=ENDLESS_PATIENCE_SECONDS)


def _differences(kept: str, cells: str) -> str:
    return f"(SELECT count(*) FROM (({kept} EXCEPT ALL {cells}) UNION ALL ({cells} EXCEPT ALL {kept})) AS differing)"


_KEPT = f"SELECT view, grain, account_id, start, digest, {_DIMENSIONS}, {_AMOUNTS} FROM usage_rollups"
_KEPT_TIMES = (
    f"SELECT view, grain, account_id, start, digest, metric, step, {_DIMENSIONS}, requests FROM usage_latencies"
)
_VERIFY = f"""
WITH state AS (
    SELECT transaction FROM usage_mark
), fresh AS (
    SELECT usage.* FROM usage, state WHERE usage.transaction < state.transaction
), {_FACTS}
SELECT (SELECT count(*) FROM fresh) AS rows, (SELECT count(*) FROM usage_rollups) AS cells,
       {_differences(_KEPT, _CELLS)} + {_differences(_KEPT_TIMES, _TIMED_CELLS)} AS differences,
       (SELECT count(*) FROM (SELECT job_id FROM usage WHERE kind = 'counted' GROUP BY job_id HAVING count(*) > 1)
                             AS twice) AS counted_twice
"""


async def verify_rollups(database: Database) -> Row:
    """Sum up the ledger and compare with the roll-ups.

    Returns the numbers of `rows` of the ledger, of `cells`, of `differences` (cells that are wrong, missing or
    surplus), and of jobs `counted_twice` in the ledger. It takes about 20 µs a row.
    """
    async with database.relaxed.transaction("REPEATABLE READ") as transaction:
        state = await _run(transaction, "SELECT metadata_keys FROM usage_mark")
        keys = state[0][0] if state else []
        return (await _run(transaction, _VERIFY, {"metadata_keys": keys}))[0]


__all__ = ["fold_usage", "rebuild_rollups", "repair_short_months", "verify_rollups"]
