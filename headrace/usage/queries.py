"""Every question to the ledger. Usage of discarded attempts is reported apart from usage of answers.

An answer is of one moment, as one statement adds up its three parts: roll-ups of whole hours, days and months; the
ledger's rows for the rest at both ends; and the rows that the roll-ups do not have yet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from sqlalchemy.exc import DBAPIError

from headrace.stores.connections import LONG_PATIENCE_SECONDS, Row
from headrace.stores.database import Database, execute
from headrace.usage.latency import percentiles
from headrace.usage.question import GROUPS, Question, is_metadata, metadata_key, unknown_zone
from headrace.usage.rows import AMOUNTS_OF_ROW, STEPS_OF_ROW, SUMS, TOKENS, has_metric
from headrace.usage.views import Grain, Segment

# Postgres's code for a parameter with an unknown value: here that can only be the name of a time zone.
_UNKNOWN_VALUE = "22023"

_MARK = "SELECT transaction FROM usage_mark"


@dataclass(frozen=True, slots=True)
class _Source:
    """Where amounts are, in SQL: `kept` of the cells of a table of roll-ups, and `read` of the ledger's rows."""

    table: str
    kept: str
    rows: str
    read: str
    condition: str = "true"
    """Of the ledger's rows."""


_AMOUNTS = _Source(
    "usage_rollups",
    ", ".join(AMOUNTS_OF_ROW),
    "usage",
    ", ".join(f"{expression} AS {name}" for name, expression in AMOUNTS_OF_ROW.items()),
)
_STEPS = ", ".join(f"('{name}', CASE WHEN {has_metric(name)} THEN {step} END)" for name, step in STEPS_OF_ROW.items())
_TIMES = _Source(
    "usage_latencies",
    "metric, step, requests",
    f"usage CROSS JOIN LATERAL (VALUES {_STEPS}) AS timed (metric, step)",
    "metric, step, 1 AS requests",
    "step IS NOT NULL",
)


@dataclass(frozen=True, slots=True)
class _Parts:
    """What a question is answered of, in SQL: columns `bucket`, if it has any, `group0` and so on, and the source's."""

    question: Question
    view: str | None
    mark: int
    """The mark of the roll-ups, read just before. As a literal, it lets Postgres estimate how few rows are past it."""
    source: _Source

    def render(self, parameters: dict[str, Any]) -> str:
        """Return the parts, one after the other."""
        segments = self.question.segments(self.view)
        parameters |= {f"key{number}": metadata_key(name) for number, name in enumerate(self.question.names)}
        parts = [self._rolled(number, segment, parameters) for number, segment in enumerate(segments)]
        return " UNION ALL ".join([*parts, *self._unrolled(segments, parameters)])

    def _rolled(self, number: int, segment: Segment, parameters: dict[str, Any]) -> str:
        parameters |= {f"start{number}": segment.start, f"end{number}": segment.end}
        columns = ", ".join([*self._bucket("start", segment.grain), *self._groups(rolled=True), self.source.kept])
        conditions = [
            f"view = '{self.view}' AND grain = '{segment.grain}'",
            f"start >= %(start{number})s AND start < %(end{number})s",
            *self._conditions(parameters, rolled=True),
        ]
        return f"SELECT {columns} FROM {self.source.table} WHERE {' AND '.join(conditions)}"

    def _unrolled(self, segments: Sequence[Segment], parameters: dict[str, Any]) -> list[str]:
        question = self.question
        start, end = (datetime.fromtimestamp(at, UTC) for at in (question.start, question.end))
        parameters |= {"start": start, "end": end}
        columns = ", ".join([*self._bucket("created_at", None), *self._groups(rolled=False), self.source.read])
        where = [self.source.condition, *self._conditions(parameters, rolled=False)]
        if not segments:
            times = ["created_at >= %(start)s AND created_at < %(end)s"]
        else:
            first, last = segments[0].start, segments[-1].end
            parameters |= {"first": first, "last": last}
            edges = (
                ("created_at >= %(start)s AND created_at < %(first)s", start < first),
                ("created_at >= %(last)s AND created_at < %(end)s", last < end),
            )
            times = [edge for edge, is_there in edges if is_there]
            times.append(
                f"created_at >= %(first)s AND created_at < %(last)s AND transaction >= {self.mark} "
                f"AND transaction >= coalesce(({_MARK}), 0)"
            )
        return [f"SELECT {columns} FROM {self.source.rows} WHERE {' AND '.join([time, *where])}" for time in times]

    def _bucket(self, at: str, grain: Grain | None) -> list[str]:
        bucket = self.question.bucket
        if bucket is None:
            return []
        # Whole hours are read only where the zone's are those of UTC, and days and months of UTC only in UTC.
        return [f"{at} AS bucket" if grain == bucket else f"date_trunc(%(bucket)s, {at}, %(zone)s) AS bucket"]

    def _groups(self, *, rolled: bool) -> list[str]:
        names = enumerate(self.question.groups)
        return [f"{self._column(name, rolled=rolled)} AS group{number}" for number, name in names]

    def _conditions(self, parameters: dict[str, Any], *, rolled: bool) -> list[str]:
        question = self.question
        if question.account_ids is None:
            conditions = ["account_id = ANY(ARRAY(SELECT id FROM accounts))"]
        else:
            parameters["account_ids"] = list(question.account_ids)
            conditions = ["account_id = ANY(%(account_ids)s::text[])"]
        for number, (name, values) in enumerate(question.only.items()):
            parameters[f"only{number}"] = list(values)
            conditions.append(f"{self._column(name, rolled=rolled)} = ANY(%(only{number})s::text[])")
        if self.view == "metadata" and rolled:
            conditions.append(f"metadata_key = {self._key(next(filter(is_metadata, question.names)))}")
        return conditions

    def _column(self, name: str, *, rolled: bool) -> str:
        if not is_metadata(name):
            return GROUPS[name]
        return "metadata_value" if rolled else f"(metadata ->> {self._key(name)})"

    def _key(self, name: str) -> str:
        return f"%(key{self.question.names.index(name)})s::text"


def _begin(midnight: str) -> str:
    """Return the SQL of a day's beginning, from the midnight that Postgres finds.

    Where clocks are set back to midnight, a day has two midnights, and Postgres finds the second. The first one is
    earlier by as much as the clocks are set back.
    """
    before = f"timezone(%(zone)s, {midnight} - interval '1 microsecond') + interval '1 microsecond'"
    return f"({midnight} - greatest({before} - timezone(%(zone)s, {midnight}), interval '0'))"


# From the beginning of a day or a month, always into the next one: a day may have 25 hours, and a month 23 hours less
# than its days.
_ONWARDS = {"day": "36 hours", "month": "780 hours"}


def _interval(question: Question, parameters: dict[str, Any]) -> list[str]:
    """Return the columns `start_time` and `end_time`: the first and the last bucket end where the question does."""
    parameters |= {"from": question.start, "until": question.end}
    if question.bucket is None:
        return ["%(from)s::bigint AS start_time", "%(until)s::bigint AS end_time"]
    parameters |= {"bucket": question.bucket.value, "zone": question.zone.key}
    if question.bucket in _ONWARDS:
        # Not a day later by the calendar: where a day has no midnight, the next one has.
        following = f"date_trunc(%(bucket)s, bucket + interval '{_ONWARDS[question.bucket]}', %(zone)s)"
        begin, finish = ("bucket", following) if question.is_utc else (_begin("bucket"), _begin(following))
    else:
        begin, finish = "bucket", f"bucket + interval '1 {question.bucket}'"
    return [
        f"greatest(extract(epoch FROM {begin})::bigint, %(from)s) AS start_time",
        f"least(extract(epoch FROM {finish})::bigint, %(until)s) AS end_time",
    ]


_COUNTS = {
    f"{metric}_{column}": f"array_agg({column}) FILTER (WHERE metric = '{metric}')"
    for metric in STEPS_OF_ROW
    for column in ("step", "times")
}
"""Of each metric its steps, and how many times fell into each."""
_NO_AMOUNTS = ", ".join(f"NULL AS {name}" for name in AMOUNTS_OF_ROW)
_NO_TIMES = "NULL::text AS metric, NULL::smallint AS step, NULL::bigint AS times"


def _select(question: Question, mark: int, *, limit: int, offset: int, latency: bool) -> tuple[str, dict[str, Any]]:
    """Return the statement: start and end, the groups, the amounts, and with `latency` what is counted of times."""
    parameters: dict[str, Any] = {"limit": limit, "offset": offset}
    interval = _interval(question, parameters)
    groups = [f"group{number}" for number in range(len(question.groups))]
    places = groups if question.bucket is None else ["bucket", *groups]
    by = f"GROUP BY {', '.join(places)}" if places else ""
    order = f"ORDER BY {', '.join(f'{place} NULLS FIRST' for place in places)}" if places else ""
    parts = _Parts(question, question.view(), mark, _AMOUNTS).render(parameters)
    sums = [*places, SUMS]
    if latency:
        timed = _Parts(question, question.view(latency=True), mark, _TIMES).render(parameters)
        parts = f"SELECT *, {_NO_TIMES} FROM ({parts}) AS amounts UNION ALL {_count_times(timed, places)}"
        sums += [f"{expression} AS {name}" for name, expression in _COUNTS.items()]
    page = f"SELECT {', '.join(sums)} FROM ({parts}) AS parts {by} {order} LIMIT %(limit)s OFFSET %(offset)s"
    columns = ", ".join([*interval, *groups, *AMOUNTS_OF_ROW, *(_COUNTS if latency else ())])
    return f"SELECT {columns} FROM ({page}) AS page {order}", parameters


def _count_times(parts: str, places: Sequence[str]) -> str:
    """Return how many times fell into each step, as rows beside those of amounts: groups to JOIN by may be null."""
    columns = ", ".join([*places, _NO_AMOUNTS, "metric", "step", "bigint_sum(requests) AS times"])
    return f"SELECT {columns} FROM ({parts}) AS timed GROUP BY {', '.join([*places, 'metric', 'step'])}"


async def ask(
    database: Database,
    question: Question,
    *,
    limit: int,
    offset: int = 0,
    latency: bool = False,
    names: bool = True,
) -> list[dict[str, Any]]:
    """Return `limit` rows of an answer at most, past the first `offset`.

    There is a row for each bucket and group with usage, in order of time, then of the groups. A question without
    buckets and groups has one row, of zeros if nothing was used. A row has `start_time`, `end_time`, the groups by
    their names, and the amounts. With `latency` it also has `first_token_seconds` and `duration_seconds`, each with the
    percentiles p50, p90, p95 and p99. Accounts are named, or without `names` have their ids.

    Raises:
        InvalidRequestError: Postgres does not know the time zone.
    """
    marks = await execute(database.reports, _MARK)
    mark: int = marks[0].transaction if marks else 0
    sql, parameters = _select(question, mark, limit=limit, offset=offset, latency=latency)
    try:
        found = await execute(database.reports, sql, parameters, patience_seconds=LONG_PATIENCE_SECONDS)
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) == _UNKNOWN_VALUE:
            raise unknown_zone(question.zone.key) from error
        raise
    columns = ["start_time", "end_time", *question.groups, *AMOUNTS_OF_ROW]
    rows = [dict(zip(columns, row, strict=not latency)) for row in found]
    if latency:
        for answer, row in zip(rows, found, strict=True):
            answer.update(_percentiles(row))
    if names and "account" in question.groups:
        await _name_accounts(database, rows)
    return rows


def _percentiles(row: Row) -> dict[str, Any]:
    counts = row._asdict()
    return {
        f"{metric}_seconds": percentiles(
            zip(counts[f"{metric}_step"] or (), counts[f"{metric}_times"] or (), strict=True)
        )
        for metric in STEPS_OF_ROW
    }


async def _name_accounts(database: Database, rows: Sequence[dict[str, Any]]) -> None:
    ids = list({row["account"] for row in rows})
    found = await execute(database.relaxed, "SELECT id, name FROM accounts WHERE id = ANY(%(ids)s)", {"ids": ids})
    accounts = {row.id: row.name for row in found}
    for row in rows:
        row["account"] = accounts[row["account"]]


async def known_metadata_keys(database: Database, *, otherwise: Sequence[str] = ()) -> Sequence[str]:
    """Return the metadata keys that roll-ups tell apart, or `otherwise` if there are no roll-ups yet."""
    rows = await execute(database.relaxed, "SELECT metadata_keys FROM usage_mark")
    return rows[0].metadata_keys if rows else otherwise


_CORRECT = f"""
INSERT INTO usage (job_id, attempt, kind, account_id, key_id, model, answered_model, provider, agent_id, batch_id, tier,
                   end_user, metadata, {", ".join(TOKENS)}, estimated, cost, note, created_at)
SELECT job_id, attempt, 'correction', account_id, key_id, model, answered_model, provider, agent_id, batch_id, tier,
       end_user, metadata, {", ".join(f"%({name})s" for name in TOKENS)}, estimated, %(cost)s::numeric, %(note)s, %(at)s
FROM usage WHERE job_id = %(job_id)s AND kind = 'counted'
ON CONFLICT DO NOTHING RETURNING job_id
"""


async def correct_usage(
    database: Database,
    job_id: str,
    *,
    prompt_tokens: int = 0,
    completion_tokens: int = 0,
    cached_tokens: int = 0,
    cache_write_tokens: int = 0,
    reasoning_tokens: int = 0,
    prompt_audio_tokens: int = 0,
    completion_audio_tokens: int = 0,
    cost: Decimal,
    note: str,
) -> bool:
    """Add to what a job was counted with, or with negative amounts take from it, as of now.

    Returns False if the ledger has no such job.
    """
    parameters = {
        "job_id": job_id,
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "cached_tokens": cached_tokens,
        "cache_write_tokens": cache_write_tokens,
        "reasoning_tokens": reasoning_tokens,
        "prompt_audio_tokens": prompt_audio_tokens,
        "completion_audio_tokens": completion_audio_tokens,
        "cost": cost,
        "note": note,
        "at": datetime.now(UTC),  # not the statement's time, as it may be run twice
    }
    await execute(database.durable, _CORRECT, parameters)
    found = "SELECT job_id FROM usage WHERE job_id = %(job_id)s AND kind = 'counted'"
    return bool(await execute(database.relaxed, found, {"job_id": job_id}))


_COLUMNS_OF_STATEMENT = {
    "account": "(SELECT name FROM accounts WHERE accounts.id = account_id)",
    "key": "key_id",
    "key_name": "(SELECT name FROM api_keys WHERE api_keys.id = key_id)",
    "model": "model",
    "provider": "provider",
    "answered_model": "answered_model",
    "input_price": "price ->> 'input'",
    "cached_input_price": "price ->> 'cached_input'",
    "cache_write_price": "price ->> 'cache_write'",
    "output_price": "price ->> 'output'",
    "input_audio_price": "price ->> 'input_audio'",
    "output_audio_price": "price ->> 'output_audio'",
    # Rows of 0.1.0's first builds have it under another name.
    "price_factor": "coalesce(price ->> 'factor', price ->> 'discount')",
    "price_source": "price ->> 'source'",
    "kind": "kind",
    "entries": "count(*)",
    "prompt_tokens": "sum(prompt_tokens)::bigint",
    "cached_tokens": "sum(cached_tokens)::bigint",
    "cache_write_tokens": "sum(cache_write_tokens)::bigint",
    "completion_tokens": "sum(completion_tokens)::bigint",
    "prompt_audio_tokens": "sum(prompt_audio_tokens)::bigint",
    "completion_audio_tokens": "sum(completion_audio_tokens)::bigint",
    "cost": "coalesce(sum(cost), 0)",
}
STATEMENT_COLUMNS = tuple(_COLUMNS_OF_STATEMENT)
"""What each row of a statement has, `cost` in USD."""

_STATEMENT = f"""
SELECT {", ".join(f"{expression} AS {name}" for name, expression in _COLUMNS_OF_STATEMENT.items())}
FROM usage
WHERE (%(account_ids)s::text[] IS NULL OR account_id = ANY(%(account_ids)s::text[]))
      AND created_at >= timezone('UTC', %(month)s::timestamp)
      AND created_at < timezone('UTC', %(month)s::timestamp + interval '1 month')
GROUP BY account_id, key_id, model, provider, answered_model, price, kind
ORDER BY account, key, model, provider, answered_model, price, kind
"""


async def statement_of_month(database: Database, month: str, account_ids: Sequence[str] | None) -> list[dict[str, Any]]:
    """Return what accounts, or all, used in a month such as `2026-11`, in UTC, one row for each price of each model.

    The rows are the ledger's own, so that their costs add up to its own to the last digit.
    """
    parameters = {"account_ids": None if account_ids is None else list(account_ids), "month": f"{month}-01"}
    rows = await execute(database.reports, _STATEMENT, parameters, patience_seconds=LONG_PATIENCE_SECONDS)
    return [dict(zip(STATEMENT_COLUMNS, row, strict=True)) for row in rows]


def render_cost(cost: Decimal) -> str:
    """Return USD as the API has them: exact, and without an exponent or zeros at the end."""
    text = f"{cost:f}"  # not normalized: that rounds to 28 digits
    return text.rstrip("0").removesuffix(".") if "." in text else text


def render_amounts(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of an answer as JSON has it."""
    amounts = {name: render_cost(value) if isinstance(value, Decimal) else value for name, value in row.items()}
    return {**amounts, "total_tokens": row["prompt_tokens"] + row["completion_tokens"]}
