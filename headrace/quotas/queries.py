"""What limits read from Postgres: money spent, open jobs, ended jobs."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal

from headrace.ids import created_at
from headrace.quotas.rules import Limits
from headrace.stores.database import Database, execute
from headrace.usage.queries import ask
from headrace.usage.question import Question

# Seconds after its admission in which a job's row may still be missing because it is being written.
_PATIENCE_SECONDS = 15


@contextlib.asynccontextmanager
async def snapshot(database: Database) -> AsyncIterator[Database]:
    """Give a database as of one moment, that of the first statement. Do not write to it."""
    async with database.relaxed.transaction("REPEATABLE READ") as then:
        yield Database(then, then, then, then)


@dataclass(frozen=True, slots=True)
class Spent:
    """What an ended job used, in tokens and USD; zero if it never ran."""

    job_id: str
    tokens: int
    cost: Decimal


@dataclass(frozen=True, slots=True)
class OpenJob:
    """A job that has not ended, and its reserved cost in USD."""

    id: str
    background: bool
    cost: Decimal


@dataclass(frozen=True, slots=True)
class SpentSums:
    """What a key or an account has spent in a day and a month of UTC, in USD, and its open jobs."""

    day: Decimal
    month: Decimal
    open_jobs: Sequence[OpenJob]


class UnknownScopeError(LookupError):
    """Postgres has no such key or account."""


_OPEN = """
SELECT id, background, coalesce(reserved_cost, 0) FROM jobs
WHERE state IN ('queued', 'running') AND batch_id IS NULL AND {column} = %(id)s
"""
_OF_KEY = "SELECT account_id FROM api_keys WHERE id = %(id)s"
_OF_ACCOUNT = "SELECT id AS account_id FROM accounts WHERE id = %(id)s"


async def read_spent(database: Database, scope_id: str, now: datetime) -> SpentSums:
    """Return what a key or an account has spent by the ledger, and its open jobs.

    `now` tells the day and the month.

    Raises:
        UnknownScopeError: No such key or account exists.
    """
    rows = await execute(database.relaxed, _OPEN.format(column=_column(scope_id)), {"id": scope_id})
    day, month = await read_sums(database, scope_id, now)
    return SpentSums(day, month, [OpenJob(*row) for row in rows])


def _column(scope_id: str) -> str:
    return "key_id" if scope_id.startswith("key_") else "account_id"


async def read_sums(database: Database, scope_id: str, now: datetime) -> tuple[Decimal, Decimal]:
    """Return what was spent in the day and the month of UTC that have this moment, discarded attempts included."""
    is_key = scope_id.startswith("key_")
    owners = await execute(database.relaxed, _OF_KEY if is_key else _OF_ACCOUNT, {"id": scope_id})
    if not owners:
        raise UnknownScopeError(scope_id)
    account_id = owners[0].account_id
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
    return sums[0], sums[1]


_LIMITS = """
SELECT account_id, api_keys.limits AS of_key, accounts.limits AS of_account
FROM api_keys JOIN accounts ON accounts.id = account_id WHERE api_keys.id = %(id)s
"""


async def find_limits(database: Database, key_id: str) -> dict[str, Limits]:
    """Return the limits of a key and of its account, by their ids."""
    [(account_id, of_key, of_account)] = await execute(database.relaxed, _LIMITS, {"id": key_id})
    return {key_id: Limits.parse(of_key), account_id: Limits.parse(of_account)}


_HELD = """
SELECT coalesce(sum(reserved_cost), 0) FROM jobs
WHERE state IN ('queued', 'running') AND batch_id IS NULL AND {column} = %(id)s
"""


async def find_left(database: Database, key_ids: Iterable[str]) -> dict[str, Decimal]:
    """Return how many USD are left, for each of these keys and their accounts that has a budget; of two, the tighter.

    The reserved cost of open jobs is subtracted. The cost of batches' lines that have not ended is not.
    """
    scopes: dict[str, Limits] = {}
    for key_id in key_ids:
        scopes |= await find_limits(database, key_id)
    left = {}
    for scope_id, limits in scopes.items():
        if limits.daily_budget is None and limits.monthly_budget is None:
            continue
        # Reservations are read first: a job that ends in between is subtracted twice, rather than not at all.
        held = (await execute(database.relaxed, _HELD.format(column=_column(scope_id)), {"id": scope_id}))[0][0]
        day, month = await read_sums(database, scope_id, datetime.now(UTC))
        budgets = ((limits.daily_budget, day), (limits.monthly_budget, month))
        left[scope_id] = min(budget - spent for budget, spent in budgets if budget is not None) - held
    return left


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
    """Return what each ended job used. A job without a row long after its admission counts as ended."""
    ages = [time.time() - created_at(job_id) for job_id in job_ids]
    parameters = {"ids": list(job_ids), "ages": ages, "patience": patience_seconds}
    return [Spent(row.id, row.tokens, row.cost) for row in await execute(database.relaxed, _ENDED, parameters)]
