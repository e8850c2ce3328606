"""Circuits that two workers share over a real Valkey."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from headrace import live
from headrace.chores import going_on
from headrace.embedded import EmbeddedValkey
from headrace.errors import (
    UpstreamError,
    UpstreamKeyError,
    UpstreamRateLimitError,
    UpstreamRefusedError,
    UpstreamTimeoutError,
    UpstreamUnavailableError,
)
from tests.waiting import eventually
from worker.circuit import _KEY, Circuits, Rules

RULES = Rules(failures=5, cooling_seconds=60)
HASTY = Rules(failures=5, cooling_seconds=0.02, probe_seconds=60)
NAME = "openai"


@pytest.fixture
async def redis(valkey: EmbeddedValkey) -> AsyncIterator[Redis]:
    async with live.connect(valkey.url) as redis:
        yield redis


async def end(circuits: Circuits, error: BaseException | None = None, times: int = 1) -> None:
    for _ in range(times):
        with contextlib.suppress(UpstreamError):
            async with circuits.call(NAME):
                if error is not None:
                    raise error


async def allowed(circuits: Circuits) -> None:
    await eventually(lambda: circuits.allows(NAME), "the end of the cooling time")


async def opened(*all_circuits: Circuits) -> None:
    """Open a circuit, and return once its cooling time is over."""
    await end(all_circuits[0], UpstreamError(), 5)
    assert all_circuits[0]._troubled[NAME].open_until  # it may be over by now, on a busy machine
    for circuits in all_circuits:
        await circuits.refresh()
        await allowed(circuits)


async def test_what_opens_in_one_worker_is_open_in_all(redis: Redis) -> None:
    first, second = Circuits(redis, rules=RULES), Circuits(redis, rules=RULES)
    await end(first, UpstreamTimeoutError(), 4)
    assert first.allows(NAME)
    await end(first, UpstreamError())
    assert not first.allows(NAME)
    await first.refresh()
    await second.refresh()
    assert not second.allows(NAME)
    assert 40 < second.open_seconds(NAME) <= 75
    with pytest.raises(UpstreamUnavailableError) as refused:
        await end_loudly(second)
    assert refused.value.retry_after == pytest.approx(second.open_seconds(NAME), abs=1)
    assert second.allows("another")


async def end_loudly(circuits: Circuits) -> None:
    async with circuits.call(NAME):
        pass


async def test_failures_of_all_workers_add_up(redis: Redis) -> None:
    workers = [Circuits(redis, rules=RULES) for _ in range(5)]
    for worker in workers:
        await end(worker, UpstreamError())
    await asyncio.gather(*(worker.refresh() for worker in workers))
    await asyncio.gather(*(worker.refresh() for worker in workers))
    assert [worker.allows(NAME) for worker in workers] == [False] * 5


async def test_an_answer_anywhere_starts_the_count_anew(redis: Redis) -> None:
    first, second = Circuits(redis, rules=RULES), Circuits(redis, rules=RULES)
    await end(first, UpstreamError(), 4)
    await first.refresh()
    await second.refresh()
    await end(second)
    await second.refresh()
    await first.refresh()
    await end(first, UpstreamError(), 4)
    assert first.allows(NAME)


@pytest.mark.parametrize(
    "error", [UpstreamRefusedError(), UpstreamKeyError(), UpstreamRateLimitError(), ValueError(), TimeoutError()]
)
async def test_what_is_not_the_providers_failure_opens_nothing(redis: Redis, error: Exception) -> None:
    circuits = Circuits(redis, rules=RULES)
    for _ in range(20):
        with pytest.raises(type(error)):
            async with circuits.call(NAME):
                raise error
    assert circuits.well(NAME)


async def test_calls_without_trouble_write_nothing(redis: Redis) -> None:
    circuits = Circuits(redis, rules=RULES)
    await end(circuits, times=100)
    await circuits.refresh()
    assert not await redis.exists(_KEY)


async def test_one_call_of_all_workers_probes_and_its_answer_closes(redis: Redis) -> None:
    workers = [Circuits(redis, rules=HASTY) for _ in range(3)]
    await opened(*workers)
    answers = await asyncio.gather(
        *(worker.enter(NAME) for worker in workers for _ in range(10)), return_exceptions=True
    )
    assert [answer for answer in answers if not isinstance(answer, UpstreamUnavailableError)] == [True]
    prober = workers[answers.index(True) // 10]
    prober.ended(NAME, None, probe=True)
    for worker in (prober, *workers):
        await worker.refresh()
    assert [await worker.enter(NAME) for worker in workers] == [False] * 3


async def test_a_probe_that_fails_opens_it_for_longer(redis: Redis) -> None:
    first, second = Circuits(redis, rules=HASTY), Circuits(redis, rules=HASTY)
    await opened(first, second)
    for worker in (first, second, first, second):
        await worker.refresh()
        await allowed(worker)
        await end(worker, UpstreamError())
        await worker.refresh()
    [kept] = (await redis.hgetall(_KEY)).values()
    assert int(kept.split()[1]) == 5, "trips"
    assert 0.02 * 16 * 0.7 < second.open_seconds(NAME) <= 0.02 * 16 * 1.25


async def test_a_call_from_before_it_opened_does_not_close_it(redis: Redis) -> None:
    circuits = Circuits(redis, rules=RULES)
    async with circuits.call(NAME):
        await end(circuits, UpstreamError(), 5)
    assert not circuits.allows(NAME)


async def test_a_probe_that_is_cancelled_lets_another_one_through(redis: Redis) -> None:
    first, second = Circuits(redis, rules=HASTY), Circuits(redis, rules=HASTY)
    await opened(first, second)
    entered = asyncio.Event()

    async def probe() -> None:
        async with first.call(NAME):
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(probe())
    await entered.wait()
    with pytest.raises(UpstreamUnavailableError):
        await second.enter(NAME)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await first.refresh()
    await second.refresh()
    assert await second.enter(NAME)


async def test_a_stream_that_begins_to_answer_closes_it_at_once(redis: Redis) -> None:
    circuits = Circuits(redis, rules=HASTY)
    await opened(circuits)
    async with circuits.call(NAME) as call:
        assert not circuits.allows(NAME)
        call.answered()
        assert circuits.allows(NAME)


async def test_a_provider_that_names_its_time_is_paused_in_all_workers(redis: Redis) -> None:
    first, second = Circuits(redis, rules=RULES), Circuits(redis, rules=RULES)
    await end(first, UpstreamRateLimitError(retry_after=300))
    assert not first.allows(NAME)
    await first.refresh()
    await second.refresh()
    assert 290 < second.paused_seconds(NAME) <= 300
    assert 290 < second.open_seconds(NAME) <= 300
    with pytest.raises(UpstreamRateLimitError):
        await second.enter(NAME)


async def test_no_provider_is_believed_for_ever(redis: Redis) -> None:
    circuits = Circuits(redis, rules=RULES)
    circuits.pause(NAME, 1e12)
    assert circuits.paused_seconds(NAME) <= 3600


async def test_what_is_over_leaves_nothing_behind(redis: Redis) -> None:
    circuits = Circuits(redis, rules=Rules(forget_seconds=0.01))
    circuits.pause(NAME, 0.05)
    await end(circuits, UpstreamError())
    await circuits.refresh()
    assert await redis.exists(_KEY)

    async def forgotten() -> bool:
        await circuits.refresh()
        return not await redis.exists(_KEY)

    await eventually(forgotten, "the record to be forgotten")
    assert circuits.well(NAME)


async def test_without_redis_each_worker_goes_by_what_it_knows(
    redis: Redis, valkey: EmbeddedValkey, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = Circuits(redis, rules=HASTY), Circuits(redis, rules=HASTY)
    valkey.stop()
    with caplog.at_level(logging.WARNING):
        await end(first, UpstreamError(), 5)
        assert not first.allows(NAME)
        for _ in range(3):
            await first.refresh()
            await second.refresh()
    assert caplog.text.count("Redis is away") == 2, "once for each"
    assert second.allows(NAME)
    await allowed(first)
    assert await first.enter(NAME), "it probes alone"
    with pytest.raises(UpstreamUnavailableError):
        await first.enter(NAME)
    first.ended(NAME, None, probe=True)
    assert first.allows(NAME)
    valkey.start()
    await end(second, UpstreamError(), 5)
    await second.refresh()
    await first.refresh()
    assert not first.well(NAME)


async def test_workers_learn_by_themselves(redis: Redis) -> None:
    first, second = (Circuits(redis, rules=RULES, poll_seconds=0.02) for _ in range(2))
    async with going_on(first.run, second.run):
        first.pause(NAME, 60)
        await eventually(lambda: not second.allows(NAME), "the second to learn of the pause")
        await redis.delete(_KEY)
        await eventually(lambda: first.allows(NAME) and second.allows(NAME), "both to learn of its end")
