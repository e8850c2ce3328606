"""A migrated database for each module, emptied of jobs for each test, and a Valkey that a test may stop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import psycopg
import pytest
from redis import Redis

from headrace.dev.scratch import scratch_dir
from headrace.dev.valkey import EmbeddedValkey
from headrace.keys.queries import create_key, find_principal, hash_key
from headrace.stores.database import Database, execute
from headrace.stores.migrate import migrate
from tests.fakes.collector import Collector, running_collector
from tests.integration.databases import Session, create_database
from tests.integration.job_rows import Jobs, Owner
from tests.service import Stores


async def _create_owner(url: str, account: str) -> Owner:
    database = Database.connect(url, connections=1)
    try:
        _, key = await create_key(database, account=account)
        principal = await find_principal(database, hash_key(key))
    finally:
        await database.close()
    assert principal is not None
    return Owner(principal.account_id, principal.key_id)


@pytest.fixture(scope="session")
def template_url(stores: Stores) -> str:
    """A migrated database that is only ever copied."""
    url = create_database(stores.database_url)
    migrate(url)
    return url


@pytest.fixture(scope="module")
def database_url(stores: Stores, template_url: str) -> str:
    """This module's database, migrated."""
    return create_database(stores.database_url, template=template_url)


@pytest.fixture(scope="module")
def owner(database_url: str) -> Owner:
    """An account and its key."""
    return asyncio.run(_create_owner(database_url, "first"))


@pytest.fixture(scope="module")
def stranger(database_url: str) -> Owner:
    """Another account and its key."""
    return asyncio.run(_create_owner(database_url, "second"))


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """The engines that a process would have, on a database without jobs."""
    database = Database.connect(database_url)
    await execute(database.durable, "TRUNCATE jobs, job_deltas, usage, webhook_deliveries")
    yield database
    await database.close()


@pytest.fixture
def jobs(database: Database, owner: Owner) -> Jobs:
    """The account's jobs."""
    return Jobs(database, owner)


@pytest.fixture
async def other_session(database_url: str, database: Database) -> AsyncIterator[Session]:
    """A connection whose transaction lasts until the test ends it."""
    async with await psycopg.AsyncConnection.connect(database_url) as connection:
        yield connection
        await connection.rollback()


@pytest.fixture(scope="session")
def own_valkey() -> Iterator[EmbeddedValkey]:
    """A Valkey that no service uses."""
    with scratch_dir() as directory, EmbeddedValkey(directory / "valkey") as valkey:
        yield valkey


@pytest.fixture
def valkey(own_valkey: EmbeddedValkey) -> EmbeddedValkey:
    """A Valkey that is empty and running, whatever the test before did to it."""
    if own_valkey.pid is None:
        own_valkey.start()
    with Redis.from_url(own_valkey.url) as redis:
        redis.flushall()
    return own_valkey


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """A collector to which this process sends its spans."""
    with running_collector() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        yield collector
