"""From rows of the ledger to cells of roll-ups, in SQL. A statement names its rows `fresh`, and adds what follows.

Rows are added up once for each of the few widest views. The narrower views are sums of the widest view's cells.
"""

from __future__ import annotations

from collections.abc import Sequence

from headrace.usage.rows import AMOUNTS_OF_ROW, STEPS_OF_ROW, SUMS, has_metric
from headrace.usage.tables import DIMENSIONS
from headrace.usage.views import LATENCY_VIEWS, VIEWS, Grain

LONGER_GRAINS: tuple[Grain, ...] = ("day", "month")
"""Those whose cells are sums of cells of an hour."""

_HOURS = {"hour": 1, "day": 24}
_COLUMNS = [name for name in DIMENSIONS if not name.startswith("metadata")]
_SETS = [view for view in VIEWS if view != "metadata"]
_WIDEST = "common"
_WIDE = [view for view in _SETS if not any(set(VIEWS[view]) < set(VIEWS[other]) for other in _SETS)]
_NARROW = [view for view in _SETS if view not in _WIDE]
_DIMENSIONS = ", ".join(DIMENSIONS)
_AMOUNTS = ", ".join(AMOUNTS_OF_ROW)
_DIGEST = f"md5(row({_DIMENSIONS})::text)::uuid"


def start_of(grain: Grain, at: str) -> str:
    """Return the SQL of when an hour, a day or a month of UTC began at some time."""
    if grain == "month":
        return f"date_trunc('month', {at}, 'UTC')"
    # It costs a third of `date_trunc`, which looks up the zone each time.
    return f"date_bin('{_HOURS[grain]} hours', {at}, '0001-01-01 00:00+00'::timestamptz)"


def in_month(at: str, month: str) -> str:
    """Return the condition for a time to be in the month of UTC that began at `month`, whatever the session's zone."""
    return f"{at} >= {month} AND {at} < ({month} AT TIME ZONE 'UTC' + interval '1 month') AT TIME ZONE 'UTC'"


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


HOURS = f"""
facts AS MATERIALIZED (
    SELECT account_id, {start_of("hour", "created_at")} AS hour, {", ".join(_COLUMNS)}, metadata,
           {", ".join(f"{expression} AS {name}" for name, expression in AMOUNTS_OF_ROW.items())},
           {", ".join(f"CASE WHEN {has_metric(name)} THEN {step} END AS {name}" for name, step in STEPS_OF_ROW.items())}
    FROM fresh
), wide AS MATERIALIZED (
    SELECT {_view(_WIDE)}, account_id, hour, {SUMS} FROM facts {_grouping(_WIDE)}
), hours AS MATERIALIZED (
    SELECT * FROM wide
    UNION ALL
    SELECT {_view(_NARROW)}, account_id, hour, {SUMS} FROM wide WHERE view = '{_WIDEST}' {_grouping(_NARROW)}
    UNION ALL
    SELECT 'metadata', {", ".join("NULL" for _ in _COLUMNS)}, key, metadata ->> key, account_id, hour, {SUMS}
    FROM facts CROSS JOIN unnest(%(metadata_keys)s::text[]) AS key GROUP BY account_id, hour, key, metadata ->> key
), times AS MATERIALIZED (
    SELECT {_view(LATENCY_VIEWS)}, account_id, hour, metric, step, count(*) AS requests
    FROM facts CROSS JOIN LATERAL (VALUES {", ".join(f"('{name}', facts.{name})" for name in STEPS_OF_ROW)})
         AS timed (metric, step)
    WHERE step IS NOT NULL {_grouping(LATENCY_VIEWS, "metric", "step")}
)"""
"""The cells of an hour: `hours` of amounts, and `times` of how long answers took."""


def _grains(source: str, keys: str, sums: str, kept: str, longer: Sequence[Grain]) -> str:
    """Return a query that makes cells of an hour and of longer grains from cells of an hour."""
    cells = (
        f"SELECT view, '{grain}', account_id, {start_of(grain, 'hour')}, {keys}{_DIMENSIONS}, {sums} "
        f"FROM {source} GROUP BY view, account_id, {start_of(grain, 'hour')}, {keys}{_DIMENSIONS}"
        for grain in longer
    )
    return " UNION ALL ".join(
        [f"SELECT view, 'hour' AS grain, account_id, hour AS start, {keys}{_DIMENSIONS}, {kept} FROM {source}", *cells]
    )


def amounts(longer: Sequence[Grain] = LONGER_GRAINS) -> str:
    """Return a query for cells of `usage_rollups`, of an hour and of longer grains, in the order of `CELL`."""
    cells = _grains("hours", "", SUMS, _AMOUNTS, longer)
    return f"SELECT view, grain, account_id, start, {_DIGEST}, {_DIMENSIONS}, {_AMOUNTS} FROM ({cells}) AS cells"


def times(longer: Sequence[Grain] = LONGER_GRAINS) -> str:
    """Return a query for cells of `usage_latencies`, of an hour and of longer grains, in the order of `TIMED_CELL`."""
    cells = _grains("times", "metric, step, ", "bigint_sum(requests)", "requests", longer)
    return (
        f"SELECT view, grain, account_id, start, {_DIGEST}, metric, step, {_DIMENSIONS}, requests "
        f"FROM ({cells}) AS cells"
    )


# The sub-select finds a month's first row by an index, however Postgres estimates the ledger.
DETACHED = f"""
detached AS MATERIALIZED (
    SELECT month FROM (
        SELECT DISTINCT start AS month FROM usage_rollups WHERE view = 'total' AND grain = 'month'
    ) AS months
    WHERE (SELECT true FROM usage WHERE account_id = ANY(ARRAY(SELECT id FROM accounts))
                  AND {in_month("created_at", "month")} LIMIT 1) IS NULL
)"""
"""The months that roll-ups have and the ledger has no row of, because their partition was detached."""

CELL = f"view, grain, account_id, start, digest, {_DIMENSIONS}, {_AMOUNTS}"
TIMED_CELL = f"view, grain, account_id, start, digest, metric, step, {_DIMENSIONS}, requests"


def months(table: str) -> str:
    """Return a query for cells of a month of `usage_rollups`, from cells of a day in a table."""
    return _months(table, "digest", SUMS)


def timed_months(table: str) -> str:
    """Return a query for cells of a month of `usage_latencies`, from cells of a day in a table."""
    return _months(table, "digest, metric, step", "bigint_sum(requests)")


def keep_detached(table: str, present: str, columns: str) -> str:
    """Return the statement that copies the cells of the months of `DETACHED` from the present table to a new one.

    It replaces those that the new table got before their partition was detached. The new table has no key yet.
    """
    inside = f"{start_of('month', 'start')} = month"
    return f"""
WITH {DETACHED}, replaced AS (DELETE FROM {table} USING detached WHERE {inside})
INSERT INTO {table} ({columns}) SELECT {columns} FROM {present}, detached WHERE {inside}
"""


def _months(table: str, keys: str, sums: str) -> str:
    month = start_of("month", "start")
    return (
        f"SELECT view, 'month', account_id, {month}, {keys}, {_DIMENSIONS}, {sums} FROM {table} "
        f"WHERE grain = 'day' GROUP BY view, account_id, {month}, {keys}, {_DIMENSIONS}"
    )


# Cells that a question reads together are then together in the table. To sort by one number is several times cheaper
# than to sort by these texts, and as good for that.
_ORDER = "ORDER BY hashtext(view || grain || account_id)"


def insert(table: str, longer: Sequence[Grain] = LONGER_GRAINS) -> str:
    """Return the INSERT of cells into a table like `usage_rollups`."""
    return f"INSERT INTO {table} ({CELL}) {amounts(longer)} {_ORDER}"


def insert_times(table: str, longer: Sequence[Grain] = LONGER_GRAINS) -> str:
    """Return the INSERT of cells into a table like `usage_latencies`."""
    return f"INSERT INTO {table} ({TIMED_CELL}) {times(longer)} {_ORDER}"


def add(table: str, timed_table: str) -> str:
    """Return the CTEs that add the cells of `HOURS` to two tables of roll-ups that have their keys."""
    sums = ", ".join(f"{name} = {table}.{name} + excluded.{name}" for name in AMOUNTS_OF_ROW)
    return f"""
added AS (
    {insert(table)} ON CONFLICT (view, grain, account_id, start, digest) DO UPDATE SET {sums}
), timed AS (
    {insert_times(timed_table)} ON CONFLICT (view, grain, account_id, start, digest, metric, step)
    DO UPDATE SET requests = {timed_table}.requests + excluded.requests
)"""


# The ledger is not joined with the mark: until Postgres has statistics of the mark's table, it expects a thousand rows.
#
# A fold that waited for the lock of the mark sees the new mark, but the rows and transactions from before it waited. It
# then finds no rows at or past the mark, and leaves the mark there.
def fold(table: str, timed_table: str, mark: str, *, most: int | None) -> str:
    """Return the statement that adds the rows past a mark, `most` of them if given, to two tables, and moves the mark.

    It returns the number of those rows.
    """
    edge = "pg_snapshot_xmin(pg_current_snapshot())::text::bigint"
    if most is not None:
        edge = f"""least({edge}, (
        SELECT greatest(nth.transaction, mark.transaction + 1) FROM usage AS nth
        WHERE nth.transaction >= mark.transaction ORDER BY nth.transaction OFFSET {most} LIMIT 1))"""
    return f"""
WITH mark AS MATERIALIZED (
    SELECT transaction FROM {mark} FOR UPDATE
), edge AS MATERIALIZED (
    SELECT {edge} AS transaction FROM mark
), fresh AS MATERIALIZED (
    SELECT * FROM usage
    WHERE transaction >= (SELECT transaction FROM mark) AND transaction < (SELECT transaction FROM edge)
), {HOURS}, {add(table, timed_table)}
UPDATE {mark} SET transaction = greatest({mark}.transaction, edge.transaction) FROM edge
RETURNING (SELECT count(*) FROM fresh)
"""
