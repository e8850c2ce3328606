"""Paths of several workers, which tell each other of their circuits over a real Valkey."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import orjson
import pytest
from redis.asyncio import Redis

from headrace.dev.valkey import EmbeddedValkey
from headrace.errors import (
    UpstreamBusyError,
    UpstreamError,
    UpstreamKeyError,
    UpstreamRateLimitError,
    UpstreamRefusedError,
    UpstreamTimeoutError,
    UpstreamUnavailableError,
)
from headrace.events.subscription import hear_cancellations
from headrace.events.wire import calls_channel
from headrace.runtime.chores import going_on
from headrace.runtime.machine import machine_id
from headrace.runtime.presence import KEY, About, Calls, View, read_presence
from headrace.stores.redis import connect_redis
from tests.waiting import eventually
from worker.circuit import Rules
from worker.circuits import Circuits

RULES = Rules(failures=5, cooling_seconds=60)
HASTY = Rules(failures=5, cooling_seconds=0.02, probe_seconds=60)
NAME = "openai"
_numbers = itertools.count()


@pytest.fixture
async def redis(valkey: EmbeddedValkey) -> AsyncIterator[Redis]:
    async with connect_redis(valkey.url) as redis:
        yield redis


def worker(redis: Redis, rules: Rules = RULES, *, tiers: Sequence[str] = ("default",), **options: Any) -> Circuits:
    return Circuits(redis, worker=f"host:{next(_numbers)}", tiers=tiers, rules=rules, **options)


async def end(circuits: Circuits, error: BaseException | None = None, times: int = 1, *, account: str = "") -> None:
    for _ in range(times):
        with contextlib.suppress(UpstreamError):
            async with circuits.call(NAME, account=account):
                if error is not None:
                    raise error


async def told(*workers: Circuits) -> None:
    """Have each worker publish its state, and then read the state of the others."""
    for circuits in workers * 2:
        await circuits.refresh()


async def allowed(circuits: Circuits) -> None:
    await eventually(lambda: circuits.allows(NAME), "the end of the cooling time")


def probes(circuits: Circuits, account: str = "") -> bool:
    """Enter a call, and tell whether it probes."""
    return bool(circuits.troubled.enter(NAME, account))


# -- one worker -------------------------------------------------------------------------------------------------------


async def test_it_opens_after_failures_in_a_row_and_says_for_how_long(redis: Redis) -> None:
    circuits = worker(redis)
    await end(circuits, UpstreamTimeoutError(), 4)
    assert circuits.allows(NAME)
    await end(circuits, UpstreamError())
    assert not circuits.allows(NAME)
    assert 40 < circuits.troubled.seconds(NAME) <= 75
    with pytest.raises(UpstreamUnavailableError) as refused:
        circuits.troubled.enter(NAME)
    assert refused.value.retry_after == pytest.approx(circuits.troubled.seconds(NAME), abs=1)
    assert circuits.allows("another")


@pytest.mark.parametrize(
    "error", [UpstreamRefusedError(), UpstreamKeyError(), UpstreamRateLimitError(), ValueError(), TimeoutError()]
)
async def test_a_failure_that_is_not_the_providers_opens_nothing(redis: Redis, error: Exception) -> None:
    circuits = worker(redis)
    for _ in range(20):
        with pytest.raises(type(error)):
            async with circuits.call(NAME):
                raise error
    assert not circuits.troubled.has(NAME)


async def test_a_worker_tells_the_others_nothing_of_calls_without_trouble(redis: Redis) -> None:
    circuits = worker(redis)
    await end(circuits, times=100)
    assert not circuits.troubled.has(NAME)
    await circuits.refresh()
    [told] = (await read_presence(redis)).workers
    assert not any((told.view.open, told.view.failing, told.view.answered, told.view.probing))


async def test_a_worker_counts_its_calls_and_those_that_failed(redis: Redis) -> None:
    circuits = worker(redis)
    await end(circuits, times=2)
    await end(circuits, UpstreamTimeoutError(), times=3)
    await end(circuits, UpstreamRefusedError())
    async with circuits.call(NAME):
        await circuits.refresh()
    [told] = (await read_presence(redis)).workers
    assert told.view.calls == {NAME: Calls(running=1, calls=7, errors=3)}
    assert circuits.calls[NAME].running == 0


async def test_a_record_shows_that_an_open_circuit_is_probed_next(redis: Redis) -> None:
    circuits, hasty = worker(redis), worker(redis, HASTY)
    await end(circuits, UpstreamError(), 5)
    await end(hasty, UpstreamError(), 5)
    await allowed(hasty)
    await told(circuits, hasty)
    first, second = (await read_presence(redis)).workers
    assert first.view.open == second.view.open == {NAME: [""]}
    assert (first.view.probing, second.view.probing) == ([], [NAME])


async def test_records_of_other_releases_are_read(redis: Redis) -> None:
    circuits = worker(redis, tiers=("default",))
    now = (await redis.time())[0] * 1000
    earlier = {"tiers": ["flex"], "open": {NAME: [""]}, "failing": {}, "answered": {}}
    about = About("there", 7, "9", started_at=1.5, slots=4, running=1, draining=True)
    later: dict[str, Any] = {**earlier, "more": 1, "about": asdict(about) | {"more": 1}, "calls": {NAME: {"calls": 3}}}
    for name, record in (("here:1:earlier", earlier), ("there:7:later", later)):
        await redis.hset(KEY, f"worker {name}", f"{now} {orjson.dumps(record).decode()}")
    await redis.hset(KEY, "worker gone:3:x", f"{now - 60_000} {{}}")
    first, second = (await read_presence(redis)).workers
    assert (first.name, first.view.tiers, first.view.about, first.view.calls) == ("here:1:earlier", ["flex"], None, {})
    assert second.view.about == about
    assert second.view.calls == {NAME: Calls(calls=3)}
    await circuits.refresh()
    assert circuits.served_elsewhere("another", "flex")
    assert not circuits.served_elsewhere(NAME, "flex")


async def test_a_worker_that_was_quiet_tells_of_its_first_call_at_once(redis: Redis) -> None:
    quiet = worker(redis, poll_seconds=3600)
    heard: list[Sequence[View]] = []
    other = Circuits(redis, worker=f"host:{next(_numbers)}", on_views=heard.append)

    async def hears_of(calls: int) -> bool:
        await other.refresh()
        return [view.calls.get(NAME, Calls()).calls for view in heard[-1]] == [calls]

    async with going_on(quiet.run):
        await eventually(lambda: hears_of(0), "the first news")
        await end(quiet)
        await eventually(lambda: hears_of(1), "news of the first call")


async def test_a_worker_that_makes_short_calls_tells_its_news_twice_as_often_as_an_idle_one(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    periods: list[float] = []

    def soon(period: float) -> float:
        periods.append(period)
        return 0.01

    monkeypatch.setattr("worker.circuits.until_tick", soon)
    circuits = worker(redis)
    async with going_on(circuits.run):
        await eventually(lambda: len(periods) > 2, "some news")
        assert {*periods} == {2.0}
        await end(circuits)
        await eventually(lambda: 1.0 in periods, "more frequent news")
        await eventually(lambda: periods[-1] == 2.0, "rarer news once no calls are made")


async def test_a_worker_of_lines_hears_at_once_of_the_first_call(redis: Redis) -> None:
    quiet, heard = worker(redis, poll_seconds=3600), list[Sequence[View]]()
    lines = Circuits(redis, worker=f"host:{next(_numbers)}", poll_seconds=3600, on_views=heard.append)
    ids: list[str] = []
    hearing = partial(hear_cancellations, redis, ids.append, on_calls=lines.look)

    async def listens() -> bool:
        return bool(await redis.pubsub_channels(calls_channel(machine_id())))

    async with going_on(lines.run, quiet.run, hearing):
        await eventually(listens, "the subscription")
        await end(quiet)
        await eventually(lambda: any(view.calls for views in heard for view in views), "news of the first call")
    assert ids == []


async def test_one_call_probes_and_its_answer_closes(redis: Redis) -> None:
    circuits = worker(redis, HASTY)
    await end(circuits, UpstreamError(), 5)
    await allowed(circuits)
    async with circuits.call(NAME) as call:
        with pytest.raises(UpstreamUnavailableError):
            circuits.troubled.enter(NAME)
        call.answered()  # at a stream's first text
        assert circuits.allows(NAME)
    assert not probes(circuits)


async def test_a_probe_that_fails_opens_it_for_longer(redis: Redis) -> None:
    circuits = worker(redis, HASTY)
    await end(circuits, UpstreamError(), 5)
    for _ in range(4):
        await allowed(circuits)
        await end(circuits, UpstreamError())
    assert 0.02 * 16 * 0.7 < circuits.troubled.seconds(NAME) <= 0.02 * 16 * 1.25


async def test_a_call_from_before_it_opened_does_not_close_it(redis: Redis) -> None:
    circuits = worker(redis)
    async with circuits.call(NAME):
        await end(circuits, UpstreamError(), 5)
    assert not circuits.allows(NAME)


async def test_a_probe_that_is_cancelled_lets_another_one_through(redis: Redis) -> None:
    circuits = worker(redis, HASTY)
    await end(circuits, UpstreamError(), 5)
    await allowed(circuits)
    with contextlib.suppress(asyncio.CancelledError):
        async with circuits.call(NAME):
            with pytest.raises(UpstreamUnavailableError):
                circuits.troubled.enter(NAME)
            raise asyncio.CancelledError
    assert probes(circuits)


async def test_what_is_over_leaves_nothing_behind(redis: Redis) -> None:
    circuits = worker(redis, Rules(forget_seconds=0.01))
    circuits.pauses.pause(NAME, 0.05)
    await end(circuits, UpstreamError())

    async def forgotten() -> bool:
        await circuits.refresh()
        return not circuits.troubled.has(NAME) and len(await redis.hgetall(KEY)) == 1

    await eventually(forgotten, "the failure and the pause to be forgotten")


# -- accounts ---------------------------------------------------------------------------------------------------------


async def test_one_accounts_failures_stop_its_own_requests_alone(redis: Redis) -> None:
    circuits = worker(redis)
    await end(circuits, UpstreamError(), 5, account="odd")
    assert not circuits.allows(NAME, account="odd")
    assert circuits.allows(NAME, account="plain")
    for _ in range(20):  # as when it tries again and again
        circuits.troubled.ended(NAME, UpstreamError(), account="odd")
    assert circuits.allows(NAME, account="plain")
    await end(circuits, account="plain")
    assert not circuits.allows(NAME, account="odd"), "another's answer says nothing of its requests"


async def test_failures_of_two_accounts_open_it_for_all(redis: Redis) -> None:
    circuits = worker(redis)
    await end(circuits, UpstreamError(), 5, account="first")
    await end(circuits, UpstreamError(), 1, account="second")
    assert circuits.allows(NAME, account="second"), "one failure may be its own"
    await end(circuits, UpstreamError(), 1, account="second")
    assert not circuits.allows(NAME, account="second")
    assert not circuits.allows(NAME, account="third")


async def test_an_account_that_probes_for_all_closes_it_for_all(redis: Redis) -> None:
    circuits = worker(redis, HASTY)
    await end(circuits, UpstreamError(), 5, account="first")
    await end(circuits, UpstreamError(), 2, account="second")
    await allowed(circuits)
    await end(circuits, account="third")
    assert circuits.allows(NAME, account="second")


# -- several workers --------------------------------------------------------------------------------------------------


async def test_a_broken_path_of_one_worker_is_its_own(redis: Redis) -> None:
    broken, fine, third = workers = [worker(redis) for _ in range(3)]
    await end(broken, UpstreamError(), 5)
    await told(*workers)
    assert not broken.allows(NAME)
    assert [probes(circuits) for circuits in (fine, third)] == [False, False]
    assert broken.served_elsewhere(NAME, "default")
    assert not broken.served_elsewhere(NAME, "batch"), "no other worker serves that tier"


async def test_what_failed_once_is_better_tried_by_a_worker_whose_calls_do_not_fail(redis: Redis) -> None:
    failing, fine = workers = [worker(redis) for _ in range(2)]
    await told(*workers)
    assert not failing.better_elsewhere(NAME, "default", account="only")
    await end(failing, UpstreamTimeoutError(), account="only")
    assert failing.better_elsewhere(NAME, "default", account="only")
    assert not failing.better_elsewhere(NAME, "batch", account="only"), "no other worker serves that tier"
    await end(fine, UpstreamTimeoutError(), account="only")
    await told(*workers)
    assert not failing.better_elsewhere(NAME, "default", account="only"), "the provider fails from everywhere"
    await end(fine, account="only")
    await told(*workers)
    assert failing.better_elsewhere(NAME, "default", account="only")


@pytest.mark.parametrize("state", ["draining", "cut_off"])
async def test_a_worker_that_takes_no_jobs_is_given_none(redis: Redis, state: str) -> None:
    about = About("there", 7, "9", started_at=1.5, slots=4, running=1, draining=False)
    failing, _ = workers = [worker(redis), worker(redis, about=lambda: about)]
    await end(failing, UpstreamTimeoutError())
    await told(*workers)
    assert failing.better_elsewhere(NAME, "default")
    assert failing.served_elsewhere(NAME, "default")
    about = replace(about, draining=state == "draining", cut_off=state == "cut_off")
    await told(*workers)
    assert not failing.better_elsewhere(NAME, "default")
    assert not failing.served_elsewhere(NAME, "default")


async def test_a_full_worker_is_no_better_but_serves_what_may_not_be_called_from_here(redis: Redis) -> None:
    about = About("there", 7, "9", started_at=1.5, slots=4, running=4, draining=False)
    failing, _ = workers = [worker(redis), worker(redis, about=lambda: about)]
    await end(failing, UpstreamTimeoutError())
    await told(*workers)
    assert not failing.better_elsewhere(NAME, "default")
    assert failing.served_elsewhere(NAME, "default")


async def test_where_every_worker_has_opened_it_no_one_serves_it_elsewhere(redis: Redis) -> None:
    first, second = workers = [worker(redis) for _ in range(2)]
    await end(first, UpstreamError(), 5, account="only")
    await told(*workers)
    assert first.served_elsewhere(NAME, "default", account="only")
    await end(second, UpstreamError(), 5, account="only")
    await told(*workers)
    assert not first.served_elsewhere(NAME, "default", account="only")
    assert first.served_elsewhere(NAME, "default", account="another")


async def test_once_two_workers_agree_the_others_send_one_call_first(redis: Redis) -> None:
    first, second, third = workers = [worker(redis) for _ in range(3)]
    await end(first, UpstreamError(), 5)
    await end(second, UpstreamError(), 5)
    await told(*workers)
    assert third.allows(NAME)
    await end(third, UpstreamError())
    assert not third.allows(NAME), "its probe failed"


async def test_a_worker_that_gets_answers_is_not_talked_out_of_its_path(redis: Redis) -> None:
    first, second, third, fourth, fifth = workers = [worker(redis) for _ in range(5)]
    await end(first, UpstreamError(), 5)
    await told(*workers)
    await end(third)
    await end(fourth)
    await end(second, UpstreamError(), 5)
    await told(*workers)
    assert [probes(circuits) for circuits in (third, fourth)] == [False, False]
    assert not probes(fifth), "as many have answers as have failures"


async def test_any_answer_ends_a_doubt_and_so_does_the_end_of_the_trouble(redis: Redis) -> None:
    first, second, third, fourth = workers = [worker(redis, HASTY) for _ in range(4)]
    async with third.call(NAME):
        await end(first, UpstreamError(), 5)
        await end(second, UpstreamError(), 5)
        await told(*workers)
        assert third.troubled.enter(NAME), "the next call probes"
    assert not probes(third)
    for circuits in (first, second):
        await allowed(circuits)
        await end(circuits)
    await told(*workers)
    assert not probes(fourth)


async def test_a_worker_that_is_gone_is_not_counted(redis: Redis) -> None:
    here, gone = worker(redis), worker(redis)
    await told(here, gone)
    assert here.served_elsewhere(NAME, "default")
    for name in await redis.hkeys(KEY):
        await redis.hset(KEY, name, b"1000 {}")  # long ago
    await told(here)
    assert not here.served_elsewhere(NAME, "default")
    assert len(await redis.hkeys(KEY)) == 1


async def test_a_provider_that_names_its_time_is_paused_in_all_workers(redis: Redis) -> None:
    first, second = workers = [worker(redis) for _ in range(2)]
    await end(first, UpstreamRateLimitError(retry_after=300))
    assert not first.allows(NAME)
    first.pauses.pause(NAME, 100)
    await told(*workers)
    second.pauses.pause(NAME, 200)
    await told(*workers)
    for circuits in workers:
        assert 290 < circuits.pauses.seconds(NAME) <= 300, "a pause is never cut short"
        with pytest.raises(UpstreamBusyError):
            await end_loudly(circuits)


async def end_loudly(circuits: Circuits) -> None:
    async with circuits.call(NAME):
        pass


async def test_no_provider_is_believed_for_ever(redis: Redis) -> None:
    circuits = worker(redis)
    circuits.pauses.pause(NAME, 1e12)
    assert circuits.pauses.seconds(NAME) <= 3600
    await circuits.refresh()
    assert 3500 < circuits.pauses.seconds(NAME) <= 3600


async def test_without_redis_each_worker_goes_by_what_it_knows(
    redis: Redis, valkey: EmbeddedValkey, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = workers = [worker(redis, HASTY) for _ in range(2)]
    await told(*workers)
    valkey.stop()
    with caplog.at_level(logging.WARNING):
        await end(first, UpstreamError(), 5)
        first.pauses.pause("openai/slow", 300)
        await told(*workers)
    assert caplog.text.count("Redis is unavailable") == 2, "once for each"
    assert not first.served_elsewhere(NAME, "default")
    assert second.allows(NAME)
    await allowed(first)
    assert probes(first)
    with pytest.raises(UpstreamUnavailableError):
        first.troubled.enter(NAME)
    first.troubled.ended(NAME, None, probed=[""])
    assert first.allows(NAME)
    valkey.start()
    await told(*workers)
    assert second.pauses.seconds("openai/slow") > 200


async def test_workers_learn_by_themselves_and_forget_when_an_operator_drops_the_hash(redis: Redis) -> None:
    first, second = (worker(redis, poll_seconds=0.02) for _ in range(2))
    async with going_on(first.run, second.run):
        first.pauses.pause("openai/slow", 60)
        await end(first, UpstreamError(), 5)
        await eventually(
            lambda: second.pauses.seconds("openai/slow") > 0 and second.troubled.has(NAME),
            "the second to learn of both",
        )
        await redis.delete(KEY)
        await eventually(lambda: first.allows(NAME) and not second.pauses.seconds("openai/slow"), "both to forget")
