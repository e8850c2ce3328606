"""Postgres gives up before its client does, and a client closes a connection to a former primary."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from headrace.jobs.tables import jobs as table
from headrace.stores import connections, sessions
from headrace.stores.database import Database, execute
from headrace.stores.failures import NoAnswerError, is_unavailable, was_certainly_refused
from headrace.stores.plain import Prepared
from tests.integration.databases import Session
from tests.integration.job_rows import Jobs

READ_ONLY = "SET default_transaction_read_only = on"
STATEMENTS: dict[str, Any] = {
    "plain": "UPDATE jobs SET model = 'changed'",
    "prepared": Prepared("UPDATE jobs SET model = 'changed'"),
    "sqlalchemy": sa.update(table).values(model="changed"),
}

# A transaction whose commit waits for an advisory lock.
_WAITING_COMMIT = """
CREATE TEMP TABLE slow (number int);
CREATE FUNCTION pg_temp.wait() RETURNS trigger LANGUAGE plpgsql
    AS 'BEGIN PERFORM pg_advisory_xact_lock(20261130); RETURN NULL; END';
CREATE CONSTRAINT TRIGGER waits AFTER INSERT ON slow DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION pg_temp.wait();
INSERT INTO slow VALUES (1)
"""


@pytest.fixture
async def hasty(database_url: str, database: Database, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Database]:
    """Connections whose usual patience is a second."""
    monkeypatch.setattr(connections, "PATIENCE_SECONDS", 1.0)
    hasty = Database.connect(database_url)
    yield hasty
    await hasty.close()


@pytest.mark.parametrize("form", STATEMENTS)
async def test_a_statement_that_its_client_gives_up_is_given_up_by_postgres_before(
    jobs: Jobs, hasty: Database, other_session: Session, form: str
) -> None:
    job_id = await jobs.submit()
    await other_session.execute("LOCK TABLE jobs IN SHARE ROW EXCLUSIVE MODE")
    with pytest.raises(DBAPIError, match="statement timeout") as raised:
        await execute(hasty.durable, STATEMENTS[form], patience_seconds=3)
    assert was_certainly_refused(raised.value)
    await other_session.rollback()
    assert (await jobs.row(job_id)).model != "changed"


@pytest.mark.parametrize("form", STATEMENTS)
async def test_a_longer_patience_is_for_its_statement_alone(database: Database, form: str) -> None:
    made: dict[str, Callable[[str], Any]] = {"plain": str, "prepared": Prepared, "sqlalchemy": sa.text}
    shown = made[form]("SHOW statement_timeout")
    seen = [
        (await execute(database.durable, shown, patience_seconds=seconds))[0][0]
        for seconds in (0.5, 20, 10, 20, 86_400, 1)
    ]
    assert seen == ["8s", "16s", "8s", "16s", "1152min", "8s"]


@pytest.mark.parametrize("form", STATEMENTS)
async def test_a_connection_to_a_server_that_became_read_only_is_left(
    jobs: Jobs, database: Database, form: str
) -> None:
    job_id = await jobs.submit()
    await execute(database.durable, sa.text(READ_ONLY) if form == "sqlalchemy" else READ_ONLY)
    await execute(database.durable, STATEMENTS[form])
    assert (await jobs.row(job_id)).model == "changed"


def test_what_may_have_been_done_is_known() -> None:
    refused = DBAPIError("INSERT", None, Exception(), connection_invalidated=False)
    broke = DBAPIError("INSERT", None, Exception(), connection_invalidated=True)
    assert was_certainly_refused(refused)
    assert was_certainly_refused(sa.exc.TimeoutError("No connection became free."))
    assert not was_certainly_refused(broke)
    assert not was_certainly_refused(NoAnswerError())
    refused.__context__ = broke  # it broke at first, and when tried again no connection was to be had
    assert not was_certainly_refused(refused)


async def test_a_process_that_freezes_in_a_transaction_keeps_no_lock(
    jobs: Jobs, database_url: str, other_session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = await jobs.submit()
    monkeypatch.setitem(sessions.SESSION, "idle_in_transaction_session_timeout", "200ms")
    frozen = Database.connect(database_url, connections=1)
    lock = f"SELECT FROM jobs WHERE id = '{job_id}' FOR UPDATE"

    async def freeze() -> None:
        async with frozen.durable.transaction("READ COMMITTED") as transaction:
            await execute(transaction, lock)
            await other_session.execute(lock)  # it waits until the first transaction has ended
            await execute(transaction, "SELECT 1")

    with pytest.raises(DBAPIError) as raised:
        await freeze()
    assert is_unavailable(raised.value)
    assert await execute(frozen.durable, "SELECT 1"), "the next statement gets another connection"
    await frozen.close()


async def test_a_transaction_gets_a_connection_that_is_alive(database_url: str, other_session: Session) -> None:
    own = Database.connect(database_url, connections=1)

    async def session() -> int:
        async with own.durable.transaction("READ COMMITTED") as transaction:
            return int((await execute(transaction, "SELECT pg_backend_pid()"))[0][0])

    first = await session()
    await other_session.execute(f"SELECT pg_terminate_backend({first}, 60000)")
    assert await session() != first
    await own.close()


async def test_a_commit_that_gets_no_answer_is_given_up(
    database_url: str, other_session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "LONG_PATIENCE_SECONDS", 0.5)
    own = Database.connect(database_url, connections=1)
    await other_session.execute("SELECT pg_advisory_lock(20261130)")

    async def commit() -> None:
        async with own.durable.transaction("READ COMMITTED") as transaction:
            await execute(transaction, _WAITING_COMMIT)

    with pytest.raises(NoAnswerError):
        await asyncio.wait_for(commit(), 15)
    await other_session.execute("SELECT pg_advisory_unlock_all()")
    assert await execute(own.durable, "SELECT 1")
    await own.close()
