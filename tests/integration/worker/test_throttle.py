"""Limits that two workers keep together over a real Valkey."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import random
from collections import Counter
from collections.abc import AsyncIterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis as BlockingRedis
from redis.asyncio import Redis

from headrace.dev.valkey import EmbeddedValkey
from headrace.errors import UpstreamBusyError, UpstreamError, UpstreamUnavailableError
from headrace.runtime.chores import going_on
from headrace.stores.redis import connect_redis
from tests.integration.worker.limits import Provider
from tests.service import free_port
from tests.waiting import PATIENCE, eventually
from worker import throttle as module
from worker.permits import PendingPermit
from worker.throttle import Throttle, estimate_tokens
from worker.window import SLOTS, Cost, Decision, ProviderLimits, Window

NAME = "openai"
KEY = f"headrace:limits:{NAME}"
REQUEST = {"messages": [{"role": "user", "content": "Hello"}]}
LONG = 1000.0
"""Seconds of a lease or a minute that outlast every test."""


@pytest.fixture
async def redis(valkey: EmbeddedValkey) -> AsyncIterator[Redis]:
    async with connect_redis(valkey.url) as redis:
        yield redis


@contextlib.asynccontextmanager
async def running(throttle: Throttle) -> AsyncIterator[None]:
    """Keep a worker's slots, as a worker that lives does."""
    async with going_on(throttle.run):
        yield


class Holder:
    """A call that is under way, once it is admitted, until it is told to end."""

    def __init__(self, throttle: Throttle, provider: Provider, *, calls: int = 1) -> None:
        self.admitted = asyncio.Event()
        self.end = asyncio.Event()
        self.task = asyncio.create_task(self._run(throttle, provider, calls))

    async def _run(self, throttle: Throttle, provider: Provider, calls: int) -> None:
        async with throttle.permit(NAME, provider, REQUEST, calls=calls):
            self.admitted.set()
            await self.end.wait()

    async def started(self) -> Holder:
        async with asyncio.timeout(PATIENCE):
            await self.admitted.wait()
        return self

    async def finish(self) -> None:
        self.end.set()
        await self.task


async def finish(*holders: Holder) -> None:
    await asyncio.gather(*(holder.finish() for holder in holders))


async def refused(throttle: Throttle, provider: Provider) -> float:
    """Expect a refusal, and return the seconds until the next try."""
    with pytest.raises(UpstreamBusyError) as error:
        async with throttle.permit(NAME, provider, REQUEST, patience_seconds=0):
            pass
    assert error.value.retry_after is not None
    return error.value.retry_after


async def fields(redis: Redis) -> dict[str, list[int]]:
    kept: dict[bytes, bytes] = await redis.hgetall(KEY)  # type: ignore[assignment]
    return {name.decode(): [int(number) for number in numbers.split()] for name, numbers in kept.items()}


async def held(redis: Redis) -> int:
    return sum(numbers[1] for name, numbers in (await fields(redis)).items() if name.startswith("w"))


async def waiting(redis: Redis, count: int) -> bool:
    return count == sum(numbers[2] for name, numbers in (await fields(redis)).items() if name.startswith("w"))


async def counted(redis: Redis) -> tuple[int, int]:
    """Return the calls and tokens that count in the minute."""
    slots = [numbers for name, numbers in (await fields(redis)).items() if name.startswith("s")]
    return sum(calls for calls, _ in slots), sum(tokens for _, tokens in slots)


async def all_free(redis: Redis) -> None:
    await eventually(functools.partial(_none_held, redis), "all slots to be free")


async def _none_held(redis: Redis) -> bool:
    return await held(redis) == 0


def in_any_minute(taken: dict[int, int]) -> int:
    """Return the largest amount in any minute, from the amounts taken in each slot."""
    return max(sum(count for slot, count in taken.items() if end - SLOTS <= slot <= end) for end in taken)


# -- calls under way ---------------------------------------------------------------------------------------------------


async def test_calls_under_way_never_exceed_the_limit_over_two_workers_and_no_slot_is_lost(redis: Redis) -> None:
    provider, workers = Provider(max_concurrency=5), [Throttle(redis, lease_seconds=LONG) for _ in range(2)]
    dice = random.Random(5)
    under_way, most, done = 0, 0, Counter[str]()

    async def call(throttle: Throttle) -> None:
        nonlocal under_way, most
        await asyncio.sleep(dice.uniform(0, 0.2))
        async with throttle.permit(NAME, provider, REQUEST):
            under_way += 1
            most = max(most, under_way)
            try:
                await asyncio.sleep(dice.uniform(0, 0.01))
            finally:
                under_way -= 1

    async def impatient(throttle: Throttle) -> None:
        try:
            async with asyncio.timeout(dice.choice((dice.uniform(0, 0.2), PATIENCE))):
                await call(throttle)
            done["ended"] += 1
        except TimeoutError:
            done["cancelled"] += 1

    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*(impatient(throttle) for throttle in workers for _ in range(150)))
        await asyncio.gather(*(call(throttle) for throttle in workers for _ in range(50)))
    assert most == 5
    assert min(done["ended"], done["cancelled"]) > 10, "the test must see both"
    await all_free(redis)
    await finish(*[await Holder(workers[0], provider).started() for _ in range(5)])


async def test_what_asks_together_shares_a_round_trip(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    throttle, provider = Throttle(redis, lease_seconds=LONG), Provider(100, 100, 10**6)
    questions = []
    ask = throttle.ask

    async def recorded(*arguments: object) -> Decision:
        questions.append(arguments)
        return await ask(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(throttle, "ask", recorded)
    holders = [Holder(throttle, provider) for _ in range(64)]
    for holder in holders:
        await holder.started()
    assert len(questions) == 1
    assert await held(redis) == 64
    await finish(*holders)
    await all_free(redis)
    assert len(questions) == 2


async def test_a_provider_without_limits_costs_no_round_trip() -> None:
    async with connect_redis(f"redis://127.0.0.1:{free_port()}/0") as nowhere:
        throttle = Throttle(nowhere, lease_seconds=LONG)
        async with throttle.permit(NAME, Provider(), REQUEST) as permit:
            permit.used(5, calls=1)
        assert throttle.shared


async def age(redis: Redis, throttle: Throttle, seconds: float) -> None:
    """Have Redis believe that it heard a worker last so many seconds earlier."""
    numbers = (await fields(redis))[f"w{throttle._worker}"]
    numbers[5] -= round(seconds * 1000)
    await redis.hset(KEY, f"w{throttle._worker}", " ".join(map(str, numbers)))


async def beat(redis: Redis, throttle: Throttle) -> None:
    """Have a worker send a heartbeat, and return once Redis has it."""
    before = (await fields(redis))[f"w{throttle._worker}"][0]
    for queue in throttle._queues.values():
        queue.heartbeat()

    async def again() -> bool:
        return (await fields(redis))[f"w{throttle._worker}"][0] > before

    await eventually(again, "a heartbeat")


async def test_slots_of_a_killed_worker_come_back_and_those_of_a_living_one_do_not(redis: Redis) -> None:
    provider = Provider(max_concurrency=2)
    killed, living, third = (Throttle(redis, lease_seconds=LONG) for _ in range(3))
    holders = [await Holder(killed, provider).started(), await Holder(living, provider).started()]
    await refused(third, provider)
    await age(redis, killed, LONG + 1)
    gained = await Holder(third, provider).started()
    for _ in range(3):
        await age(redis, living, LONG / 2)
        await beat(redis, living)
    await refused(third, provider)
    await finish(holders[1])
    await finish(await Holder(third, provider).started())
    await finish(gained, holders[0])


async def test_a_redis_that_was_emptied_knows_the_slots_after_a_heartbeat(redis: Redis) -> None:
    provider = Provider(max_concurrency=1)
    throttle, other = Throttle(redis, lease_seconds=0.1), Throttle(redis, lease_seconds=LONG)
    async with running(throttle):
        holder = await Holder(throttle, provider).started()
        await redis.flushall()
        await eventually(functools.partial(held, redis), "a slot that is held")
        await refused(other, provider)
        await finish(holder)


async def test_a_call_that_takes_several_slots_waits_for_all_of_them(redis: Redis) -> None:
    provider, throttle = Provider(max_concurrency=3, requests_per_minute=100), Throttle(redis, lease_seconds=LONG)
    first, second = Holder(throttle, provider), Holder(throttle, provider, calls=2)
    await second.started()
    third = Holder(throttle, provider, calls=10)  # more than there are: it takes all, and the others follow
    await eventually(functools.partial(waiting, redis, 3), "three that wait")
    await finish(second)
    assert not third.admitted.is_set()
    await finish(first)
    await third.started()
    assert await held(redis) == 3
    assert await counted(redis) == (13, 0)
    await finish(third)


# -- order -------------------------------------------------------------------------------------------------------------


async def test_calls_of_a_worker_are_admitted_in_order_of_arrival(redis: Redis) -> None:
    provider, throttle = Provider(max_concurrency=2), Throttle(redis, lease_seconds=LONG)
    order = []

    async def call(number: int) -> None:
        async with throttle.permit(NAME, provider, REQUEST):
            order.append(number)
            await asyncio.sleep(0)

    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*(call(number) for number in range(50)))
    assert order == list(range(50))


async def test_a_worker_that_holds_the_slots_leaves_them_to_one_that_came_earlier(redis: Redis) -> None:
    provider = Provider(max_concurrency=1)
    busy, other = Throttle(redis, lease_seconds=LONG), Throttle(redis, lease_seconds=LONG)
    order = []

    async def call(throttle: Throttle, name: str) -> None:
        async with throttle.permit(NAME, provider, REQUEST):
            order.append(name)

    holder = await Holder(busy, provider).started()
    calls = [asyncio.create_task(call(busy, "early"))]
    await eventually(functools.partial(waiting, redis, 1), "one that waits")
    calls.append(asyncio.create_task(call(other, "other")))
    await eventually(functools.partial(waiting, redis, 2), "two that wait")
    calls += [asyncio.create_task(call(busy, "late")) for _ in range(20)]
    await asyncio.sleep(0)
    await finish(holder)
    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*calls)
    assert order == ["early", "other"] + ["late"] * 20


# -- a minute ----------------------------------------------------------------------------------------------------------


async def test_no_minute_holds_more_calls_and_tokens_than_allowed_over_two_workers(redis: Redis) -> None:
    tokens = estimate_tokens(REQUEST)
    provider = Provider(requests_per_minute=6, tokens_per_minute=5 * tokens)
    workers = [Throttle(redis, lease_seconds=LONG, window_seconds=0.3) for _ in range(2)]
    calls: dict[int, int] = Counter()

    async def call(throttle: Throttle) -> None:
        async with throttle.permit(NAME, provider, REQUEST) as permit:
            assert isinstance(permit, PendingPermit)
            calls[permit.slots[0]] += 1

    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*(call(throttle) for throttle in workers for _ in range(10)))
    assert sum(calls.values()) == 20
    assert in_any_minute(calls) == 5


@pytest.mark.parametrize(("age", "counts"), [(0, True), (SLOTS, True), (SLOTS + 1, False)])
async def test_a_slot_counts_until_all_of_it_is_a_minute_old(redis: Redis, age: int, counts: bool) -> None:
    throttle, limits = Throttle(redis, lease_seconds=LONG, window_seconds=LONG), ProviderLimits(None, 5, None)
    for question in range(1, 10, 2):
        await redis.delete(KEY)
        slot = (await throttle.ask(NAME, limits, [question, 0, 0, 0, 0, 0, 0])).slot
        await redis.hset(KEY, f"s{slot - age}", "5 0")
        answer = await throttle.ask(NAME, limits, [question + 1, 0, 0, 1, 0, 0, 0, 1, 0, 0])
        if answer.slot == slot:
            assert answer.granted == (not counts)
            assert (answer.wait_seconds > 0) == counts
            return
    pytest.fail("a slot of half a minute ended each time")


async def test_who_is_refused_has_taken_nothing(redis: Redis) -> None:
    provider = Provider(max_concurrency=1, requests_per_minute=2, tokens_per_minute=10_000)
    throttle, other = Throttle(redis, lease_seconds=LONG), Throttle(redis, lease_seconds=LONG)
    holder = await Holder(throttle, provider).started()
    before = await counted(redis)
    for _ in range(5):
        await refused(throttle, provider)
        await refused(other, provider)
    assert await counted(redis) == before == (1, estimate_tokens(REQUEST))
    await finish(holder)
    await all_free(redis)
    await finish(await Holder(other, provider).started())
    assert 0 < await refused(throttle, provider) <= 62


async def test_tokens_are_corrected_when_the_call_ends(redis: Redis) -> None:
    provider, throttle = Provider(tokens_per_minute=1000), Throttle(redis, lease_seconds=LONG)
    for used, total in ((400, 400), (3, 403), (None, 403 + estimate_tokens(REQUEST)), (0, None), (9000, None)):
        async with throttle.permit(NAME, provider, REQUEST) as permit:
            if used is not None:
                permit.used(used, calls=1)
        if total is not None:
            await eventually(functools.partial(_counted_tokens, redis, total), "its tokens to be counted")
    await eventually(
        functools.partial(_counted_tokens, redis, 403 + estimate_tokens(REQUEST) + 9000),
        "the others' tokens to be counted",
    )
    await refused(throttle, provider)


async def _counted_tokens(redis: Redis, tokens: int) -> bool:
    return (await counted(redis))[1] == tokens


async def test_a_call_beyond_the_whole_limit_takes_all_of_it_rather_than_wait_for_ever(redis: Redis) -> None:
    provider, throttle = Provider(tokens_per_minute=3), Throttle(redis, lease_seconds=LONG)
    assert estimate_tokens(REQUEST) > 3
    await finish(await Holder(throttle, provider).started())
    await refused(throttle, provider)


async def test_calls_that_follow_others_count_in_the_minute_and_not_at_once(redis: Redis) -> None:
    provider, throttle = Provider(max_concurrency=2, requests_per_minute=10), Throttle(redis, lease_seconds=LONG)
    async with throttle.permit(NAME, provider, REQUEST, calls=3, more=5) as permit:
        assert permit.calls == 2
        assert (await held(redis), await counted(redis)) == (2, (8, 0))
        permit.used(0, calls=3)  # the third failed
    await eventually(functools.partial(_counted_calls, redis, 3), "the calls that were made to count alone")
    async with throttle.permit(NAME, provider, REQUEST, calls=3, more=4) as permit:
        pass
    await refused(throttle, provider)


@pytest.mark.parametrize("error", [UpstreamBusyError, UpstreamUnavailableError])
async def test_a_permit_without_a_call_counts_no_longer(redis: Redis, error: type[UpstreamError]) -> None:
    provider = Provider(requests_per_minute=10, tokens_per_minute=100_000)
    throttle = Throttle(redis, lease_seconds=LONG)
    with pytest.raises(error):
        async with throttle.permit(NAME, provider, REQUEST, calls=2, more=5):
            raise error
    await eventually(functools.partial(_counted_calls, redis, 0), "no call to count")
    assert await counted(redis) == (0, 0)


async def _counted_calls(redis: Redis, calls: int) -> bool:
    return (await counted(redis))[0] == calls


async def test_a_worker_leaves_room_for_all_calls_of_one_that_came_earlier_and_reads_earlier_releases(
    redis: Redis,
) -> None:
    provider, throttle = Provider(requests_per_minute=10), Throttle(redis, lease_seconds=LONG)
    seconds, microseconds = await redis.time()
    now = seconds * 1000 + microseconds // 1000
    waiting = f"1 0 2 0 {now - 60_000} {now + 60_000}"  # two calls, of which each release writes
    await redis.hset(KEY, "wearlier", waiting)
    await finish(*[await Holder(throttle, provider).started() for _ in range(2)])
    await redis.hset(KEY, "wearlier", f"{waiting} 6")  # and six that follow them
    await refused(throttle, provider)
    await redis.hset(KEY, "wearlier", f"{waiting} 5")
    await finish(await Holder(throttle, provider).started())


ASKED = st.lists(st.builds(Cost, st.integers(1, 3), st.integers(0, 40), st.integers(0, 2)), max_size=6)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    limits=st.builds(
        ProviderLimits,
        st.none() | st.integers(3, 8),
        st.none() | st.integers(5, 15),
        st.none() | st.integers(40, 200),
    ),
    steps=st.lists(st.tuples(st.integers(0, 8), ASKED, st.integers(-30, 30)), max_size=12),
)
def test_the_script_decides_as_a_worker_alone_does(
    valkey: EmbeddedValkey, limits: ProviderLimits, steps: list[tuple[int, list[Cost], int]]
) -> None:
    """The minute is long enough that no slot ends: other tests move the time."""

    async def compare() -> None:
        async with connect_redis(valkey.url) as redis:
            await redis.flushall()
            throttle, window = Throttle(redis, lease_seconds=LONG, window_seconds=10**8), Window(10**8)
            slot = 0
            for number, (under_way, asked, change) in enumerate(steps, start=1):
                wants = (sum(numbers) for numbers in zip(*asked, strict=True)) if asked else (0, 0, 0)
                corrections = [1, slot, 0, change] if number > 1 else [0]
                costs = [count for cost in asked for count in cost]
                answer = await throttle.ask(NAME, limits, [number, under_way, 0, *wants, *corrections, *costs])
                if number > 1 and (limits.requests or limits.tokens):
                    window.correct(0, 0, Cost(0, change))
                expected = window.decide(0, limits, under_way, asked)
                for cost in asked[: expected.granted]:
                    window.add(0, cost)
                slot = answer.slot
                assert answer.granted == expected.granted
                assert (answer.wait_seconds > 0) == (expected.wait_seconds > 0)

    asyncio.run(compare())


# -- calls that give up ------------------------------------------------------------------------------------------------


async def test_a_call_that_is_cancelled_while_it_waits_takes_nothing_and_makes_way(redis: Redis) -> None:
    provider, throttle = Provider(1, 10, 10_000), Throttle(redis, lease_seconds=LONG)
    other = Throttle(redis, lease_seconds=LONG)
    holder = await Holder(throttle, provider).started()
    before = await counted(redis)
    waiters = [Holder(throttle, provider) for _ in range(3)]
    await eventually(functools.partial(waiting, redis, 3), "three that wait")
    for waiter in waiters:
        waiter.task.cancel()
    await eventually(functools.partial(waiting, redis, 0), "no call to wait")
    assert await counted(redis) == before
    await finish(holder)
    await finish(await Holder(other, provider).started())


@pytest.mark.parametrize("when", ["under way", "answered"])
async def test_a_call_cancelled_while_its_question_is_under_way_takes_nothing(
    redis: Redis, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    provider, throttle = Provider(1, 1, 10_000), Throttle(redis, lease_seconds=LONG)
    decided, let_go = asyncio.Event(), asyncio.Event()
    ask = throttle.ask

    async def slow(name: str, limits: ProviderLimits, question: list[int]) -> Decision:
        decision = await ask(name, limits, question)
        decided.set()
        await let_go.wait()
        return decision

    monkeypatch.setattr(throttle, "ask", slow)
    waiter = Holder(throttle, provider)
    await decided.wait()
    assert await held(redis) == 1
    if when == "answered":
        # The answer is there, but the waiter has not run yet.
        queue = throttle._queues[NAME]
        grant = queue._grant

        def grant_and_cancel(permit: PendingPermit, slot: int) -> None:
            grant(permit, slot)
            assert permit.future.done()
            assert not permit.future.cancelled()
            waiter.task.cancel()

        monkeypatch.setattr(queue, "_grant", grant_and_cancel)
    else:
        waiter.task.cancel()
    let_go.set()
    await asyncio.gather(waiter.task, return_exceptions=True)
    assert waiter.task.cancelled()
    assert not waiter.admitted.is_set()
    await all_free(redis)
    assert await counted(redis) == (0, 0)
    assert throttle._queues[NAME]._held == 0
    monkeypatch.undo()
    await finish(await Holder(throttle, provider).started())


async def test_the_impatient_are_turned_away_when_their_time_is_over(redis: Redis) -> None:
    provider, throttle = Provider(max_concurrency=1), Throttle(redis, lease_seconds=LONG)
    holder = await Holder(throttle, provider).started()
    patient = Holder(throttle, provider)
    with pytest.raises(UpstreamBusyError):
        async with throttle.permit(NAME, provider, REQUEST, patience_seconds=0.05):
            pass
    await finish(holder)
    await patient.started()
    await finish(patient)


async def test_a_call_that_fails_gives_its_slot_back(redis: Redis) -> None:
    provider, throttle = Provider(max_concurrency=1), Throttle(redis, lease_seconds=LONG)
    with pytest.raises(ValueError, match="broken"):
        async with throttle.permit(NAME, provider, REQUEST):
            raise ValueError("broken")
    await finish(await Holder(throttle, provider).started())


async def test_closing_tells_the_others_what_has_ended(redis: Redis) -> None:
    provider, throttle = Provider(max_concurrency=1), Throttle(redis, lease_seconds=LONG)
    await finish(await Holder(throttle, provider).started())
    await throttle.close()
    assert await held(redis) == 0


# -- without Redis -----------------------------------------------------------------------------------------------------


async def test_without_redis_each_worker_keeps_the_limits_alone_and_with_it_together_again(
    redis: Redis, valkey: EmbeddedValkey, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_COME_BACK_SECONDS", 0.02)
    provider = Provider(max_concurrency=2, requests_per_minute=5)
    first, second = Throttle(redis, lease_seconds=LONG), Throttle(redis, lease_seconds=LONG)
    shared = await Holder(first, provider).started()
    valkey.stop()
    with caplog.at_level(logging.WARNING):
        alone = [
            await Holder(first, provider).started(),
            *[await Holder(second, provider).started() for _ in range(2)],
        ]
        await refused(first, provider)
        await refused(second, provider)
    assert caplog.text.count("Redis is unavailable") == 2, "once for each"
    await finish(alone[0])
    for _ in range(3):
        await finish(await Holder(first, provider).started())
    assert await refused(first, provider) > 1, "its minute holds five"
    async with running(first), running(second):
        valkey.start()

        async def together() -> bool:
            return first.shared and second.shared

        await eventually(together, "both to share again")
    assert await held(redis) == 3
    assert (await counted(redis))[0] == 7
    await refused(second, provider)
    await finish(shared, *alone[1:])
    await all_free(redis)
    assert await refused(second, provider) > 1, "what was done alone counts"


async def test_a_redis_that_answers_nothing_holds_up_only_the_first(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = Provider(max_concurrency=3)
    with BlockingRedis.from_url(valkey.url) as other:
        async with Redis.from_url(valkey.url, socket_timeout=0.2, socket_connect_timeout=0.2) as redis:
            throttle = Throttle(redis, lease_seconds=LONG)
            await finish(await Holder(throttle, provider).started())
            other.execute_command("CLIENT", "PAUSE", 60_000, "ALL")
            first = Holder(throttle, provider)
            cancelled = Holder(throttle, provider)
            await asyncio.sleep(0)
            cancelled.task.cancel()
            await first.started()
            assert not throttle.shared

            async def never(*arguments: object) -> Decision:
                raise AssertionError("no worker asks a Redis that is unavailable")

            monkeypatch.setattr(throttle, "ask", never)
            holders = [await Holder(throttle, provider).started() for _ in range(2)]
            await refused(throttle, provider)
            await finish(first, *holders)
    valkey.stop()  # it would answer no client for a minute


async def test_a_question_that_arrives_after_a_later_one_changes_nothing(redis: Redis) -> None:
    """A Redis that was frozen runs, when it thaws, questions whose workers no longer wait."""
    throttle, limits = Throttle(redis, lease_seconds=LONG), ProviderLimits(5, None, None)
    await throttle.ask(NAME, limits, [2, 3, 0, 0, 0, 0, 0])
    assert (await throttle.ask(NAME, limits, [1, 1, 0, 1, 0, 0, 0, 1, 0, 0])).granted == 0
    assert await held(redis) == 3
