"""Names in Redis begin with the deployment's namespace, which its database has."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import Any

import psycopg
import pytest
from redis import Redis as BlockingRedis

from headrace.dev.valkey import EmbeddedValkey
from headrace.events.hub import Hub
from headrace.events.publisher import Publisher
from headrace.events.subscription import hear_cancellations
from headrace.ids import new_id
from headrace.queue import JobQueue, create_celery, queue_name
from headrace.quotas.gate import Demand, Gate, Scope
from headrace.quotas.rules import Limits
from headrace.runtime.chores import going_on
from headrace.runtime.presence import View
from headrace.settings import Settings
from headrace.stores.database import Database
from headrace.stores.deployment import read_namespace, with_namespace
from headrace.stores.migrate import migrate
from headrace.stores.namespace import NamespacedRedis
from headrace.stores.redis import connect_redis, redis_takes_writes
from tests.integration.databases import create_database
from tests.integration.job_rows import Owner
from tests.service import Stores
from tests.waiting import eventually
from tests.wakeups import leave_unsent
from worker.peers import Peers
from worker.throttle import Throttle


@dataclass(frozen=True)
class OneCall:
    """A provider that takes one call at a time."""

    max_concurrency: int | None = 1
    adaptive_concurrency: bool = True
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None


@pytest.fixture
def keys(valkey: EmbeddedValkey) -> Iterator[BlockingRedis]:
    with BlockingRedis.from_url(valkey.url) as redis:
        redis.flushdb()
        yield redis


@pytest.fixture
async def ours(keys: BlockingRedis, valkey: EmbeddedValkey) -> AsyncIterator[NamespacedRedis]:
    async with connect_redis(valkey.url, "ours") as redis:
        yield redis


@pytest.fixture
async def theirs(keys: BlockingRedis, valkey: EmbeddedValkey) -> AsyncIterator[NamespacedRedis]:
    async with connect_redis(valkey.url, "theirs") as redis:
        yield redis


def names(keys: BlockingRedis) -> set[str]:
    found: Any = keys.keys()
    return {key.decode() for key in found}


def namespace_of(url: str) -> str | None:
    return with_namespace(Settings(DATABASE_URL=url)).redis_namespace


def test_each_new_database_has_a_namespace_of_its_own(stores: Stores) -> None:
    urls = [create_database(stores.database_url) for _ in range(2)]
    for url in urls:
        migrate(url)
    first, second = map(namespace_of, urls)
    assert first
    assert second
    assert first != second


@pytest.mark.parametrize(
    "used",
    [
        ["INSERT INTO process_fingerprints (part, process, configuration) VALUES ('api', 'a:1', 'c')"],
        [
            "INSERT INTO accounts (id, name) VALUES ('acct_1', 'a')",
            "INSERT INTO api_keys (id, account_id, name, hash, hint) VALUES ('key_1', 'acct_1', 'k', sha256('k'), 'h')",
        ],
    ],
    ids=["processes", "keys"],
)
def test_a_database_that_is_in_use_keeps_the_names_that_it_has(stores: Stores, used: list[str]) -> None:
    url = create_database(stores.database_url)
    migrate(url, "+13")
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in used:
            connection.execute(statement.encode())
    migrate(url)
    assert namespace_of(url) == ""


async def test_the_setting_goes_before_the_database(database: Database, database_url: str) -> None:
    settings = Settings(DATABASE_URL=database_url)
    assert await read_namespace(settings, database) == namespace_of(database_url) != ""
    settings = settings.model_copy(update={"redis_namespace": "mine"})
    assert await read_namespace(settings, database) == "mine" == with_namespace(settings).redis_namespace


async def test_a_wake_up_is_in_one_deployments_queue_alone(
    keys: BlockingRedis, valkey: EmbeddedValkey, ours: NamespacedRedis, theirs: NamespacedRedis
) -> None:
    queue, other = JobQueue(ours, leave_unsent), JobQueue(theirs, leave_unsent)
    for number in range(20):
        queue.wake([f"job_{number}"], tier="default")
        await asyncio.sleep(0)
    await queue.close()
    backlog, none = await queue.backlog("default"), await other.backlog("default")
    assert backlog is not None
    assert none is not None
    assert backlog.job_ids == [f"job_{number}" for number in range(20)]
    assert none.job_ids == []
    for namespace, found in (("theirs", 0), ("ours", keys.llen("ours:headrace.default"))):
        with create_celery(valkey.url, namespace).connection_for_read() as connection:
            assert connection.default_channel._size(queue_name("default")) == found
    assert {name.partition(":")[0] for name in names(keys)} == {"ours"}


async def test_every_key_and_channel_has_the_namespace(
    keys: BlockingRedis, ours: NamespacedRedis, database: Database, owner: Owner
) -> None:
    gate = Gate(ours, database, open_without_redis=False)
    demand = Demand(new_id("job"), background=False, tokens=10, cost=Decimal(1))
    scope = Scope(owner.key_id, Limits(requests_per_minute=5, daily_budget=Decimal(9)))
    await gate.admit([scope], demand)
    await gate.correct()
    await gate.reconcile()
    await Peers(ours, "w").tell(View((), {}, {}, {}))
    throttle = Throttle(ours, lease_seconds=10)
    async with throttle.permit("demo", OneCall(), {"messages": []}):
        pass
    await throttle.close()
    assert await redis_takes_writes(ours)
    found = names(keys)
    assert {"ours:headrace:paths", "ours:headrace:limits:demo", "ours:headrace:check", "ours:hr:quota:scopes"} <= found
    assert [key for key in found if not key.startswith("ours:")] == []
    hub = Hub(ours, buffer_bytes=10_000, patience_seconds=1)
    assert hub.origin.startswith("ours:headrace:api:")


async def test_a_cancellation_is_heard_in_its_deployment_alone(ours: NamespacedRedis, theirs: NamespacedRedis) -> None:
    heard: dict[NamespacedRedis, list[str]] = {ours: [], theirs: []}

    async def listening() -> bool:
        return len(await ours.pubsub_channels("*:headrace:cancel")) == len(heard)

    async with going_on(*(partial(hear_cancellations, redis, jobs.append) for redis, jobs in heard.items())):
        await eventually(listening, "two subscribers")
        await Publisher(theirs, interval_seconds=0).cancel("job_theirs")
        await Publisher(ours, interval_seconds=0).cancel("job_ours")
        await eventually(lambda: all(heard.values()), "both cancellations")
    assert heard == {ours: ["job_ours"], theirs: ["job_theirs"]}
