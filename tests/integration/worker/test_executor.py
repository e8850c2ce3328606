"""One worker's executor in this process, on real stores and a real provider: leases, lost attempts, memory."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import warnings
import weakref
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from redis.asyncio import Redis

import worker.outcome
import worker.run
from headrace.dev.valkey import EmbeddedValkey
from headrace.events.wire import WORK_CHANNEL, job_channel
from headrace.jobs.state import State
from headrace.queue import JobQueue
from headrace.runtime.chores import going_on
from headrace.settings import Settings
from headrace.stores.connections import Row
from headrace.stores.database import execute
from headrace.stores.redis import connect_redis
from tests.fakes.provider import (
    DONE,
    RESET,
    Gate,
    Provider,
    answer,
    chunk,
    connection_reset,
    settled,
    status,
    stream,
)
from tests.faults.chaos.proxy import Link, Mode, postgres_socket
from tests.integration.job_rows import Jobs
from tests.waiting import PATIENCE, eventually
from tests.wakeups import leave_unsent
from worker.attempt import Attempt
from worker.circuits import Circuits
from worker.executor import Executor

REQUEST = '{"model": "%s", "messages": [{"role": "user", "content": "Hello"}]}'


class Rig:
    """An executor, with the actions of a test."""

    def __init__(self, executor: Executor, jobs: Jobs, model: str) -> None:
        self.executor = executor
        self.jobs = jobs
        self.model = model

    async def submit(self, **changes: Any) -> str:
        """Insert a job for the test's model."""
        return await self.jobs.submit(model=self.model, request=REQUEST % self.model, **changes)

    async def run(self, **changes: Any) -> str:
        """Submit a job and hand it to the executor."""
        job_id = await self.submit(**changes)
        await self.executor.take([job_id], tier="default")
        return job_id

    async def ended(self, job_id: str) -> State:
        """Return the final state of a job."""
        await eventually(lambda: self._is_final(job_id), "its end")
        return await self.jobs.state(job_id)

    async def _is_final(self, job_id: str) -> bool:
        return (await self.jobs.state(job_id)).is_final

    async def attempt(self, job_id: str) -> Attempt:
        """Return a job's attempt, once it runs here."""

        def found() -> Attempt | None:
            return next((attempt for attempt in self.executor._leases.attempts if attempt.job.id == job_id), None)

        attempt: Attempt = await eventually(found, "the attempt")
        return attempt

    async def usage(self, job_id: str) -> list[Row]:
        """Return attempt and kind of a job's rows in the ledger."""
        statement = "SELECT attempt, kind FROM usage WHERE job_id = %(id)s ORDER BY attempt, kind"
        return list(await execute(self.jobs.database.durable, statement, {"id": job_id}))


@contextlib.asynccontextmanager
async def executing(settings: Settings, jobs: Jobs, model: str) -> AsyncIterator[Rig]:
    async with Executor.running(settings, line_slots=8) as executor:
        yield Rig(executor, jobs, model)


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """Run the garbage collector after a test's loop: redis-py leaves a cancelled connection to it."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture
def settings(
    database_url: str, valkey: EmbeddedValkey, config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Settings:
    monkeypatch.setenv("TESTS_PROVIDER_KEY", "sk-tests")
    path = tmp_path / "headrace.toml"
    path.write_text(config)
    options: dict[str, Any] = {
        "DATABASE_URL": database_url,
        "REDIS_URL": valkey.url,
        "config": path,
        "drain_seconds": 0,
        "heartbeat_seconds": 0.5,
        "lease_seconds": 30,
        "circuit_failures": 1_000_000,
    }
    return Settings(**options)


@pytest.fixture
async def rig(settings: Settings, jobs: Jobs, model: str) -> AsyncIterator[Rig]:
    async with executing(settings, jobs, model) as rig:
        yield rig


@pytest.fixture
async def redis(valkey: EmbeddedValkey) -> AsyncIterator[Redis]:
    async with connect_redis(valkey.url) as redis:
        yield redis


# -- memory -----------------------------------------------------------------------------------------------------------


async def test_an_attempt_that_has_ended_is_freed_without_the_garbage_collector(
    rig: Rig, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[weakref.ref[Attempt]] = []

    def recorded(*args: Any, **kwargs: Any) -> Attempt:
        attempt = Attempt(*args, **kwargs)
        made.append(weakref.ref(attempt))
        return attempt

    monkeypatch.setattr(worker.run, "Attempt", recorded)
    gate = Gate()
    provider.script(
        rig.model,
        answer("streamed to those who watch"),
        status(500),
        answer("after a retry"),
        stream(chunk("broken"), RESET),
        answer("again"),
        connection_reset,
        answer("after a reset"),
        status(400),
        answer("never seen", hold=gate),
    )
    gc.collect()
    gc.disable()
    try:
        for _ in range(4):
            job_id = await rig.run()
            # The wake-up for the next attempt is in Redis, for which no consumer runs here.
            while not await rig._is_final(job_id):
                await rig.executor.take([job_id], tier="default")
                await asyncio.sleep(0.05)
            assert await rig.jobs.state(job_id) is State.COMPLETED
        assert await rig.ended(await rig.run()) is State.FAILED
        cancelled = await rig.run()
        await settled(gate.reached)
        await rig.jobs.cancel(cancelled)
        assert await rig.ended(cancelled) is State.CANCELLED
        gate.release()
        assert await rig.ended(await rig.run(background=False)) is State.COMPLETED
        assert len(made) >= 9
        await eventually(lambda: [ref() for ref in made] == [None] * len(made), "their memory to be free")
    finally:
        gc.enable()


async def test_jobs_leave_nothing_to_the_garbage_collector(rig: Rig, provider: Provider) -> None:
    async def run_many(count: int) -> int:
        gc.collect()
        job_ids = [await rig.run(background=background) for background in (True, False) for _ in range(count)]
        for job_id in job_ids:
            assert await rig.ended(job_id) is State.COMPLETED
        return gc.collect()

    await run_many(1)
    # A test of traces in this process may have left an exporter that still tries to send: its errors are garbage too.
    await eventually(
        lambda: not any(thread.name.startswith(("last spans", "Otel")) for thread in threading.enumerate()),
        "the exporters of other tests to end",
    )
    gc.disable()
    try:
        assert await run_many(20) < 5 * 40, "a call left dozens of objects when httpx's cycle was not broken"
    finally:
        gc.enable()


# -- lost attempts ----------------------------------------------------------------------------------------------------


async def test_a_worker_that_claims_a_lost_job_again_looks_after_the_new_attempt_and_pays_for_the_old_one(
    rig: Rig, provider: Provider
) -> None:
    first, second = Gate(), Gate()
    provider.script(rig.model, stream(chunk("one"), first), answer("two", hold=second))
    job_id = await rig.run()
    await eventually(lambda: _deltas(rig, job_id), "a kept delta")
    await rig.jobs.lose(job_id)
    assert [moved.id for moved in await rig.jobs.rescue()] == [job_id]
    await rig.executor.take([job_id], tier="default")
    await settled(second.reached)
    await rig.jobs.lose(job_id)
    await eventually(lambda: _held(rig, job_id), "a renewed lease")  # of the second attempt, by a heartbeat
    await eventually(lambda: rig.usage(job_id), "the row in the ledger")
    second.release()
    assert await rig.ended(job_id) is State.COMPLETED
    assert [tuple(row) for row in await rig.usage(job_id)] == [(1, "discarded"), (2, "counted")]
    assert (await rig.jobs.row(job_id)).attempt == 2
    first.release()


async def test_what_a_lost_attempt_spent_is_written_whichever_worker_has_the_job(rig: Rig, provider: Provider) -> None:
    gate = Gate()
    provider.script(rig.model, stream(chunk("one"), gate, chunk(finish="stop"), DONE))
    job_id = await rig.run()
    await eventually(lambda: _deltas(rig, job_id), "a kept delta")
    attempt = await rig.attempt(job_id)
    attempt.ending = True  # no heartbeat stops it: the answer comes before the loss is known
    await rig.jobs.lose(job_id)
    await rig.jobs.rescue()
    [taken] = await rig.jobs.claim(job_id, worker="another")
    gate.release()
    await eventually(lambda: rig.usage(job_id), "the row in the ledger")
    assert [tuple(row) for row in await rig.usage(job_id)] == [(1, "discarded")]
    row = await rig.jobs.row(job_id)
    assert (row.state, row.attempt, row.worker) == ("running", taken.attempt, "another")


async def test_a_worker_whose_lease_may_have_expired_publishes_nothing_until_it_is_renewed(
    settings: Settings, jobs: Jobs, model: str, provider: Provider, redis: Redis
) -> None:
    first, second, last = Gate(), Gate(), Gate()
    provider.script(
        model, stream(chunk("one"), first, chunk("two"), second, chunk("three"), last, chunk(finish="stop"), DONE)
    )
    slow = settings.model_copy(update={"heartbeat_seconds": 3600.0})
    async with executing(slow, jobs, model) as rig, redis.pubsub() as pubsub:
        job_id = await rig.submit()
        await pubsub.subscribe(job_channel(job_id))
        await rig.executor.take([job_id], tier="default")
        await _heard(pubsub, b"one")
        attempt = await rig.attempt(job_id)
        valid, attempt.lease.until = attempt.lease.until, 0.0
        first.release()
        await eventually(lambda: attempt.deltas.seq == 2, "the second delta")
        attempt.lease.until = valid
        second.release()
        assert b"two" not in await _heard(pubsub, b"three")
        last.release()
        assert await rig.ended(job_id) is State.COMPLETED
        assert b"onetwothree" in (await jobs.row(job_id)).response.encode()


async def test_a_job_that_postgres_has_as_this_workers_is_claimed_again_by_the_worker_that_did_not_hear_so(
    rig: Rig, provider: Provider
) -> None:
    job_id = await rig.submit()
    await rig.jobs.claim(job_id, worker=rig.executor._claims.worker)
    await rig.executor.take([job_id], tier="default")
    assert await rig.ended(job_id) is State.COMPLETED
    assert (await rig.jobs.row(job_id)).attempt == 2


async def test_a_job_that_comes_again_while_it_runs_here_is_not_run_twice(rig: Rig, provider: Provider) -> None:
    gate = Gate()
    provider.script(rig.model, answer("once", hold=gate))
    job_id = await rig.run()
    await settled(gate.reached)
    await rig.executor.take([job_id, await rig.run()], tier="default")
    await eventually(lambda: len(provider.calls_for(rig.model)) == 2, "the call of the other job")
    gate.release()
    assert await rig.ended(job_id) is State.COMPLETED
    assert (await rig.jobs.row(job_id)).attempt == 1


# -- a worker without wake-ups ----------------------------------------------------------------------------------------


async def test_while_redis_is_full_a_worker_finds_jobs_in_postgres_and_publishes_their_events(
    settings: Settings, jobs: Jobs, model: str, redis: Redis
) -> None:
    # So the worker looks for jobs because Redis refuses writes, and not because no wake-up has come for a while.
    patient = settings.model_copy(update={"resend_seconds": 3600.0})
    async with executing(patient, jobs, model) as rig, redis.pubsub() as pubsub:
        await redis.config_set("maxmemory", "1")
        try:
            job_id = await rig.submit()
            await pubsub.subscribe(job_channel(job_id))
            await _heard(pubsub, b" completed ")
            assert await rig.ended(job_id) is State.COMPLETED
        finally:
            await redis.config_set("maxmemory", "0")


async def test_the_end_of_a_job_with_a_webhook_calls_the_scheduler(
    settings: Settings, jobs: Jobs, model: str, redis: Redis
) -> None:
    async with executing(settings, jobs, model) as rig, redis.pubsub() as pubsub:
        await pubsub.subscribe(WORK_CHANNEL)
        assert await rig.ended(await rig.run()) is State.COMPLETED
        await redis.publish(WORK_CHANNEL, b"none before")
        assert await _heard(pubsub, b"none before") == b"none before"
        assert await rig.ended(await rig.run(webhook="http://127.0.0.1:9/")) is State.COMPLETED
        assert await _heard(pubsub, b"work") == b"work"


# -- a worker without Postgres ----------------------------------------------------------------------------------------


async def test_a_worker_that_cannot_reach_postgres_takes_no_jobs_and_leaves_them_to_others(
    settings: Settings, jobs: Jobs, model: str, provider: Provider, redis: Redis
) -> None:
    url = urlsplit(settings.database_url)
    link = Link(postgres_socket(settings.database_url))
    behind = settings.model_copy(
        update={"database_url": f"postgresql://{url.username}@127.0.0.1:{link.port}{url.path}"}
    )
    gate = Gate()
    provider.script(model, answer("runs on", hold=gate))
    try:
        async with executing(behind, jobs, model) as rig:
            running = await rig.run()
            await settled(gate.reached)
            link.be(Mode.STALL)
            left = [await rig.submit() for _ in range(3)]
            await rig.executor.take(left, tier="flex")
            await eventually(lambda: not rig.executor.reachable.is_set(), "Postgres to be missed")
            await eventually(lambda: _waiting(redis, "flex", left), "the wake-ups")
            late = await rig.submit()
            await rig.executor.take([late], tier="default")
            await eventually(lambda: _waiting(redis, "default", [late]), "the late wake-up")
            assert [await jobs.state(job_id) for job_id in (*left, late)] == [State.QUEUED] * 4
            link.be(Mode.CUT)
            await eventually(rig.executor.reachable.is_set, "Postgres to answer")
            gate.release()
            assert await rig.ended(running) is State.COMPLETED
            for job_id in left:  # the claim that got no answer is made again
                assert await rig.ended(job_id) is State.COMPLETED
    finally:
        link.close()


async def test_a_worker_under_whose_hands_the_schema_changes_takes_nothing_and_loses_nothing(
    rig: Rig, provider: Provider, redis: Redis
) -> None:
    gate = Gate()
    provider.script(rig.model, answer("kept", hold=gate))
    running = await rig.run()
    await settled(gate.reached)
    await execute(rig.jobs.database.durable, "ALTER TABLE jobs RENAME provider TO provider_then")
    try:
        gate.release()
        await eventually(lambda: not rig.executor.reachable.is_set(), "the end that cannot be written")
        late = await rig.submit()
        await rig.executor.take([late], tier="default")
        await eventually(lambda: _waiting(redis, "default", [late]), "the wake-up")
        assert await rig.jobs.state(late) is State.QUEUED
    finally:
        await execute(rig.jobs.database.durable, "ALTER TABLE jobs RENAME provider_then TO provider")
    assert await rig.ended(running) is State.COMPLETED
    await eventually(rig.executor.reachable.is_set, "the schema to be found")
    assert len(provider.calls_for(rig.model)) == 1


async def _deltas(rig: Rig, job_id: str) -> bool:
    statement = "SELECT 1 FROM job_deltas WHERE job_id = %(id)s"
    return bool(await execute(rig.jobs.database.durable, statement, {"id": job_id}))


async def _held(rig: Rig, job_id: str) -> bool:
    statement = "SELECT lease_until > now() FROM jobs WHERE id = %(id)s"
    return bool((await execute(rig.jobs.database.durable, statement, {"id": job_id}))[0][0])


async def _waiting(redis: Redis, tier: str, job_ids: list[str]) -> bool:
    backlog = await JobQueue(redis, leave_unsent).backlog(tier)
    assert backlog is not None
    return set(job_ids) <= set(backlog.job_ids)


async def _heard(pubsub: Any, text: bytes) -> bytes:
    """Return all that is published up to a message with `text` in it."""
    heard = b""
    async with asyncio.timeout(PATIENCE):
        while text not in heard:
            message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=1)
            heard += b"" if message is None else message["data"]
    return heard


# -- jobs for another worker ------------------------------------------------------------------------------------------


async def test_a_worker_that_cannot_reach_postgres_tells_the_others_that_it_takes_no_jobs(
    settings: Settings, jobs: Jobs, model: str, redis: Redis
) -> None:
    url = urlsplit(settings.database_url)
    link = Link(postgres_socket(settings.database_url))
    behind = settings.model_copy(
        update={"database_url": f"postgresql://{url.username}@127.0.0.1:{link.port}{url.path}"}
    )
    here = Circuits(redis, worker="here")

    async def served(expected: bool) -> bool:
        await here.refresh()
        return here.served_elsewhere("any", "default") is expected

    try:
        async with executing(behind, jobs, model) as rig:
            await eventually(partial(served, True), "news of the worker")
            link.be(Mode.STALL)
            await rig.run()
            await eventually(partial(served, False), "news that it takes no jobs")
            link.be(Mode.CUT)
            await eventually(partial(served, True), "news that it takes jobs again")
    finally:
        link.close()


async def test_a_job_that_failed_once_is_called_for_here_once_no_other_worker_has_taken_it(
    rig: Rig, provider: Provider, redis: Redis
) -> None:
    idle = Circuits(redis, worker="idle")  # it tells that its calls do not fail, and it takes no message

    async def better() -> bool:
        await idle.refresh()
        await rig.executor._circuits.refresh()
        return rig.executor._circuits.served_elsewhere("fake", "default")

    await eventually(better, "the other worker")
    provider.script(rig.model, status(500), answer("from here"))
    async with going_on(idle.run):
        job_id = await rig.run()

        async def retaken() -> bool:
            await rig.executor.take([job_id], tier="default")
            return await rig._is_final(job_id)

        await eventually(retaken, "its end")
    assert await rig.jobs.state(job_id) is State.COMPLETED
    assert len(provider.calls_for(rig.model)) == 2
    handed_over = (await rig.jobs.row(job_id)).attempt - 2
    assert 0 < handed_over <= worker.run._MOST_HANDOVERS


# -- configurations that differ ---------------------------------------------------------------------------------------


async def test_a_worker_without_the_model_leaves_the_job_to_another_and_fails_it_without_one(
    settings: Settings, jobs: Jobs, model: str, provider: Provider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider.script(model, answer("from the worker that has the model"))
    other = tmp_path / "other.toml"
    other.write_text('[providers.other]\nkind = "openai"\nbase_url = "http://127.0.0.1:9/v1"\n')
    async with executing(settings.model_copy(update={"config": other}), jobs, model) as without:
        async with executing(settings, jobs, model) as rig:
            await eventually(lambda: without.executor._circuits.tier_served_elsewhere("default"), "the other worker")
            job_id = await without.run()
            while not await rig._is_final(job_id):
                await rig.executor.take([job_id], tier="default")
                await asyncio.sleep(0.05)
            assert await jobs.state(job_id) is State.COMPLETED
            monkeypatch.setattr(worker.outcome, "_MOST_ATTEMPTS_WITHOUT_MODEL", 1)
            job_id = await without.run()
            assert await without.ended(job_id) is State.FAILED
        statement = "SELECT error FROM jobs WHERE id = %(id)s"
        rows = await execute(jobs.database.durable, statement, {"id": job_id})
        assert "configuration does not have this model" in str(rows[0][0])
