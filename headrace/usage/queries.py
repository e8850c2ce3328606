"""Every question to the ledger. What attempts spent that were thrown away is told apart from what answers cost."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from enum import StrEnum
from typing import Any

import sqlalchemy as sa

from headrace.database import Database, Row, execute
from headrace.keys.tables import accounts
from headrace.usage.tables import usage


class Bucket(StrEnum):
    """A stretch of time that usage is added up over. Its limits are those of the clock and the calendar in UTC."""

    MINUTE = "minute"
    HOUR = "hour"
    DAY = "day"
    MONTH = "month"

    def spans(self, start: int, end: int) -> int:
        """Return how many lie wholly or partly between two times in Unix seconds; of months, how many at most."""
        # Unix time has no leap seconds, so every minute, hour and day begins at a multiple of its length.
        seconds = {"minute": 60, "hour": 3600, "day": 86_400, "month": 28 * 86_400}[self]
        return -(-end // seconds) - start // seconds


class Group(StrEnum):
    """What usage is told apart by."""

    MODEL = "model"
    PROVIDER = "provider"
    KEY = "key"
    AGENT = "agent"
    ACCOUNT = "account"


_GROUPS: dict[Group, sa.ColumnElement[Any]] = {
    Group.MODEL: usage.c.model,
    Group.PROVIDER: usage.c.provider,
    Group.KEY: usage.c.key_id,
    Group.AGENT: usage.c.agent_id,
    Group.ACCOUNT: accounts.c.name,
}
_COUNTED = ~usage.c.discarded


def _sum(amount: sa.ColumnElement[Any], counted: sa.ColumnElement[bool] = _COUNTED) -> sa.ColumnElement[Any]:
    # Postgres adds bigints up to a numeric; no sum of tokens is beyond a bigint, and JSON has those as integers.
    return sa.cast(sa.func.coalesce(sa.func.sum(amount).filter(counted), 0), sa.BigInteger)


_TOTAL = usage.c.prompt_tokens + usage.c.completion_tokens
_AMOUNTS = (
    sa.func.count().filter(_COUNTED).label("requests"),
    _sum(usage.c.prompt_tokens).label("prompt_tokens"),
    _sum(usage.c.completion_tokens).label("completion_tokens"),
    _sum(usage.c.cached_tokens).label("cached_tokens"),
    _sum(usage.c.reasoning_tokens).label("reasoning_tokens"),
    _sum(_TOTAL).label("total_tokens"),
    sa.func.count().filter(_COUNTED, usage.c.estimated).label("estimated_requests"),
    sa.func.count().filter(_COUNTED, usage.c.cost.is_(None)).label("unpriced_requests"),
    _sum(_TOTAL, usage.c.discarded).label("discarded_tokens"),
    sa.func.coalesce(sa.func.sum(usage.c.cost).filter(_COUNTED), 0).label("cost"),
)


def _since(start: int) -> sa.ColumnElement[bool]:
    return usage.c.created_at >= sa.func.to_timestamp(start)


async def account_usage(
    database: Database,
    account_id: str,
    *,
    start: int,
    end: int,
    bucket: Bucket | None,
    group_by: Sequence[Group],
    limit: int,
) -> Sequence[Row]:
    """Return what an account used from `start` to just before `end`, in Unix seconds; `limit` rows at most.

    There is a row for each bucket and group in which anything was used, in order of time; without either there is one,
    be it of zeros. Its columns are `start_time`, `end_time`, the groups by their names, and the amounts. The first and
    the last bucket end where the question does, so that rows add up to the whole.
    """
    query = (
        sa.select(*_interval(bucket, start, end), *_columns(group_by), *_AMOUNTS)
        .join_from(usage, accounts)
        .where(usage.c.account_id == account_id, _since(start), usage.c.created_at < sa.func.to_timestamp(end))
    )
    names = [*(["start_time", "end_time"] if bucket else []), *group_by]
    if names:
        query = query.group_by(*names).order_by(*names)
    return await execute(database.relaxed, query.limit(limit))


def _interval(bucket: Bucket | None, start: int, end: int) -> list[sa.ColumnElement[Any]]:
    """Return the columns `start_time` and `end_time`."""
    first: sa.ColumnElement[Any] = sa.literal(start, sa.BigInteger)
    last: sa.ColumnElement[Any] = sa.literal(end, sa.BigInteger)
    if bucket is not None:
        # Without a zone, as a month's length depends on one: the session's, if it were left to Postgres.
        begin = sa.func.date_trunc(bucket.value, sa.func.timezone("UTC", usage.c.created_at))
        finish = begin + sa.cast(f"1 {bucket.value}", sa.Interval)
        first = sa.func.greatest(sa.cast(sa.extract("epoch", begin), sa.BigInteger), first)
        last = sa.func.least(sa.cast(sa.extract("epoch", finish), sa.BigInteger), last)
    return [first.label("start_time"), last.label("end_time")]


def _columns(group_by: Sequence[Group]) -> list[sa.ColumnElement[Any]]:
    return [_GROUPS[group].label(group.value) for group in group_by]


async def all_usage(
    database: Database, *, start: int, group_by: Sequence[Group], account: str | None = None
) -> Sequence[Row]:
    """Return what every account, or the one of that name, has used since `start`, in Unix seconds; dearest first.

    The columns are the groups by their names and the amounts. It is for operators: clients see their own account alone.
    """
    query = sa.select(*_columns(group_by), *_AMOUNTS).join_from(usage, accounts).where(_since(start))
    if account is not None:
        query = query.where(accounts.c.name == account)
    query = query.group_by(*group_by).order_by(sa.desc("cost"), sa.desc("total_tokens"), *group_by)
    return await execute(database.relaxed, query)


def render_cost(cost: Decimal) -> str:
    """Return USD as the API has them: exact, and without an exponent or zeros at the end."""
    return f"{cost.normalize():f}"
