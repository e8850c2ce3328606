"""What the scheduler's look finds: which chores have work, and that a chore without work asks Postgres nothing."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from headrace.batches.queries import cancel_batch, fail_batch
from headrace.dev.valkey import EmbeddedValkey
from headrace.events.publisher import Publisher
from headrace.events.subscription import hear_work
from headrace.events.wire import WORK_CHANNEL
from headrace.jobs.state import State
from headrace.queue import JobQueue
from headrace.runtime.chores import going_on
from headrace.settings import Settings
from headrace.stores.database import Database, execute
from headrace.stores.redis import connect_redis
from headrace.telemetry.metrics import STORE_SECONDS
from headrace.usage.rollups import fold_usage
from scheduler import lookout as looking
from scheduler.lookout import Lookout
from scheduler.sweep import Sweeper
from tests.integration.batches.test_queries import create
from tests.integration.databases import seen_by_all
from tests.integration.job_rows import Jobs, end_of
from tests.metrics import Rise
from tests.waiting import PATIENCE, eventually
from tests.wakeups import leave_unsent


async def work(database: Database) -> set[str]:
    lookout = Lookout(database)
    await lookout.look()
    return {name for name in ("jobs", "batches", "webhooks", "usage") if getattr(lookout, name).is_set()}


async def test_a_job_is_work_until_it_has_ended_and_its_usage_until_it_is_folded(
    database: Database, jobs: Jobs
) -> None:
    await fold_usage(database, metadata_keys=[])
    assert await work(database) == set()
    job_id = await jobs.submit()
    assert await work(database) == {"jobs"}
    [job] = await jobs.claim(job_id)
    assert await work(database) == {"jobs"}
    await jobs.finish(end_of(job))
    assert await work(database) == {"usage"}
    await seen_by_all(database)
    await fold_usage(database, metadata_keys=[])
    assert await work(database) == set()


async def test_a_delivery_is_work_until_it_has_ended(database: Database, jobs: Jobs) -> None:
    job_id = await jobs.submit(webhook="http://127.0.0.1:9/")
    await jobs.cancel(job_id)
    assert await jobs.state(job_id) is State.CANCELLED
    assert await work(database) == {"webhooks"}
    await execute(database.durable, "UPDATE webhook_deliveries SET state = 'failed', ended_at = now()")
    assert await work(database) == set()


async def test_a_batch_is_work_until_it_has_ended(database: Database, jobs: Jobs) -> None:
    batch_id = await create(database, jobs.owner)
    assert await work(database) == {"batches"}
    await fail_batch(database, batch_id, [])
    assert await work(database) == set()
    batch_id = await create(database, jobs.owner, total=1)
    await cancel_batch(database, batch_id, jobs.owner.account_id)
    assert await work(database) == {"batches"}
    await execute(database.durable, "DELETE FROM batches")


@pytest.fixture
def rare_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_LOOK_SECONDS", "_IDLE_LOOK_SECONDS"):
        monkeypatch.setattr(looking, name, 3600.0)


@pytest.mark.usefixtures("rare_looks")
async def test_a_process_that_adds_work_has_it_found_before_the_next_look(
    database: Database, jobs: Jobs, valkey: EmbeddedValkey
) -> None:
    await fold_usage(database, metadata_keys=[])
    redis, lookout = connect_redis(valkey.url), Lookout(database)
    publisher = Publisher(redis, interval_seconds=0)
    looks = Rise(STORE_SECONDS)
    async with going_on(lookout.run, partial(hear_work, redis, lookout.call)):
        await eventually(lambda: redis.pubsub_numsub(WORK_CHANNEL), "the subscription")
        await eventually(lambda: looks() and not lookout._called.is_set(), "the first looks")
        batch_id = await create(database, jobs.owner)
        publisher.call_scheduler()
        await asyncio.wait_for(lookout.batches.wait(), PATIENCE)
    await fail_batch(database, batch_id, [])
    await publisher.flush()
    await redis.aclose()


@pytest.mark.usefixtures("rare_looks")
async def test_calls_do_not_hurry_a_scheduler_that_has_work(database: Database, jobs: Jobs) -> None:
    await jobs.submit()
    lookout = Lookout(database)
    async with going_on(lookout.run):
        await lookout.jobs.wait()
        looks = Rise(STORE_SECONDS)
        for _ in range(20):
            lookout.call()
            await asyncio.sleep(0.01)
        assert looks() == {}


async def test_while_postgres_is_unavailable_every_chore_finds_out_by_itself() -> None:
    absent = Database.connect("postgresql://headrace@127.0.0.1:1/none", connections=1)
    assert await work(absent) == {"jobs", "batches", "webhooks", "usage"}
    await absent.close()


async def test_a_sweeper_asks_nothing_while_there_are_no_jobs_and_rescues_the_first_that_is_lost(
    database: Database, jobs: Jobs, valkey: EmbeddedValkey
) -> None:
    redis = connect_redis(valkey.url)
    settings = Settings(sweep_seconds=0.02, heartbeat_seconds=0.05)
    publisher = Publisher(redis, interval_seconds=0)
    sweeper = Sweeper(settings, database, JobQueue(redis, leave_unsent), publisher)
    there_are = asyncio.Event()
    asked = Rise(STORE_SECONDS)
    async with going_on(partial(sweeper.run, there_are)):
        await asyncio.sleep(0.2)
        assert asked() == {}
        job = await jobs.run()
        await jobs.lose(job.id)
        there_are.set()
        await eventually(partial(is_queued, jobs, job.id), "the rescue")
    await publisher.flush()
    await redis.aclose()


async def is_queued(jobs: Jobs, job_id: str) -> bool:
    return await jobs.state(job_id) is State.QUEUED
