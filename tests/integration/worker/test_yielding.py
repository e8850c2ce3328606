"""Requests whose providers take no more calls leave their slots to others, if those would have to wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest
from redis.asyncio import Redis

from headrace.jobs.records import WaitingJob
from headrace.jobs.sql.find import find_fair
from headrace.jobs.state import State
from headrace.queue import read_message
from headrace.runtime.chores import going_on
from headrace.settings import Settings
from headrace.stores.redis import connect_redis
from headrace.telemetry import metrics
from tests.fakes.provider import Gate, Provider, answer, status
from tests.integration.job_rows import Jobs
from tests.integration.worker.test_executor import REQUEST, Rig, collected, executing, settings  # noqa: F401
from tests.metrics import Rise
from tests.waiting import eventually
from worker import intake, yielding

SLOTS = 6
CATALOGUE = """
[providers.narrow]
kind = "openai"
base_url = "{url}"
api_key = "env:TESTS_PROVIDER_KEY"
{limits}

[models."narrow-{model}"]
routes = ["narrow/narrow-{model}"]
"""


async def consume(redis: Redis, rig: Rig) -> None:
    """Hand the executor the wake-ups of jobs that were put back, as a worker's consumer does."""
    takes = set[asyncio.Task[None]]()
    try:
        while True:
            message = await redis.rpop("headrace.default")
            if isinstance(message, bytes):
                _, [job_ids] = read_message(message)
                takes.add(asyncio.create_task(rig.executor.take(job_ids, tier="default")))
            else:
                await asyncio.sleep(0.01)
    finally:
        for task in takes:
            task.cancel()


@pytest.fixture
async def redis(settings: Settings) -> AsyncIterator[Redis]:  # noqa: F811  (the fixture)
    async with connect_redis(settings.redis_url) as redis:
        yield redis


@pytest.fixture
def few(settings: Settings) -> Settings:  # noqa: F811  (the fixture)
    return settings.model_copy(update={"worker_slots": SLOTS})


def limit(settings: Settings, provider: Provider, model: str, limits: str) -> str:  # noqa: F811
    """Add a provider with a limit to the configuration, and return its model."""
    assert settings.config is not None
    with settings.config.open("a") as file:
        file.write(CATALOGUE.format(url=provider.url(), limits=limits, model=model))
    return f"narrow-{model}"


async def ask(rig: Rig, model: str) -> str:
    """Submit a request whose client waits, and hand it to the executor."""
    job_id = await rig.jobs.submit(model=model, request=REQUEST % model, background=False, origin="here")
    rig.executor._queue.wake([job_id], tier="default")
    return job_id


async def waits(rig: Rig, count: int) -> bool:
    """Return whether so many jobs have slots, and have got as far as they do before their provider takes a call."""
    attempts = rig.executor._leases.attempts
    return len(attempts) == count and all(attempt.routes for attempt in attempts)


@pytest.mark.parametrize(("why", "count"), [("limit", 12), ("limit", 45), ("pause", 12)])
async def test_a_request_for_another_provider_starts_though_every_slot_waits(
    few: Settings,
    jobs: Jobs,
    model: str,
    provider: Provider,
    redis: Redis,
    why: str,
    count: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(yielding, "_PATIENCE_SECONDS", 0.1)
    narrow = limit(few, provider, model, "max_concurrency = 1" if why == "limit" else "")
    gate, throttled = Gate(), Rise(metrics.THROTTLED)
    provider.script(narrow, answer(hold=gate) if why == "limit" else status(429, retry_after=3600))
    provider.always(model, answer("at once"))
    async with executing(few, jobs, model) as rig, going_on(partial(consume, redis, rig)):
        waiting = [await ask(rig, narrow)]
        await provider.call(narrow)
        waiting += [await ask(rig, narrow) for _ in range(count)]
        await eventually(lambda: rig.executor._slots.taken >= SLOTS, "jobs in every slot")
        for _ in range(3):
            assert await rig.ended(await ask(rig, model)) is State.COMPLETED
        assert throttled()["narrow", "busy"] > 0
        assert len(provider.calls_for(narrow)) == 1
        gate.release()
        if why == "limit":
            for job_id in waiting:
                assert await rig.ended(job_id) is State.COMPLETED
                row = await jobs.row(job_id)
                assert (row.retries, [tried["status"] for tried in row.tried]) == (0, ["completed"])
            assert len(provider.calls_for(narrow)) == len(waiting)


@pytest.mark.parametrize("others", ["for the same model", "in the background"])
async def test_requests_keep_their_slots_and_their_order_where_others_may_not_have_them(
    few: Settings,
    jobs: Jobs,
    model: str,
    provider: Provider,
    redis: Redis,
    others: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(yielding, "_PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(intake, "_RESERVE_SECONDS", 0.01)
    looks = 0

    async def counted(*args: Any, **options: Any) -> list[WaitingJob]:
        nonlocal looks
        looks += bool(options.get("besides"))
        return await find_fair(*args, **options)

    monkeypatch.setattr(intake, "find_fair", counted)
    narrow = limit(few, provider, model, "max_concurrency = 1")
    gate = Gate()
    provider.script(narrow, answer(hold=gate))
    provider.always(model, answer("later"))
    async with executing(few, jobs, model) as rig, going_on(partial(consume, redis, rig)):
        waiting = [await ask(rig, narrow) for _ in range(45)]
        await eventually(lambda: rig.executor._slots.taken >= SLOTS, "jobs in every slot")
        if others == "in the background":
            waiting.append(await rig.jobs.submit(model=model, request=REQUEST % model, background=True))
            rig.executor._queue.wake(waiting[-1:], tier="default")
        seen = looks
        await eventually(lambda: looks >= seen + 5, "looks for jobs that may have the slots")
        assert not provider.calls_for(model)
        gate.release()
        for job_id in waiting:
            assert await rig.ended(job_id) is State.COMPLETED
            assert (await jobs.row(job_id)).attempt == 1


async def test_a_request_keeps_its_slot_while_no_other_wants_it(
    few: Settings, jobs: Jobs, model: str, provider: Provider, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(yielding, "_PATIENCE_SECONDS", 0.0)
    narrow = limit(few, provider, model, "max_concurrency = 1")
    gate = Gate()
    provider.script(narrow, answer(hold=gate))
    async with executing(few, jobs, model) as rig, going_on(partial(consume, redis, rig)):
        waiting = [await ask(rig, narrow) for _ in range(SLOTS - 1)]
        await eventually(partial(waits, rig, len(waiting)), "requests that wait")
        for _ in range(5):  # one slot is free for these
            assert await rig.ended(await ask(rig, model)) is State.COMPLETED
        gate.release()
        for job_id in waiting:
            assert await rig.ended(job_id) is State.COMPLETED
            assert (await jobs.row(job_id)).attempt == 1
