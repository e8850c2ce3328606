"""Lines that wait while the scheduler feeds batches, a round at a time. No worker runs any line."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import orjson
import pytest

from headrace.agents.queries import create_agent
from headrace.batches.queries import start_batch
from headrace.catalogue.file import CatalogueFile
from headrace.dev.valkey import EmbeddedValkey
from headrace.ids import new_id
from headrace.settings import Settings
from headrace.stores.database import Database, execute
from headrace.stores.namespace import NamespacedRedis
from headrace.stores.redis import connect_redis
from scheduler.batches import feeders
from scheduler.batches.runner import BatchRunner
from tests.e2e.batches import jsonl, line
from tests.integration.batches.test_queries import create, get
from tests.integration.job_rows import Owner
from tests.integration.scheduler.batches.runners import Launch, batch_runner
from tests.waiting import eventually

# Characters of a large line.
LARGE = 8_000_000


@pytest.fixture
async def redis(valkey: EmbeddedValkey) -> AsyncIterator[NamespacedRedis]:
    """The Redis that counts the rates."""
    async with connect_redis(valkey.url) as redis:
        yield redis


@pytest.fixture
async def launch(database: Database, database_url: str, valkey: EmbeddedValkey) -> Launch:
    """What makes the scheduler's batches, on a database without those that another test has left."""
    await execute(database.durable, "DELETE FROM batches")

    def launched(**changes: Any) -> AbstractAsyncContextManager[BatchRunner]:
        settings = Settings(**{"DATABASE_URL": database_url, "REDIS_URL": valkey.url} | changes)
        return batch_runner(settings, CatalogueFile(None, demo=True), database)

    return launched


async def begin(database: Database, owner: Owner, *texts: str, agent_id: str | None = None) -> str:
    """Return a batch that is valid, with a line for each text, to an agent or the model `demo`."""
    data = jsonl(line(f"r{number}", agent_id or "demo", text) for number, text in enumerate(texts, 1))
    batch_id = await create(database, owner, data=data)
    agents = {agent_id: 1} if agent_id else {}
    assert await start_batch(database, batch_id, total=len(texts), model="demo", agents=agents)
    return batch_id


async def limit(database: Database, owner: Owner, requests: int) -> None:
    """Set the account's rate."""
    query = """UPDATE accounts SET limits = jsonb_build_object('requests_per_minute', %(most)s::int)
               WHERE id = %(id)s"""
    await execute(database.durable, query, {"most": requests, "id": owner.account_id})


async def fed(database: Database, owner: Owner, *batches: str) -> int:
    """Return how many lines of the batches are jobs."""
    return sum([(await get(database, owner, batch_id)).fed for batch_id in batches])


async def held_by(runner: BatchRunner) -> int:
    """Return the bytes of memory that three rounds leave in use."""
    tracemalloc.start()
    try:
        for _ in range(3):
            await runner._look()
        gc.collect()
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("rate", "most_open", "begun"),
    [(1, 64, 1), (1_000_000, 64, 4), (1_000_000, 1, 4)],
    ids=["wait for a rate", "wait for room", "wait for room with closed inputs"],
)
async def test_no_line_of_batches_that_wait_is_held(
    launch: Launch,
    database: Database,
    owner: Owner,
    monkeypatch: pytest.MonkeyPatch,
    rate: int,
    most_open: int,
    begun: int,
) -> None:
    monkeypatch.setattr(feeders, "_MOST_OPEN_INPUTS", most_open)
    await limit(database, owner, rate)
    batches = [await begin(database, owner, *["x" * LARGE] * 2) for _ in range(4)]
    async with launch(batch_window=4) as runner:
        assert await held_by(runner) < LARGE
    assert await fed(database, owner, *batches) == begun


async def test_no_agent_of_batches_that_wait_is_held(launch: Launch, database: Database, owner: Owner) -> None:
    agent_id = new_id("agent")
    definition = orjson.dumps({"model": "demo", "instructions": "x" * (LARGE // 10)}).decode()
    await create_agent(database, agent_id, owner.account_id, definition=definition, model="demo")
    await limit(database, owner, 1_000_000)
    batches = [await begin(database, owner, "one", "two", agent_id=agent_id) for _ in range(12)]
    async with launch(batch_window=12) as runner:
        assert await held_by(runner) < LARGE
    assert await fed(database, owner, *batches) == 12


async def test_a_line_that_waits_is_counted_once_under_the_id_of_its_job(
    launch: Launch, database: Database, owner: Owner, redis: NamespacedRedis
) -> None:
    await limit(database, owner, 2)
    batch_id = await begin(database, owner, "one", "two", "three", "four")
    async with launch() as runner:
        await runner._look()
        assert await fed(database, owner, batch_id) == 2
        await limit(database, owner, 3)

        async def goes_on() -> bool:
            await runner._look()
            return await fed(database, owner, batch_id) > 2

        await eventually(goes_on, "the third line to be fed")
    rows = await execute(
        database.relaxed, "SELECT id, custom_id FROM jobs WHERE batch_id = %(id)s ORDER BY line", {"id": batch_id}
    )
    assert [row.custom_id for row in rows] == ["r1", "r2", "r3"]
    for row in rows:
        assert await redis.hexists(f"hr:quota:{owner.account_id}:open", row.id)
    assert int(await redis.hget(f"hr:quota:{owner.account_id}:requests", "sum") or 0) == 3


async def test_batches_without_a_place_for_an_open_input_are_fed_to_their_ends(
    launch: Launch, database: Database, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeders, "_MOST_OPEN_INPUTS", 1)
    await limit(database, owner, 1_000_000)
    batches = [await begin(database, owner, "one", "two", "three") for _ in range(3)]
    async with launch(batch_window=3) as runner:
        for running in (3, 6, 9):
            await runner._look()
            assert await fed(database, owner, *batches) == running
            await execute(
                database.durable,
                "INSERT INTO batch_tallies (batch_id, completed) SELECT id, 1 FROM batches WHERE id = ANY(%(ids)s)",
                {"ids": batches},
            )
    query = "SELECT custom_id FROM jobs WHERE batch_id = %(id)s ORDER BY line"
    for batch_id in batches:
        rows = await execute(database.relaxed, query, {"id": batch_id})
        assert [row.custom_id for row in rows] == ["r1", "r2", "r3"]
