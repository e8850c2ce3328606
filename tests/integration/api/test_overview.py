"""The state of the deployment, read from a real database and a real Valkey."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from api.overview import LongQueues, Overview
from api.resources.status import Status
from headrace.catalogue.file import CatalogueFile
from headrace.dev.valkey import EmbeddedValkey
from headrace.jobs.sql.depth import read_running
from headrace.stores.database import Database
from headrace.stores.redis import connect_redis
from tests.integration.job_rows import Jobs
from tests.waiting import eventually


@pytest.fixture
async def redis(valkey: EmbeddedValkey) -> AsyncIterator[Redis]:
    async with connect_redis(valkey.url) as redis:
        yield redis


async def test_what_redis_holds_is_null_while_it_is_unavailable(
    database: Database, redis: Redis, valkey: EmbeddedValkey, jobs: Jobs
) -> None:
    overview = Overview(database, redis, CatalogueFile(None))
    job_id = await jobs.submit()
    valkey.stop()
    told = await overview.read()
    Status.model_validate(told)
    assert told["stores"] == {"postgres": "ok", "redis": "unavailable"}
    assert told["rates"] is told["workers"] is told["scheduler"] is None
    assert {queue["tier"]: queue["queued"] for queue in told["queues"]}["default"] == 1
    demo = told["providers"][0]
    assert (demo["circuit"], demo["running"], demo["limits"]["requests_per_minute"]) == (None, None, None)
    await jobs.delete(job_id)


async def test_many_readers_cost_one_look(database: Database, redis: Redis) -> None:
    overview = Overview(database, redis, CatalogueFile(None))
    first, *others = await asyncio.gather(*(overview.read() for _ in range(20)))
    assert all(other is first for other in others)


async def test_a_long_queue_is_counted_while_no_answer_waits(database: Database, jobs: Jobs) -> None:
    queues = LongQueues(database, most=3)
    for _ in range(5):
        await jobs.submit()
    await jobs.submit(tier="flex")

    async def shown() -> dict[str, tuple[int, bool]]:
        return {depth.tier: (depth.jobs, exact) for depth, exact in await queues.read()}

    assert await shown() == {"priority": (0, True), "default": (3, False), "flex": (1, True), "batch": (0, True)}

    async def counted() -> bool:
        return (await shown())["default"] == (5, False)

    await eventually(counted, "the whole count")


async def test_the_running_jobs_that_began_first_come_first(database: Database, jobs: Jobs) -> None:
    waiting = [await jobs.submit() for _ in range(3)]
    for job_id in reversed(waiting):
        await jobs.claim(job_id)
    await jobs.run(tier="flex")
    await jobs.complete()
    running = await read_running(database, most=100, first=2)
    assert running.tiers == {"default": 3, "flex": 1}
    assert [job["id"] for job in running.first] == waiting[:0:-1]
    assert {job["status"] for job in running.first} == {"running"}
    bounded = await read_running(database, most=2, first=2)
    assert bounded.tiers == {"default": 2}
