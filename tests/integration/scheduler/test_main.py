"""The scheduler's process, inside this one: its health and what it counts from its start to its end."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from headrace.dev.valkey import EmbeddedValkey
from headrace.settings import Settings
from headrace.stores.database import Database, execute
from headrace.telemetry.exposition import render_metrics
from headrace.telemetry.health import HEALTH
from headrace.telemetry.metrics import LEASES_LOST, QUEUE_JOBS, QUEUE_OLDEST, SCHEDULER_LEADS, STORE_SECONDS
from scheduler.main import run_until_signal
from tests.e2e.batches import jsonl, lines
from tests.fakes.provider import Gate, Provider
from tests.integration.job_rows import Jobs, Owner
from tests.integration.scheduler.batches.test_native import CATALOGUE, add_provider, pass_rounds, submit
from tests.metrics import Rise, values
from tests.waiting import eventually


@pytest.fixture
def options(database_url: str, valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The settings of a scheduler that knows nothing of earlier ones."""
    monkeypatch.setattr(HEALTH, "draining", False)
    monkeypatch.setattr(HEALTH, "_beat_at", None)
    return {
        "DATABASE_URL": database_url,
        "REDIS_URL": valkey.url,
        "demo": True,
        "metrics_port": 1,  # the port is another module's: it is only not off
    }


async def test_it_leads_measures_rescues_and_drains(jobs: Jobs, options: dict[str, Any]) -> None:
    options |= {"sweep_seconds": 0.1, "heartbeat_seconds": 0.1}
    lost = Rise(LEASES_LOST)
    job = await jobs.run()
    await jobs.lose(job.id)
    await jobs.submit(tier="flex")
    scheduler = asyncio.create_task(run_until_signal(Settings(**options)))
    await eventually(lambda: values(SCHEDULER_LEADS) == {(): 1}, "the lead")
    await eventually(lambda: values(QUEUE_JOBS).get(("flex",)) == 1, "the length of the queue")
    assert values(QUEUE_OLDEST)["flex",] > 0
    await eventually(lambda: lost() == {(): 1}, "the lost lease")
    asked = Rise(STORE_SECONDS)
    assert b'headrace_queue_jobs{tier="flex"} 1.0' in render_metrics("scheduler")
    assert asked() == {}, "a scrape asks no store"
    told = HEALTH.describe("scheduler")
    assert told["last_beat_seconds"] < 60
    assert (told["postgres"], told["redis"], told["draining"]) == ("ok", "ok", False)
    os.kill(os.getpid(), signal.SIGTERM)
    await scheduler
    assert HEALTH.draining
    assert values(SCHEDULER_LEADS) == {(): 0}
    assert values(QUEUE_JOBS) == {}, "a scheduler that does not lead knows nothing of the queues"


async def test_while_nothing_happens_it_asks_the_stores_little(database: Database, options: dict[str, Any]) -> None:
    scheduler = asyncio.create_task(run_until_signal(Settings(**options)))
    await eventually(lambda: values(SCHEDULER_LEADS) == {(): 1}, "the lead")

    async def little() -> bool:
        asked, since = Rise(STORE_SECONDS), time.monotonic()
        await asyncio.sleep(1)
        return sum(asked().values()) < 8 * (time.monotonic() - since)

    # At its start it has more to ask, and every few seconds again. If each chore asked for itself, it always would.
    await eventually(little, "a second with few questions", 20)
    os.kill(os.getpid(), signal.SIGTERM)
    await scheduler


@pytest.fixture
async def other(
    options: dict[str, Any], database: Database, provider: Provider, model: str, tmp_path: Path
) -> AsyncIterator[str]:
    """A model beside `model`. Each has a provider with a batch API, where no batch can be found by its parcel."""
    await execute(database.durable, "DELETE FROM batches")
    anthropic, other = CATALOGUE.replace('"openai"', '"anthropic"'), f"{model}-other"
    config = tmp_path / "headrace.toml"
    config.write_text(anthropic.format(url=provider.url(), model=model))
    add_provider(config, "other", provider.url("/other"), other)
    options |= {"demo": False, "config": config}
    yield other
    await execute(database.durable, "DELETE FROM batches")


async def test_a_scheduler_that_ends_hands_over_what_is_on_its_way_and_nothing_else(
    options: dict[str, Any], database: Database, owner: Owner, provider: Provider, model: str, other: str
) -> None:
    told = Gate()
    provider.native.plan(model, told=told)
    await submit(database, owner, jsonl(lines(model, 2)))
    scheduler = asyncio.create_task(run_until_signal(Settings(**options)))
    await asyncio.wrap_future(told.reached)
    os.kill(os.getpid(), signal.SIGTERM)
    await eventually(lambda: HEALTH.draining, "the signal")
    await submit(database, owner, jsonl(lines(other, 2)))
    await pass_rounds(database, owner)  # it still leads
    told.release()
    await scheduler
    [batch] = provider.native.batches_for(model)
    query = "SELECT remote_id FROM native_parcels WHERE state = 'submitted'"
    assert await execute(database.relaxed, query) == [(batch.id,)]
    assert not provider.native.batches_for(other)


@pytest.mark.parametrize(("signals", "drain_seconds"), [(1, 0.01), (2, 86_400)])
@pytest.mark.usefixtures("other")
async def test_a_scheduler_that_ends_waits_for_a_provider_for_some_time_and_until_a_second_signal(
    options: dict[str, Any],
    database: Database,
    owner: Owner,
    provider: Provider,
    model: str,
    signals: int,
    drain_seconds: float,
    caplog: pytest.LogCaptureFixture,
) -> None:
    told = Gate()
    provider.native.plan(model, told=told)
    await submit(database, owner, jsonl(lines(model, 2)))
    scheduler = asyncio.create_task(run_until_signal(Settings(**options, drain_seconds=drain_seconds)))
    await asyncio.wrap_future(told.reached)
    for _ in range(signals):
        os.kill(os.getpid(), signal.SIGTERM)
        await eventually(lambda: HEALTH.draining, "the signal")
    await scheduler
    told.release()
    assert "ends while it hands parcels over" in caplog.text
