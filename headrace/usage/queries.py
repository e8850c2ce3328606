"""Every question to the ledger. What attempts spent that were thrown away is told apart from what answers cost.

An answer is put together, in one statement and so of one moment, of three parts: of roll-ups for whole hours, days and
months; of the ledger's rows for what is left at both ends; and of the rows that roll-ups have not got yet.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from headrace.database import LONG_PATIENCE_SECONDS, Database, Row, execute
from headrace.usage.latency import percentiles
from headrace.usage.question import GROUPS, Question, is_metadata, metadata_key
from headrace.usage.rows import AMOUNTS_OF_ROW, STEPS_OF_ROW, has_metric, total
from headrace.usage.views import Segment

# Rows of roll-ups' cells and of latencies that are read for one answer.
_MOST_TIMES = 500_000


_MARK = "SELECT transaction FROM usage_mark"


@dataclass(frozen=True, slots=True)
class _Statement:
    """A question in SQL. `kept` and `rows` say what is read of a roll-up's cell and of a row of the ledger."""

    question: Question
    view: str | None
    mark: int
    """What roll-ups have at least, a moment before: told in so many digits, it lets Postgres know how few are left."""
    table: str
    kept: str
    rows: Sequence[tuple[str, str]]
    """What is read of a row, and on which condition: a row may be read more than once."""

    def parts(self, parameters: dict[str, Any]) -> str:
        """Return the parts, one after the other."""
        segments = self.question.segments(self.view)
        parameters |= {f"key{number}": metadata_key(name) for number, name in enumerate(self.question.names)}
        parts = [self._rolled(number, segment, parameters) for number, segment in enumerate(segments)]
        for columns, condition in self.rows:
            parts += self._unrolled(columns, condition, segments, parameters)
        return " UNION ALL ".join(parts)

    def _rolled(self, number: int, segment: Segment, parameters: dict[str, Any]) -> str:
        parameters |= {f"start{number}": segment.start, f"end{number}": segment.end}
        columns = ", ".join(["start AS at", *self._groups(rolled=True), self.kept])
        conditions = [
            f"view = '{self.view}' AND grain = '{segment.grain}'",
            f"start >= %(start{number})s AND start < %(end{number})s",
            *self._conditions(parameters, rolled=True),
        ]
        return f"SELECT {columns} FROM {self.table} WHERE {' AND '.join(conditions)}"

    def _unrolled(
        self, read: str, condition: str, segments: Sequence[Segment], parameters: dict[str, Any]
    ) -> list[str]:
        question = self.question
        start, end = (datetime.fromtimestamp(at, UTC) for at in (question.start, question.end))
        parameters |= {"start": start, "end": end}
        columns = ", ".join(["created_at AS at", *self._groups(rolled=False), read])
        where = [condition, *self._conditions(parameters, rolled=False)]
        if not segments:
            times = ["created_at >= %(start)s AND created_at < %(end)s"]
        else:
            parameters |= {"first": segments[0].start, "last": segments[-1].end}
            times = [
                "created_at >= %(start)s AND created_at < %(first)s",
                "created_at >= %(last)s AND created_at < %(end)s",
                (
                    f"created_at >= %(first)s AND created_at < %(last)s AND transaction >= {self.mark} "
                    f"AND transaction >= coalesce(({_MARK}), 0)"
                ),
            ]
        return [f"SELECT {columns} FROM usage WHERE {' AND '.join([time, *where])}" for time in times]

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


_AMOUNTS_OF_ROW = ", ".join(f"{expression} AS {name}" for name, expression in AMOUNTS_OF_ROW.items())
_SUMS = ", ".join(total(name, name) for name in AMOUNTS_OF_ROW)
_TIMES_OF_ROW = [
    (f"'{name}' AS metric, {step} AS step, 1 AS requests", has_metric(name)) for name, step in STEPS_OF_ROW.items()
]


def _interval(question: Question, parameters: dict[str, Any]) -> list[str]:
    """Return the columns `start_time` and `end_time`: the first and the last bucket end where the question does."""
    parameters |= {"from": question.start, "until": question.end}
    if question.bucket is None:
        return ["%(from)s::bigint AS start_time", "%(until)s::bigint AS end_time"]
    parameters |= {"bucket": question.bucket.value, "zone": question.zone.key}
    if question.bucket in {"minute", "hour"}:
        finish = f"bucket + interval '1 {question.bucket}'"
    else:
        finish = f"timezone(%(zone)s, timezone(%(zone)s, bucket) + interval '1 {question.bucket}')"
    return [
        "greatest(extract(epoch FROM bucket)::bigint, %(from)s) AS start_time",
        f"least(extract(epoch FROM {finish})::bigint, %(until)s) AS end_time",
    ]


def _select(
    statement: _Statement, sums: str, *, limit: int, offset: int, others: Sequence[str] = ()
) -> tuple[str, dict[str, Any]]:
    question = statement.question
    parameters: dict[str, Any] = {"limit": limit, "offset": offset}
    interval = _interval(question, parameters)
    groups = [f"group{number}" for number in range(len(question.groups))]
    buckets = [] if question.bucket is None else ["bucket"]
    bucket = "" if question.bucket is None else "date_trunc(%(bucket)s, at, %(zone)s) AS bucket, "
    by = [*buckets, *groups, *others]
    grouping = f"GROUP BY {', '.join(by)}" if by else ""
    columns = ", ".join([*groups, *others, sums])
    inner = f"SELECT {bucket}{columns} FROM ({statement.parts(parameters)}) AS parts {grouping}"
    order = ", ".join([*buckets, *(f"{group} NULLS FIRST" for group in groups), *others])
    ordered = f"ORDER BY {order} " if order else ""
    sql = f"SELECT {', '.join(interval)}, * FROM ({inner}) AS sums {ordered}LIMIT %(limit)s OFFSET %(offset)s"
    return sql, parameters


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

    There is a row for each bucket and group in which anything was used, in order of time, then of the groups; without
    either there is one, be it of zeros. It has `start_time`, `end_time`, the groups by their names, and the amounts;
    accounts by their names, or without `names` by their ids;
    with `latency` also `first_token_seconds` and `duration_seconds`, each the percentiles p50, p90, p95 and p99.
    """
    marks = await execute(database.relaxed, _MARK)
    mark: int = marks[0].transaction if marks else 0
    statement = _Statement(
        question, question.view(), mark, "usage_rollups", ", ".join(AMOUNTS_OF_ROW), [(_AMOUNTS_OF_ROW, "true")]
    )
    sql, parameters = _select(statement, _SUMS, limit=limit, offset=offset)
    rows = [
        _named(row, question)
        for row in await execute(database.relaxed, sql, parameters, patience_seconds=LONG_PATIENCE_SECONDS)
    ]
    if latency and rows:
        await _add_latency(database, question, mark, rows)
    if names and "account" in question.groups:
        accounts = {row.id: row.name for row in await execute(database.relaxed, "SELECT id, name FROM accounts")}
        for answer in rows:
            answer["account"] = accounts[answer["account"]]
    return rows


def _named(row: Row, question: Question) -> dict[str, Any]:
    found = row._asdict()
    found.pop("bucket", None)
    interval = {name: found.pop(name) for name in ("start_time", "end_time")}
    groups = {name: found.pop(f"group{number}") for number, name in enumerate(question.groups)}
    return {**interval, **groups, **found}


async def _add_latency(database: Database, question: Question, mark: int, rows: Sequence[dict[str, Any]]) -> None:
    statement = _Statement(
        question, question.view(latency=True), mark, "usage_latencies", "metric, step, requests", _TIMES_OF_ROW
    )
    sql, parameters = _select(
        statement, "sum(requests)::bigint AS requests", limit=_MOST_TIMES, offset=0, others=["metric", "step"]
    )
    found: defaultdict[tuple[Any, ...], list[tuple[int, int]]] = defaultdict(list)
    for row in await execute(database.relaxed, sql, parameters, patience_seconds=LONG_PATIENCE_SECONDS):
        groups = tuple(getattr(row, f"group{number}") for number in range(len(question.groups)))
        found[row.start_time, groups, row.metric].append((row.step, row.requests))
    for answer in rows:
        groups = tuple(answer[name] for name in question.groups)
        for metric in STEPS_OF_ROW:
            answer[f"{metric}_seconds"] = percentiles(found[answer["start_time"], groups, metric])


async def known_metadata_keys(database: Database) -> Sequence[str]:
    """Return the metadata keys that roll-ups tell apart."""
    rows = await execute(database.relaxed, "SELECT metadata_keys FROM usage_mark")
    return rows[0].metadata_keys if rows else []


_CORRECT = """
INSERT INTO usage (job_id, attempt, kind, account_id, key_id, model, answered_model, provider, agent_id, batch_id, tier,
                   end_user, metadata, prompt_tokens, completion_tokens, cached_tokens, reasoning_tokens, estimated,
                   cost, note, created_at)
SELECT job_id, attempt, 'correction', account_id, key_id, model, answered_model, provider, agent_id, batch_id, tier,
       end_user, metadata, %(prompt_tokens)s, %(completion_tokens)s, 0, 0, estimated, %(cost)s::numeric, %(note)s,
       %(at)s
FROM usage WHERE job_id = %(job_id)s AND kind = 'counted'
ON CONFLICT DO NOTHING RETURNING job_id
"""


async def correct_usage(
    database: Database, job_id: str, *, prompt_tokens: int, completion_tokens: int, cost: Decimal, note: str
) -> bool:
    """Add to what a job was counted with, or with negative amounts take from it, as of now.

    Returns False if the ledger has no such job.
    """
    parameters = {
        "job_id": job_id,
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "cost": cost,
        "note": note,
        "at": datetime.now(UTC),  # not the statement's time, as it may be run twice
    }
    await execute(database.durable, _CORRECT, parameters)
    found = "SELECT job_id FROM usage WHERE job_id = %(job_id)s AND kind = 'counted'"
    return bool(await execute(database.relaxed, found, {"job_id": job_id}))


_STATEMENT = """
SELECT (SELECT name FROM accounts WHERE accounts.id = account_id) AS account, key_id AS key,
       (SELECT name FROM api_keys WHERE api_keys.id = key_id) AS key_name, model, provider, answered_model,
       price ->> 'input' AS input_price, price ->> 'cached_input' AS cached_input_price,
       price ->> 'cache_write' AS cache_write_price, price ->> 'output' AS output_price,
       price ->> 'source' AS price_source, kind, count(*) AS entries, sum(prompt_tokens)::bigint AS prompt_tokens,
       sum(cached_tokens)::bigint AS cached_tokens, sum(cache_write_tokens)::bigint AS cache_write_tokens,
       sum(completion_tokens)::bigint AS completion_tokens, coalesce(sum(cost), 0) AS cost
FROM usage
WHERE (%(account_ids)s::text[] IS NULL OR account_id = ANY(%(account_ids)s::text[]))
      AND created_at >= timezone('UTC', %(month)s::timestamp)
      AND created_at < timezone('UTC', %(month)s::timestamp + interval '1 month')
GROUP BY account_id, key_id, model, provider, answered_model, price, kind
ORDER BY account, key, model, provider, answered_model, price, kind
"""


async def statement_of_month(database: Database, month: str, account_ids: Sequence[str] | None) -> Sequence[Row]:
    """Return what accounts, or all, used in a month such as `2026-11`, in UTC, one row for each price of each model.

    The rows are the ledger's own, so that their costs add up to its own to the last digit.
    """
    parameters = {"account_ids": None if account_ids is None else list(account_ids), "month": f"{month}-01"}
    return await execute(database.relaxed, _STATEMENT, parameters, patience_seconds=LONG_PATIENCE_SECONDS)


def render_cost(cost: Decimal) -> str:
    """Return USD as the API has them: exact, and without an exponent or zeros at the end."""
    return f"{cost.normalize():f}"


def render_amounts(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of an answer as JSON has it."""
    amounts = {name: render_cost(value) if isinstance(value, Decimal) else value for name, value in row.items()}
    return {**amounts, "total_tokens": row["prompt_tokens"] + row["completion_tokens"]}
