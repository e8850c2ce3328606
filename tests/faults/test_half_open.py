"""Connections that stay and carry nothing: whoever waits at one finds out, and goes on when it is mended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from headrace.database import Database, execute
from tests.faults.chaos.proxy import Link, Mode
from tests.service import Stores


@pytest.fixture
def link(stores: Stores) -> Iterator[Link]:
    [directory] = parse_qs(urlsplit(stores.database_url).query)["host"]
    link = Link(Path(directory) / ".s.PGSQL.5432")
    yield link
    link.close()


@pytest.fixture
async def database(link: Link) -> AsyncIterator[Database]:
    database = Database.connect(f"postgresql://headrace@127.0.0.1:{link.port}/headrace")
    yield database
    await database.close()


@pytest.mark.parametrize("statement", ["SELECT 1", sa.select(sa.literal(1))], ids=["plain", "sqlalchemy"])
async def test_a_half_open_connection_to_postgres_is_given_up(
    database: Database, link: Link, statement: str | sa.Executable
) -> None:
    await asyncio.gather(*(execute(database.relaxed, statement) for _ in range(3)))
    link.be(Mode.STALL)
    async with asyncio.timeout(30):
        with pytest.raises(DBAPIError):
            await execute(database.relaxed, statement, patience_seconds=0.5)
    link.be(Mode.PASS)
    assert (await execute(database.relaxed, statement))[0][0] == 1


async def test_a_slow_one_is_not(database: Database, link: Link) -> None:
    link.be(Mode.SLOW)
    rows = await execute(database.relaxed, "SELECT repeat('x', 20000)", patience_seconds=10)
    assert len(rows[0][0]) == 20_000
