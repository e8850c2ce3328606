"""The scheduler's process, inside this one: its health and what it counts from its start to its end."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import Any

import pytest

from headrace.dev.valkey import EmbeddedValkey
from headrace.settings import Settings
from headrace.stores.database import Database
from headrace.telemetry.exposition import render_metrics
from headrace.telemetry.health import HEALTH
from headrace.telemetry.metrics import LEASES_LOST, QUEUE_JOBS, QUEUE_OLDEST, SCHEDULER_LEADS, STORE_SECONDS
from scheduler.main import run_until_signal
from tests.integration.job_rows import Jobs
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
