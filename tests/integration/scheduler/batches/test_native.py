"""A native batch that the scheduler runs in this process, at the fake provider: what it adds to the metrics."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from headrace.batches.queries import NewBatch, create_batch
from headrace.batches.state import BatchState
from headrace.catalogue.file import CatalogueFile
from headrace.dev.valkey import EmbeddedValkey
from headrace.events.publisher import Publisher
from headrace.ids import new_id
from headrace.jobs.sql.accept import mark_unsent
from headrace.providers.client import ProviderClient
from headrace.queue import JobQueue
from headrace.quotas.gate import Gate
from headrace.runtime.chores import going_on
from headrace.settings import Settings
from headrace.stores.database import Database
from headrace.stores.redis import connect_redis
from headrace.telemetry.metrics import ATTEMPTS, BATCH_LINES, BATCHES_ENDED, COST, JOBS_ENDED, PARCELS, TOKENS
from scheduler.batches.runner import BatchRunner
from scheduler.lookout import Lookout
from tests.e2e.batches import jsonl, lines
from tests.fakes.provider import Provider, answer, status, usage_of
from tests.integration.batches.test_queries import get, store
from tests.integration.job_rows import Owner
from tests.metrics import Rise
from tests.waiting import eventually

CATALOGUE = """
[providers.native]
kind = "openai"
base_url = "{url}"
api_key = "sk-tests"

[models."{model}"]
routes = [{{ route = "native/{model}", native_batch = true }}]
input_price = 2.00
output_price = 8.00
"""


@pytest.fixture
async def runner(
    database: Database, database_url: str, valkey: EmbeddedValkey, provider: Provider, model: str, tmp_path: Path
) -> AsyncIterator[BatchRunner]:
    """The scheduler's batches, with a provider that has a batch API."""
    path = tmp_path / "headrace.toml"
    path.write_text(CATALOGUE.format(url=provider.url(), model=model))
    options: dict[str, Any] = {
        "DATABASE_URL": database_url,
        "REDIS_URL": valkey.url,
        "config": path,
        "native_poll_seconds": 0.05,
    }
    settings = Settings(**options)
    client = ProviderClient(connections=4)
    async with connect_redis(valkey.url) as redis:
        queue = JobQueue(redis, lambda job_ids: mark_unsent(database, job_ids))
        yield BatchRunner(
            settings,
            CatalogueFile(path, demo=False),
            database,
            queue=queue,
            publisher=Publisher(redis, interval_seconds=0.01),
            client=client,
            gate=Gate(redis, database, open_when_away=True),
        )
        await queue.close()
    await client.close()


async def submit(database: Database, owner: Owner, data: bytes) -> str:
    """Create a batch with a day's time, and return its id."""
    batch_id = new_id("batch")
    new = NewBatch(
        id=batch_id,
        account_id=owner.account_id,
        key_id=owner.key_id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        seconds=86_400,
        input_file_id=await store(database, owner, data),
        output_seconds=None,
        metadata=None,
        webhook=None,
    )
    assert await create_batch(database, new)
    return batch_id


async def run(runner: BatchRunner, database: Database, owner: Owner, data: bytes) -> BatchState:
    """Run a batch to its end, and return its end state."""
    batch_id = await submit(database, owner, data)

    async def ended() -> BatchState | None:
        state = BatchState((await get(database, owner, batch_id)).state)
        return state if state.is_final else None

    lookout = Lookout(database)
    async with going_on(lookout.run, partial(runner.run, lookout.batches)):
        return await eventually(ended, "the batch's end")


async def test_its_lines_count_as_the_jobs_of_a_worker_do(
    runner: BatchRunner, database: Database, owner: Owner, provider: Provider, model: str
) -> None:
    usage = usage_of(100, 20)
    provider.script(model, answer("One.", usage=usage), answer("Two.", usage=usage), status(400))
    fed, batches, parcels = Rise(BATCH_LINES), Rise(BATCHES_ENDED), Rise(PARCELS)
    ended, attempts, tokens, cost = Rise(JOBS_ENDED), Rise(ATTEMPTS), Rise(TOKENS), Rise(COST)
    provider.native.script(model, "poll", 500)
    assert await run(runner, database, owner, jsonl(lines(model, 3))) is BatchState.COMPLETED
    assert fed() == {(): 3}
    assert batches() == {("completed",): 1}
    assert parcels() == {("native", "submitted"): 1, ("native", "retried"): 1, ("native", "ended"): 1}
    assert ended() == {("completed", "batch", model): 2, ("failed", "batch", model): 1}
    route = f"native/{model}"
    assert attempts() == {("native", model, "completed", route): 2, ("native", model, "failed", route): 1}
    assert tokens() == {("input", model): 200, ("output", model): 40}
    assert cost() == {(model,): pytest.approx((200 * 2 + 40 * 8) / 1_000_000 / 2)}


async def test_a_parcel_that_the_provider_refuses_is_given_up(
    runner: BatchRunner, database: Database, owner: Owner, provider: Provider, model: str
) -> None:
    provider.native.script(model, "create", 403)
    parcels = Rise(PARCELS)
    await submit(database, owner, jsonl(lines(model, 2)))
    lookout = Lookout(database)
    async with going_on(lookout.run, partial(runner.run, lookout.batches)):
        await eventually(lambda: parcels() == {("native", "given_up"): 1}, "the parcel to be given up")


async def test_a_batch_that_is_not_valid_counts_as_failed(
    runner: BatchRunner, database: Database, owner: Owner
) -> None:
    batches = Rise(BATCHES_ENDED)
    assert await run(runner, database, owner, json.dumps({"custom_id": "r1"}).encode()) is BatchState.FAILED
    assert batches() == {("failed",): 1}
