"""Lists of an account's jobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import DBAPIError

from headrace.errors import ListTooLongError
from headrace.jobs.records import JobFilter
from headrace.jobs.sql.read import VIEW
from headrace.jobs.tables import jobs
from headrace.stores.connections import Row
from headrace.stores.database import Database, execute

# Latest jobs of an account that are searched for metadata before its index is: common metadata is found among them.
_RECENT_JOBS = 2_000
PAGE_BYTES = 16 * 1024 * 1024
"""Bytes of answers after which a page of jobs ends."""
_TIMED_OUT = "57014"


async def list_jobs(
    database: Database, account_id: str, wanted: JobFilter, *, after: str | None, limit: int, descending: bool
) -> tuple[Sequence[Row], bool]:
    """Return up to `limit` of an account's jobs past the job `after`, in order of creation, and whether there are more.

    A page with large answers has fewer: it ends with the job that takes it past `PAGE_BYTES`.

    Raises:
        ListTooLongError: The list has to look at more jobs than its time allows.
    """
    try:
        while True:
            where = _conditions(account_id, wanted, after=after, descending=descending)
            found = await _find(database, where, wanted.metadata, limit + 1, descending=descending)
            ids, size = list[str](), 0
            for row in found[:limit]:
                if size < PAGE_BYTES:
                    ids.append(row.id)
                    size += row.size
            # Some may be erased by now.
            query = VIEW.where(jobs.c.id.in_(ids), jobs.c.deleted_at.is_(None))
            rows = await execute(database.lists, _in_order(query, jobs.c.id, descending=descending)) if ids else []
            more = len(found) > len(ids)
            if rows or not more:
                return rows, more
            after = ids[-1]
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) == _TIMED_OUT:
            raise ListTooLongError from error
        raise


async def _find(
    database: Database,
    where: Sequence[sa.ColumnElement[bool]],
    metadata: Mapping[str, str] | None,
    limit: int,
    *,
    descending: bool,
) -> Sequence[Row]:
    """Return `(id, size)` of the first jobs of a list. `size` is in bytes of the answer."""
    if not metadata:
        return await _sizes(database, sa.select(jobs.c.id).where(*where), limit, descending=descending)
    recent = _in_order(sa.select(jobs.c.id, jobs.c.metadata).where(*where), jobs.c.id, descending=descending)
    among = recent.limit(_RECENT_JOBS).subquery()
    has = sa.cast(dict(metadata), JSONB)
    query = sa.select(among.c.id).where(among.c.metadata.contains(has))
    found = await _sizes(database, query, limit, descending=descending)
    if len(found) == limit:
        return found
    # The planner cannot know how few jobs have this metadata. MATERIALIZED makes it begin with them.
    having_it = sa.select(jobs.c.id).where(*where, jobs.c.metadata.contains(has)).cte("having_it")
    query = sa.select(having_it.prefix_with("MATERIALIZED").c.id)
    return await _sizes(database, query, limit, descending=descending)


async def _sizes(database: Database, found: sa.Select[tuple[str]], limit: int, *, descending: bool) -> Sequence[Row]:
    [column] = found.selected_columns
    ids = _in_order(found, column, descending=descending).limit(limit)
    size = sa.func.coalesce(sa.func.octet_length(jobs.c.response), 0).label("size")
    query = sa.select(jobs.c.id, size).where(jobs.c.id.in_(ids))
    return await execute(database.lists, _in_order(query, jobs.c.id, descending=descending))


def _conditions(
    account_id: str, wanted: JobFilter, *, after: str | None, descending: bool
) -> list[sa.ColumnElement[bool]]:
    """Return a list's conditions without that on metadata. One index has their columns, so that no row is read."""
    where = [jobs.c.account_id == account_id, jobs.c.deleted_at.is_(None)]
    if wanted.state is not None:
        where.append(jobs.c.state == wanted.state.value)
    if wanted.model is not None:
        where.append(jobs.c.model == wanted.model)
    if wanted.agent_id is not None:
        where.append(jobs.c.agent_id == wanted.agent_id)
    if wanted.batch_id is not None:
        where.append(jobs.c.batch_id == wanted.batch_id)
    if wanted.format is not None:
        where.append(jobs.c.format == wanted.format)
    if wanted.created_after is not None:
        where.append(jobs.c.created_at > wanted.created_after)
    if wanted.created_before is not None:
        where.append(jobs.c.created_at < wanted.created_before)
    if after is not None:
        where.append(jobs.c.id < after if descending else jobs.c.id > after)
    return where


_Query = TypeVar("_Query", bound=sa.Select[Any])


def _in_order(query: _Query, column: sa.ColumnElement[Any], *, descending: bool) -> _Query:
    return query.order_by(column.desc() if descending else column)
