"""Adaptive limits that two workers keep together over a real Valkey."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from headrace.dev.valkey import EmbeddedValkey
from headrace.errors import (
    UpstreamBusyError,
    UpstreamError,
    UpstreamOverloadedError,
    UpstreamRateLimitError,
    UpstreamRefusedError,
)
from headrace.stores.redis import connect_redis
from headrace.telemetry.metrics import ADAPTIVE_LIMIT
from tests.integration.worker.limits import Provider
from tests.metrics import values
from tests.service import free_port
from tests.waiting import PATIENCE, eventually
from worker import throttle as module
from worker.adaptive import INITIAL, AdaptiveLimit
from worker.adaptive_queue import AdaptivePermit, AdaptiveQueue
from worker.permits import UNLIMITED
from worker.throttle import Throttle

ROUTE = "openai/gpt"
LONG = 1000.0
"""Seconds of a lease that outlasts every test."""


PROVIDER = Provider()


@pytest.fixture
async def redis(valkey: EmbeddedValkey) -> AsyncIterator[Redis]:
    async with connect_redis(valkey.url) as redis:
        yield redis


@pytest.fixture
async def workers(redis: Redis) -> AsyncIterator[list[Throttle]]:
    workers = [Throttle(redis, lease_seconds=LONG) for _ in range(2)]
    yield workers
    for worker in workers:
        await worker.close()


def queue_of(throttle: Throttle) -> AdaptiveQueue:
    queue = throttle._queues[ROUTE]
    assert isinstance(queue, AdaptiveQueue)
    return queue


def limit_of(throttle: Throttle) -> int:
    return queue_of(throttle).limit.current.calls


class Call:
    """A call that is under way once it is admitted, until it is told how to end."""

    def __init__(self, throttle: Throttle, *, background: bool = False, account: str = "") -> None:
        self.admitted = asyncio.Event()
        self._end = asyncio.Event()
        self._error: Exception | None = None
        self.task = asyncio.create_task(self._run(throttle, background, account))

    async def _run(self, throttle: Throttle, background: bool, account: str) -> None:
        async with throttle.permit("openai", PROVIDER, {}, route=ROUTE, background=background, account=account):
            self.admitted.set()
            await self._end.wait()
            if self._error is not None:
                raise self._error

    async def started(self) -> Call:
        async with asyncio.timeout(PATIENCE):
            await self.admitted.wait()
        return self

    async def end(self, error: Exception | None = None, *, raises: type[Exception] | None = None) -> None:
        self._error = error
        self._end.set()
        if error is None:
            await self.task
        else:
            with pytest.raises(raises or type(error)):
                await self.task


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Throttle]:
    """The throttles that have asked Redis, once for each question that is answered."""
    asked, ask = [], Throttle.ask

    async def recorded(self: Throttle, *arguments: object) -> object:
        answer = await ask(self, *arguments)  # type: ignore[arg-type]
        asked.append(self)
        return answer

    monkeypatch.setattr(Throttle, "ask", recorded)
    return asked


async def fill(throttle: Throttle, count: int, *, background: bool = False) -> list[Call]:
    return [await Call(throttle, background=background).started() for _ in range(count)]


async def end(*calls: Call) -> None:
    for call in calls:
        await call.end()


async def test_a_route_that_has_refused_nothing_holds_back_background_jobs_alone(workers: list[Throttle]) -> None:
    throttle = workers[0]
    lines = await fill(throttle, INITIAL, background=True)
    late = Call(throttle, background=True)
    clients = await fill(throttle, INITIAL)
    assert not late.admitted.is_set()
    late.task.cancel()
    await end(*lines, *clients)


async def test_far_below_its_limit_a_route_asks_redis_for_no_call(
    workers: list[Throttle], asked: list[Throttle]
) -> None:
    began = time.monotonic()
    for _ in range(200):
        await end(*await fill(workers[0], 3, background=True))
    assert len(asked) <= 10 + (time.monotonic() - began), "only the reports of each second"


@pytest.mark.parametrize("error", [UpstreamRateLimitError(), UpstreamOverloadedError()])
async def test_an_overload_cuts_the_limit_at_both_workers(workers: list[Throttle], error: UpstreamError) -> None:
    first, second = workers
    calls = [*await fill(second, INITIAL // 2, background=True), *await fill(first, INITIAL // 2, background=True)]
    await calls.pop().end(error)
    assert limit_of(first) < INITIAL

    async def known() -> bool:
        queue_of(second).heartbeat()
        return limit_of(second) == limit_of(first)

    await eventually(known, "the second worker to know the limit")
    await end(*calls)


@pytest.mark.parametrize(
    "error",
    [
        UpstreamError(),
        UpstreamRefusedError(),
        UpstreamBusyError(),
        UpstreamRateLimitError(code="insufficient_quota"),
        ValueError(),
    ],
)
async def test_other_failures_change_no_limit(workers: list[Throttle], error: Exception) -> None:
    calls = await fill(workers[0], INITIAL, background=True)
    await calls.pop().end(error)
    assert queue_of(workers[0]).limit.current.cuts == 0
    await end(*calls)


async def test_clients_calls_come_before_the_lines_of_every_worker(
    workers: list[Throttle], asked: list[Throttle]
) -> None:
    busy, other = workers
    calls = await fill(busy, INITIAL, background=True)
    await calls.pop().end(UpstreamRateLimitError())
    waiting = [Call(busy, background=True) for _ in range(20)]
    questions = asked.count(busy)
    await eventually(lambda: asked.count(busy) > questions, "the lines' question")
    client = Call(other)
    await eventually(lambda: other in asked, "the client's question")
    async with asyncio.timeout(PATIENCE):
        while not client.admitted.is_set():
            if calls:
                await calls.pop(0).end()
            await asyncio.sleep(0.1)
    late = sum(call.admitted.is_set() for call in waiting)
    assert late <= 3, "those that started before the other worker's question came"
    for call in waiting:
        call.task.cancel()
    await end(client, *calls)


async def test_two_workers_find_a_capacity_and_rarely_exceed_it(workers: list[Throttle]) -> None:
    capacity, under_way, made, refused = 24, 0, 0, 0
    dice = random.Random(3)

    async def lane(throttle: Throttle, *, background: bool) -> None:
        nonlocal under_way, made, refused
        while made < 6000:
            with contextlib.suppress(UpstreamRateLimitError):
                async with throttle.permit("openai", PROVIDER, {}, route=ROUTE, background=background):
                    made += 1
                    if under_way >= capacity:
                        refused += 1
                        raise UpstreamRateLimitError
                    under_way += 1
                    try:
                        await asyncio.sleep(dice.uniform(0.01, 0.04))
                    finally:
                        under_way -= 1

    async with asyncio.timeout(PATIENCE * 4):
        await asyncio.gather(
            *(lane(throttle, background=True) for throttle in workers for _ in range(40)),
            *(lane(throttle, background=False) for throttle in workers for _ in range(3)),
        )
    assert refused < 0.03 * made
    assert limit_of(workers[0]) > capacity / 2


async def test_without_redis_calls_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    async with connect_redis(f"redis://127.0.0.1:{free_port()}/0") as nowhere:
        throttle = Throttle(nowhere, lease_seconds=LONG)
        calls = await fill(throttle, INITIAL, background=True)
        assert not throttle.shared
        await calls.pop().end(UpstreamRateLimitError())
        assert limit_of(throttle) < INITIAL
        await end(*calls)
        await throttle.close()


async def test_a_newer_worker_learns_the_limit_of_the_others(workers: list[Throttle], redis: Redis) -> None:
    calls = await fill(workers[0], INITIAL, background=True)
    await calls.pop().end(UpstreamRateLimitError())
    await workers[0].close()
    newer = Throttle(redis, lease_seconds=LONG)
    late = Call(newer, background=True)
    await asyncio.sleep(0)

    async def known() -> bool:
        queue_of(newer).heartbeat()
        return limit_of(newer) == limit_of(workers[0])

    await eventually(known, "the new worker to know the limit")
    late.task.cancel()
    await end(*calls)
    await newer.close()


async def test_the_limits_in_use_show(redis: Redis) -> None:
    throttle = Throttle(redis, lease_seconds=LONG, measured=lambda route: route == ROUTE)
    calls = await fill(throttle, 4, background=True)
    async with throttle.permit("openai", PROVIDER, {}, route="openai/by-a-glob"):
        assert throttle.adaptive_limits() == {ROUTE: INITIAL, "openai/by-a-glob": INITIAL}
    await calls.pop().end(UpstreamRateLimitError())
    shown = values(ADAPTIVE_LIMIT)
    assert shown[ROUTE,] == throttle.adaptive_limits()[ROUTE] == limit_of(throttle) < INITIAL
    assert ("openai/by-a-glob",) not in shown
    await end(*calls)
    assert throttle.adaptive_limits() == {}
    await throttle.close()


async def test_adaptation_can_be_turned_off(workers: list[Throttle]) -> None:
    fixed = Provider(adaptive_concurrency=False)
    assert workers[0].permit("openai", fixed, {}, route=ROUTE) is UNLIMITED


async def test_clients_that_name_many_models_make_no_more_than_so_many_queues(
    workers: list[Throttle], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MOST_QUEUES", 10)
    throttle = workers[0]
    for number in range(100):
        async with throttle.permit("openai", PROVIDER, {}, route=f"openai/model-{number}"):
            pass
        await asyncio.sleep(0)
    assert len(throttle._queues) <= 10


async def test_a_call_that_is_cancelled_as_it_gets_its_permit_holds_no_other_up(
    workers: list[Throttle], monkeypatch: pytest.MonkeyPatch
) -> None:
    throttle = workers[0]
    running = await Call(throttle, background=True).started()
    queue = queue_of(throttle)

    def allow_one() -> None:
        queue.limit.current = queue.limit.current._replace(calls=1)
        queue._apply()

    allow_one()
    cancelled = Call(throttle, background=True)
    await eventually(lambda: len(queue._waiting) == 1, "the second call to wait")
    begin = AdaptiveQueue._begin

    def begin_and_cancel(self: AdaptiveQueue, permit: AdaptivePermit, now: float, level: int) -> None:
        begin(self, permit, now, level)
        cancelled.task.cancel()

    with monkeypatch.context() as patched:
        patched.setattr(AdaptiveQueue, "_begin", begin_and_cancel)
        await running.end()
        with contextlib.suppress(asyncio.CancelledError):
            await cancelled.task
    allow_one()
    for permit in queue._young:
        permit.started -= 3600  # a provider would have refused it long ago
    later = await Call(throttle, background=True).started()
    await later.end()


async def test_a_call_gives_its_permit_back_whatever_the_line_makes_of_its_end(
    workers: list[Throttle], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> bool:
        raise ZeroDivisionError

    calls = await fill(workers[0], 2)
    monkeypatch.setattr(AdaptiveLimit, "overloaded", fail)
    await calls.pop().end(UpstreamOverloadedError(), raises=ZeroDivisionError)
    assert queue_of(workers[0])._held == 1
    await end(*calls)
