"""Statements that a connection keeps prepared: what they return, and what ends their connection."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy.exc import DBAPIError

from headrace.stores.arrays import TextArray
from headrace.stores.database import Database, execute
from headrace.stores.failures import is_unavailable
from headrace.stores.plain import Prepared
from tests.integration.databases import Session
from tests.integration.stores.plain.backends import pid_of

ECHO = """
SELECT %(text)s AS text, %(number)s + 1 AS next, %(price)s AS price, %(at)s AS at, %(bytes)s AS bytes,
       %(names)b::text[] AS names, %(nothing)s::int AS nothing, 'a%%b' AS "per cent", %(text)s AS text
"""
VALUES: dict[str, Any] = {
    "text": "ä 漢 🙂",
    "number": 7,
    "price": Decimal("0.10"),
    "at": datetime(2026, 11, 28, tzinfo=UTC),
    "bytes": b"\0\xff",
    "names": TextArray(["a", None, "{,}"]),
    "nothing": None,
}


async def test_it_returns_what_the_cursor_returns(one: Database) -> None:
    once = "SELECT %(text)s AS text, %(price)s AS price"
    by_cursor = await execute(one.relaxed, once, VALUES)
    assert await execute(one.relaxed, Prepared(once), VALUES) == by_cursor
    for number in (7, 70_000, 7_000_000_000):  # each of another type
        [row] = await execute(one.relaxed, Prepared(ECHO), VALUES | {"number": number})
        assert row == (
            VALUES["text"], number + 1, VALUES["price"], VALUES["at"], VALUES["bytes"],
            VALUES["names"], None, "a%b", VALUES["text"],
        )  # fmt: skip
        assert (row.text, row.next, row.price) == (VALUES["text"], number + 1, VALUES["price"])


async def test_a_request_larger_than_the_sockets_buffers_goes_and_comes(one: Database) -> None:
    text = "x" * 30_000_000
    [(length, same)] = await execute(one.relaxed, Prepared("SELECT length(%(a)s), %(a)s"), {"a": text})
    assert (length, same) == (len(text), text)


async def test_a_statement_that_is_refused_leaves_its_connection(one: Database) -> None:
    pid, halve = await pid_of(one), Prepared("SELECT 1 / %(by)s")
    for by in (0, 0, 1):
        if by:
            assert await execute(one.relaxed, halve, {"by": by}) == [(1,)]
        else:
            with pytest.raises(DBAPIError, match="division by zero"):
                await execute(one.relaxed, halve, {"by": by})
    with pytest.raises(DBAPIError, match="no_such_table"):
        await execute(one.relaxed, Prepared("SELECT FROM no_such_table"), {})
    assert await pid_of(one) == pid


async def test_it_is_prepared_again_after_a_statement_that_drops_something(one: Database) -> None:
    pid = await pid_of(one)
    for _ in range(10):  # psycopg prepares it, and forgets all that is prepared once something is dropped
        await execute(one.relaxed, "SELECT %(one)s::int", {"one": 1})
    await execute(one.relaxed, "DROP TABLE IF EXISTS no_such_table")
    for _ in range(2):
        assert await pid_of(one) == pid


async def test_other_statements_take_turns_with_it(one: Database) -> None:
    pid = await pid_of(one)
    for _ in range(3):
        assert await execute(one.relaxed, "SELECT pg_backend_pid(), pg_sleep(0.01)::text", {}) == [(pid, "")]
        assert await pid_of(one) == pid


async def test_it_is_planned_once_whatever_its_values(one: Database) -> None:
    await execute(one.relaxed, "CREATE TEMP TABLE numbers AS SELECT id FROM generate_series(1, 100000) AS id")
    await execute(one.relaxed, "CREATE INDEX ON numbers (id)")
    await execute(one.relaxed, "ANALYZE numbers")
    count = Prepared("SELECT count(*) FROM numbers WHERE id = ANY(%(ids)s::int[])")
    for _ in range(8):  # left to Postgres, the first five and all later ones would get plans of their own
        assert await execute(one.relaxed, count, {"ids": [7]}) == [(1,)]
    query = "SELECT generic_plans, custom_plans FROM pg_prepared_statements WHERE statement LIKE %(text)s"
    assert await execute(one.relaxed, query, {"text": "SELECT count(*) FROM numbers%"}) == [(8, 0)]


async def test_other_statements_are_planned_as_postgres_chooses(one: Database) -> None:
    query = "SELECT current_setting('plan_cache_mode') || current_setting('enable_seqscan')"
    for _ in range(3):
        assert await execute(one.relaxed, Prepared(query), {}) == [("force_generic_planoff",)]
        assert await execute(one.relaxed, query, {}) == [("autoon",)]


async def test_a_connection_that_ends_while_nothing_runs_is_replaced(one: Database, other_session: Session) -> None:
    pid = await pid_of(one)
    # Postgres waits for the end itself: in a transaction `pg_stat_activity` stays as it was at the first look.
    cursor = await other_session.execute("SELECT pg_terminate_backend(%s, 60000)", [pid])
    assert await cursor.fetchone() == (True,)
    assert await pid_of(one) != pid


async def test_no_statement_is_sent_on_a_connection_that_has_ended(one: Database, other_session: Session) -> None:
    """So a statement that finds no other connection certainly had no effect."""
    pid = await pid_of(one)
    cursor = await other_session.execute("SELECT pg_terminate_backend(%s, 60000)", [pid])
    assert await cursor.fetchone() == (True,)
    [(other,)] = await one.relaxed.execute("SELECT pg_backend_pid()", {}, patience_seconds=10)
    assert other != pid


async def test_a_session_that_is_lost_is_not_replaced(one: Database, other_session: Session) -> None:
    async with one.relaxed.session() as session:
        [(pid,)] = await session.execute("SELECT pg_backend_pid()", {}, patience_seconds=10)
        cursor = await other_session.execute("SELECT pg_terminate_backend(%s, 60000)", [pid])
        assert await cursor.fetchone() == (True,)
        for _ in range(2):
            with pytest.raises(DBAPIError) as caught:
                await session.execute("SELECT pg_backend_pid()", {}, patience_seconds=10)
            assert is_unavailable(caught.value)
    assert await pid_of(one)


async def test_a_statement_that_is_cancelled_takes_its_connection_with_it(one: Database) -> None:
    pid = await pid_of(one)
    task = asyncio.create_task(execute(one.relaxed, Prepared("SELECT pg_sleep(1)"), {}))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await pid_of(one) != pid
