"""How the event loop watches a connection's socket: it misses no answer, and no end of a connection."""

from __future__ import annotations

import asyncio
import select
from collections.abc import AsyncIterator, Iterator
from urllib.parse import urlsplit

import psycopg
import pytest

from headrace.stores.database import Database, execute
from headrace.stores.plain import PlainConnection, Prepared
from tests.faults.chaos.proxy import Link, Mode, postgres_socket
from tests.integration.databases import Session
from tests.integration.stores.plain.backends import PID, pid_of
from tests.waiting import PATIENCE

SLEEP = Prepared("SELECT 1 FROM pg_sleep(%(seconds)s::float)")


@pytest.fixture
def link(database_url: str) -> Iterator[Link]:
    link = Link(postgres_socket(database_url))
    yield link
    link.close()


@pytest.fixture
async def linked(link: Link, database_url: str) -> AsyncIterator[PlainConnection]:
    """A connection behind the link, which keeps `SLEEP` prepared."""
    url = f"postgresql://headrace@127.0.0.1:{link.port}{urlsplit(database_url).path}"
    connection = PlainConnection(await psycopg.AsyncConnection.connect(url, autocommit=True), timeout=60)
    await connection.run(SLEEP, {"seconds": 0})
    yield connection
    await connection.close()


def wait_for_the_next_message(connection: PlainConnection) -> None:
    """Wait until the connection has a message to read. The event loop waits meanwhile, and so does not read it."""
    arrived = select.poll()
    arrived.register(connection.connection.fileno(), select.POLLIN)
    assert arrived.poll(PATIENCE * 1000)


def break_after_the_next_message(link: Link, connection: PlainConnection) -> None:
    """Reset the connection once it has a message to read. The event loop sees both at once."""
    wait_for_the_next_message(connection)
    link.be(Mode.CUT)
    reset = select.poll()
    reset.register(connection.connection.fileno(), 0)
    assert reset.poll(PATIENCE * 1000)


async def test_a_connection_that_breaks_with_an_answer_gives_the_answer_and_then_an_error(
    linked: PlainConnection, link: Link
) -> None:
    answer = asyncio.create_task(linked.run(SLEEP, {"seconds": 0}))
    await asyncio.sleep(0)
    break_after_the_next_message(link, linked)
    async with asyncio.timeout(PATIENCE):
        assert await answer == [(1,)]
        with pytest.raises(psycopg.OperationalError):
            await linked.run(SLEEP, {"seconds": 0})
    assert linked.closed


async def test_a_connection_that_breaks_within_an_answer_gives_an_error(
    linked: PlainConnection, link: Link, database_url: str
) -> None:
    answer = asyncio.create_task(linked.run(SLEEP, {"seconds": 60}))
    await asyncio.sleep(0)
    with psycopg.connect(database_url) as other:
        other.execute("SELECT pg_terminate_backend(%s)", [linked.connection.info.backend_pid])
    break_after_the_next_message(link, linked)
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(psycopg.OperationalError):
            await answer
    assert linked.closed


async def test_a_notice_between_two_statements_does_no_harm(one: Database, other_session: Session) -> None:
    pid = await pid_of(one)
    await execute(one.relaxed, "LISTEN tests", {})
    await pid_of(one)
    await other_session.execute("NOTIFY tests, 'now'")
    await other_session.commit()
    [connection] = one.relaxed._idle
    wait_for_the_next_message(connection)
    assert await pid_of(one) == pid


async def test_a_broken_connection_leaves_the_one_that_gets_its_socket_s_number_alone(database_url: str) -> None:
    """libpq closes a broken connection's socket by itself, and the next connection gets its number."""

    async def connect() -> PlainConnection:
        return PlainConnection(await psycopg.AsyncConnection.connect(database_url, autocommit=True), timeout=60)

    async def use(connection: PlainConnection) -> None:
        while True:
            await connection.run(PID, {})

    broken = await connect()
    number = broken.connection.fileno()
    [(pid,)] = await broken.run(PID, {})
    async with await psycopg.AsyncConnection.connect(database_url) as other:
        await other.execute("SELECT pg_terminate_backend(%s)", [pid])
        with pytest.raises(psycopg.OperationalError):
            await use(broken)
        opened = [await connect()]
        while opened[-1].connection.fileno() != number and len(opened) < 50:
            opened.append(await connect())
        assert opened[-1].connection.fileno() == number
        answer = asyncio.create_task(opened[-1].run(SLEEP, {"seconds": 0.2}))
        await asyncio.sleep(0)
        await broken.close()
        async with asyncio.timeout(PATIENCE):
            assert await answer == [(1,)]
    for connection in opened:
        await connection.close()
