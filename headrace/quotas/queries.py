"""What Postgres knows of what limits count: what was spent, what is open, what has ended."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import orjson

from headrace.database import Database, Row, execute
from headrace.ids import created_at
from headrace.quotas.rules import Limits
from headrace.usage.queries import ask, render_cost
from headrace.usage.question import Question

# A job that was let in this long ago and has no row has not just not been written yet.
_PATIENCE_SECONDS = 15
ALERT_PERCENTS = (50, 80, 100)


@dataclass(frozen=True, slots=True)
class Spent:
    """What a job that has ended did use, in tokens and USD; nothing, if it never began."""

    job_id: str
    tokens: int
    cost: Decimal


@dataclass(frozen=True, slots=True)
class OpenJob:
    """A job that has not ended, and what it holds back, in USD."""

    id: str
    background: bool
    cost: Decimal


@dataclass(frozen=True, slots=True)
class SpentSums:
    """What a key or an account has spent this day and this month, in UTC, in USD, and its open jobs."""

    day: Decimal
    month: Decimal
    open_jobs: Sequence[OpenJob]


_OPEN = """
SELECT id, background, coalesce(reserved_cost, 0) FROM jobs
WHERE state IN ('queued', 'running') AND batch_id IS NULL AND {column} = %(id)s
"""
_OF_KEY = "SELECT account_id FROM api_keys WHERE id = %(id)s"


async def read_spent(database: Database, scope_id: str) -> SpentSums:
    """Return what the ledger and the jobs say of a key or an account. Thrown-away attempts have cost money too."""
    is_key = scope_id.startswith("key_")
    rows = await execute(database.relaxed, _OPEN.format(column="key_id" if is_key else "account_id"), {"id": scope_id})
    account_id = (await execute(database.relaxed, _OF_KEY, {"id": scope_id}))[0][0] if is_key else scope_id
    now = datetime.now(UTC)
    today = now.replace(hour=0, minute=0, second=0, microsecond=0)
    sums = []
    for start in (today, today.replace(day=1)):
        question = Question(
            [account_id],
            int(start.timestamp()),
            int(now.timestamp()) + 3600,
            only={"key": [scope_id]} if is_key else {},
        )
        [row] = await ask(database, question, limit=1)
        sums.append(row["cost"] + row["discarded_cost"])
    return SpentSums(sums[0], sums[1], [OpenJob(*row) for row in rows])


_LIMITS = """
SELECT account_id, api_keys.limits AS of_key, accounts.limits AS of_account
FROM api_keys JOIN accounts ON accounts.id = account_id WHERE api_keys.id = %(id)s
"""


async def find_limits(database: Database, key_id: str) -> dict[str, Limits]:
    """Return the limits of a key and of its account, by their ids."""
    [(account_id, of_key, of_account)] = await execute(database.relaxed, _LIMITS, {"id": key_id})
    return {key_id: Limits.parse(of_key), account_id: Limits.parse(of_account)}


async def find_left(database: Database, key_id: str) -> Decimal | None:
    """Return how many USD are left of the tightest budget of a key and its account; None if they have none."""
    left: list[Decimal] = []
    for scope_id, limits in (await find_limits(database, key_id)).items():
        if limits.daily_budget is None and limits.monthly_budget is None:
            continue
        spent = await read_spent(database, scope_id)
        budgets = ((limits.daily_budget, spent.day), (limits.monthly_budget, spent.month))
        left += [budget - total for budget, total in budgets if budget is not None]
    return min(left, default=None)


_ENDED = """
SELECT asked.id, coalesce(sum(prompt_tokens + completion_tokens), 0)::bigint AS tokens, coalesce(sum(cost), 0) AS cost
FROM unnest(%(ids)b::text[], %(ages)b::float8[]) AS asked (id, age)
LEFT JOIN jobs ON jobs.id = asked.id LEFT JOIN usage ON usage.job_id = jobs.id AND usage.created_at >= jobs.created_at
WHERE jobs.finished_at IS NOT NULL OR (jobs.id IS NULL AND asked.age > %(patience)s)
GROUP BY asked.id
"""


async def find_ended(
    database: Database, job_ids: Sequence[str], *, patience_seconds: float = _PATIENCE_SECONDS
) -> list[Spent]:
    """Return those of the jobs that have ended, or are not there long after they were let in, with what they used."""
    ages = [time.time() - created_at(job_id) for job_id in job_ids]
    parameters = {"ids": list(job_ids), "ages": ages, "patience": patience_seconds}
    return [Spent(row.id, row.tokens, row.cost) for row in await execute(database.relaxed, _ENDED, parameters)]


_ALERTED = """
SELECT api_keys.id, account_id, api_keys.limits FROM api_keys
WHERE api_keys.limits ? 'alert_webhook' AND revoked_at IS NULL
UNION ALL SELECT id, id, limits FROM accounts WHERE limits ? 'alert_webhook'
"""
_ALERT = """
INSERT INTO webhook_deliveries (id, account_id, url, event, payload)
VALUES (%(event_id)s, %(account_id)s, %(url)s, 'budget.alert', %(payload)s) ON CONFLICT (id) DO NOTHING
"""


async def alert(database: Database) -> None:
    """Have whoever asked for it told of budgets of which a half, four fifths or all are spent, each once a period."""
    for row in await execute(database.relaxed, _ALERTED):
        limits = Limits.parse(row.limits)
        budgets = {"daily_budget": limits.daily_budget, "monthly_budget": limits.monthly_budget}
        if not any(budgets.values()):
            continue
        spent = await read_spent(database, row.id)
        now = datetime.now(UTC)
        periods = {"daily_budget": (spent.day, f"{now:%Y-%m-%d}"), "monthly_budget": (spent.month, f"{now:%Y-%m}")}
        for name, budget in budgets.items():
            total, period = periods[name]
            reached = [percent for percent in ALERT_PERCENTS if budget and total * 100 >= budget * percent]
            for percent in reached:
                news = {"budget": name, "period": period, "percent": percent}
                sums = {"spent": render_cost(total), "limit": render_cost(budget or Decimal())}
                await _tell(database, row, limits, news, sums)


async def _tell(database: Database, row: Row, limits: Limits, news: Mapping[str, Any], sums: Mapping[str, str]) -> None:
    # The same id for the same news, so that nobody is told twice, whoever looks and whoever dies.
    event_id = "evt_" + hashlib.md5(f"{row.id} {news}".encode(), usedforsecurity=False).hexdigest()
    payload = {
        "id": event_id,
        "object": "event",
        "type": "budget.alert",
        "created_at": int(time.time()),
        "data": {"id": row.id, **news, **sums},
    }
    parameters = {
        "event_id": event_id,
        "account_id": row.account_id,
        "url": limits.alert_webhook,
        "payload": orjson.dumps(payload).decode(),
    }
    await execute(database.durable, _ALERT, parameters)
