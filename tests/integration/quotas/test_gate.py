from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta, tzinfo
from decimal import Decimal
from typing import Any, Self

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis
from redis.exceptions import RedisError

from headrace.dev.valkey import EmbeddedValkey
from headrace.errors import QuotaExceededError, RateLimitError, UnavailableError
from headrace.ids import new_id
from headrace.jobs.sql.cancel import cancel_job
from headrace.jobs.sql.erase import delete_job
from headrace.keys.accounts import limit_account
from headrace.queue import JobQueue
from headrace.quotas import queries
from headrace.quotas.alerts import alert
from headrace.quotas.gate import _ADMIT, _SETTLE, Demand, Gate, Scope
from headrace.quotas.queries import Spent
from headrace.quotas.rules import Limits
from headrace.stores.database import Database, execute
from headrace.stores.redis import connect_redis, redis_takes_writes
from tests.integration.job_rows import ERROR, SPENT, Jobs, Owner, end_of
from tests.wakeups import leave_unsent

CENT = Decimal("0.01")
NOON = 1_800_000_000
"""Unix seconds at which a test's clock begins."""


@pytest.fixture
async def redis(valkey: EmbeddedValkey) -> AsyncIterator[Redis]:
    """A Redis that no service uses: its scheduler would forget scopes that its own database does not know."""
    async with Redis.from_url(valkey.url, socket_timeout=30) as redis:
        yield redis


@pytest.fixture
def gate(redis: Redis, database: Database) -> Gate:
    return Gate(redis, database, open_without_redis=False)


class Clock:
    """Gives gates the time that a test says it is."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self.now = NOON

    async def govern(self, *gates: Gate) -> None:
        """Give these gates this clock's time from now on."""
        for gate in gates:
            gate._admissions, gate._settlements = (
                gate._grouped(script.replace("redis.call('TIME')[1]", "redis.call('GET', 'hr:quota:now')"))
                for script in (_ADMIT, _SETTLE)
            )
        await self.pass_by(0)

    async def pass_by(self, seconds: int) -> None:
        """Let this much time pass."""
        self.now += seconds
        await self._redis.set("hr:quota:now", self.now)


@pytest.fixture
async def clock(redis: Redis, gate: Gate) -> Clock:
    """The gate's clock, which stands."""
    clock = Clock(redis)
    await clock.govern(gate)
    return clock


@pytest.fixture(autouse=True)
async def fresh(database: Database) -> None:
    await execute(database.durable, "TRUNCATE usage_rollups, usage_latencies, usage_mark")


def demand(job_id: str | None = None, **changes: Any) -> Demand:
    return replace(Demand(job_id or new_id("job"), background=False, tokens=10, cost=CENT), **changes)


def scope(owner: Owner, **limits: Any) -> Scope:
    return Scope(owner.key_id, Limits(**limits))


async def admitted(gate: Gate, scopes: list[Scope], *demands: Demand) -> list[Demand]:
    """Return those of the demands, asked for all at once, that are let in."""

    async def ask(asked: Demand) -> Demand | None:
        try:
            await gate.admit(scopes, asked)
        except RateLimitError:
            return None
        return asked

    return [found for found in await asyncio.gather(*map(ask, demands)) if found is not None]


async def fields(redis: Redis, scope_id: str) -> dict[str, int]:
    raw = await redis.hgetall(f"hr:quota:{scope_id}:sums")
    names = [name if isinstance(name, str) else name.decode() for name in raw]
    return dict(zip(names, map(int, raw.values()), strict=True))


async def sums(redis: Redis, scope_id: str) -> dict[str, int]:
    """Return the sums of a scope that has those of one day and one month, which are `d` and `m`."""
    return {name.split(":")[0]: value for name, value in (await fields(redis, scope_id)).items()}


async def test_without_limits_redis_is_not_asked(database: Database, owner: Owner) -> None:
    nowhere = Redis.from_url("redis://127.0.0.1:9/0")
    assert (await Gate(nowhere, database, open_without_redis=False).admit([scope(owner)], demand())).headers == {}


async def test_a_budget_holds_for_requests_at_the_same_time(
    redis: Redis, database: Database, gate: Gate, owner: Owner
) -> None:
    other = Gate(redis, database, open_without_redis=False)
    scopes = [scope(owner, daily_budget=Decimal("0.5")), Scope(owner.account_id, Limits(monthly_budget=Decimal(7)))]
    found = await asyncio.gather(*(admitted(gates, scopes, *(demand() for _ in range(100))) for gates in (gate, other)))
    assert sum(map(len, found)) == 50
    with pytest.raises(QuotaExceededError, match=r"daily budget of 0\.5 USD") as refused:
        await gate.admit(scopes, demand())
    assert refused.value.type == refused.value.code == "insufficient_quota"
    assert 0 < (refused.value.retry_after or 0) <= 86_400
    assert (await sums(redis, owner.account_id))["held"] == 500_000_000, "what is refused takes nothing"


async def test_what_was_spent_counts_and_what_was_held_back_comes_free(
    redis: Redis, gate: Gate, owner: Owner, calendar: Calendar
) -> None:
    scopes = [scope(owner, daily_budget=Decimal("0.10"))]
    first, *_ = await admitted(gate, scopes, *(demand() for _ in range(12)))
    assert await admitted(gate, scopes, demand()) == []
    for _ in range(2):  # the second time it is settled already
        await gate.settle([owner.key_id], [Spent(first.job_id, 4, Decimal("0.004"))])
    assert await admitted(gate, scopes, demand(cost=Decimal("0.0061"))) == []
    assert len(await admitted(gate, scopes, demand(cost=Decimal("0.006")))) == 1
    found = await sums(redis, owner.key_id)
    assert (found["d"], found["m"], found["held"]) == (4_000_000, 4_000_000, 96_000_000)


async def test_what_the_ledger_says_is_known_from_the_start(gate: Gate, jobs: Jobs, owner: Owner) -> None:
    await jobs.complete()  # for 0.0042 USD
    running = await jobs.run(reserved_cost=Decimal("0.05"))
    scopes = [scope(owner, daily_budget=Decimal("0.1"), jobs_queued=2)]
    assert await admitted(gate, scopes, demand(cost=Decimal("0.0459"))) == []
    assert len(await admitted(gate, scopes, demand(cost=Decimal("0.0458"), background=True))) == 1
    with pytest.raises(RateLimitError, match="background jobs at one time: Limit 2, Used 2"):
        await gate.admit(scopes, demand(cost=Decimal(0), background=True))
    await jobs.finish(end_of(running))
    await gate.reconcile()
    assert len(await admitted(gate, scopes, demand(cost=Decimal("0.0458")))) == 1


async def test_more_is_to_reconcile_while_something_is_held_back(gate: Gate, jobs: Jobs, owner: Owner) -> None:
    running = await jobs.run()
    assert await gate.reconcile() is False
    assert len(await admitted(gate, [scope(owner, jobs_in_flight=2)], replace(demand(), job_id=running.id))) == 1
    assert await gate.reconcile() is True
    await jobs.finish(end_of(running))
    assert await gate.reconcile() is True  # it was held back until now
    assert await gate.reconcile() is False


async def test_the_ledger_is_asked_once_for_many_first_requests(
    gate: Gate, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, asked = queries.read_spent, []

    async def counted(database: Database, scope_id: str, now: datetime) -> queries.SpentSums:
        asked.append(scope_id)
        return await read(database, scope_id, now)

    monkeypatch.setattr("headrace.quotas.gate.queries.read_spent", counted)
    assert len(await admitted(gate, [scope(owner, daily_budget=Decimal(1))], *(demand() for _ in range(50)))) == 50
    assert asked == [owner.key_id]


async def test_a_redis_that_lost_everything_is_told_again(redis: Redis, gate: Gate, jobs: Jobs, owner: Owner) -> None:
    await jobs.complete()
    await jobs.run(reserved_cost=Decimal("0.05"))
    scopes = [scope(owner, monthly_budget=Decimal("0.1"))]
    for _ in range(2):
        assert await admitted(gate, scopes, demand(cost=Decimal("0.0459"))) == []
        for key in await redis.keys("hr:quota:*"):
            await redis.delete(key)


async def test_a_sum_that_is_settled_meanwhile_is_not_overwritten(
    redis: Redis, gate: Gate, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    scopes = [scope(owner, daily_budget=Decimal("0.1"))]
    [job] = await admitted(gate, scopes, demand())
    read = queries.read_spent

    async def slowly(database: Database, scope_id: str, now: datetime) -> queries.SpentSums:
        found = await read(database, scope_id, now)
        await gate.settle([owner.key_id], [Spent(job.job_id, 1, CENT)])
        return found

    monkeypatch.setattr("headrace.quotas.gate.queries.read_spent", slowly)
    await gate.correct()
    assert (await sums(redis, owner.key_id))["d"] == 10_000_000
    monkeypatch.undo()
    await gate.correct()  # the ledger knows no such job
    assert (await sums(redis, owner.key_id))["d"] == 0


async def test_a_budget_of_a_busy_scope_is_corrected(
    redis: Redis, gate: Gate, jobs: Jobs, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the ledger knows what lines of batches cost, and some job always ends while it is asked."""
    scopes = [scope(owner, daily_budget=Decimal(1))]
    [job] = await admitted(gate, scopes, demand())
    await jobs.complete()
    read = queries.read_spent

    async def slowly(database: Database, scope_id: str, now: datetime) -> queries.SpentSums:
        found = await read(database, scope_id, now)
        await gate.settle([owner.key_id], [Spent(job.job_id, 1, Decimal(0))])
        return found

    monkeypatch.setattr("headrace.quotas.gate.queries.read_spent", slowly)
    await gate.correct()
    found = await sums(redis, owner.key_id)
    assert found["d"] == found["m"] == int((SPENT.cost or 0) * 10**9)


@pytest.mark.parametrize("admitted_first", [True, False], ids=["let in before", "let in meanwhile"])
@pytest.mark.parametrize("ends", ["before", "after"])
async def test_what_a_job_spent_counts_once_whenever_the_ledger_is_asked(
    redis: Redis, gate: Gate, jobs: Jobs, owner: Owner, monkeypatch: pytest.MonkeyPatch, ends: str, admitted_first: bool
) -> None:
    scopes = [scope(owner, daily_budget=Decimal(1), tokens_per_minute=10_000)]
    await gate.settle([owner.key_id], [Spent((await admitted(gate, scopes, demand()))[0].job_id, 0, Decimal(0))])
    asked = demand(tokens=500)
    read = queries.read_spent

    async def run() -> None:
        if not admitted_first:
            await gate.admit(scopes, asked)
        await jobs.finish(end_of(await jobs.run(id=asked.job_id)))

    async def beside(database: Database, scope_id: str, now: datetime) -> queries.SpentSums:
        if ends == "before":
            await run()
        found = await read(database, scope_id, now)
        if ends == "after":
            await run()
        return found

    monkeypatch.setattr("headrace.quotas.gate.queries.read_spent", beside)
    if admitted_first:
        await gate.admit(scopes, asked)
    await gate.correct()
    found = await sums(redis, owner.key_id)
    assert (found["d"], found["open0"]) == ((4_200_000, 0) if ends == "before" else (0, 1))
    await gate.settle([owner.key_id], [Spent(asked.job_id, SPENT.tokens.total_tokens, SPENT.cost or Decimal())])
    found = await sums(redis, owner.key_id)
    assert (found["d"], found["m"], found["held"], found["open0"]) == (4_200_000, 4_200_000, 0, 0)
    assert int(await redis.hget(f"hr:quota:{owner.key_id}:tokens", "sum") or 0) == SPENT.tokens.total_tokens


async def test_a_job_under_rates_alone_is_settled_however_long_it_takes(
    redis: Redis, gate: Gate, jobs: Jobs, owner: Owner
) -> None:
    scopes = [scope(owner, tokens_per_minute=1000)]
    asked = demand(background=True, tokens=900)
    await gate.admit(scopes, asked)
    running = await jobs.run(id=asked.job_id)
    await gate.correct()
    await jobs.finish(end_of(running))
    await gate.reconcile()
    admission = await gate.admit(scopes, demand(tokens=900))
    assert admission.headers["x-ratelimit-remaining-tokens"] == str(100 - SPENT.tokens.total_tokens)


async def test_a_scope_that_holds_nothing_is_not_looked_at_any_more(redis: Redis, gate: Gate, owner: Owner) -> None:
    asked = demand()
    await gate.admit([scope(owner, tokens_per_minute=1000)], asked)
    await gate.settle([owner.key_id], [Spent(asked.job_id, 10, Decimal(0))])
    assert await redis.scard("hr:quota:scopes") == 1
    await gate.correct()
    assert await redis.scard("hr:quota:scopes") == 0


async def pass_hours(redis: Redis, owner: Owner, hours: float) -> None:
    """Make what is counted of a key so much older."""
    key = f"hr:quota:{owner.key_id}:sums"
    assert await redis.expire(key, await redis.ttl(key) - int(hours * 3600))


async def known(redis: Redis) -> set[str]:
    return {raw.decode() if isinstance(raw, bytes) else raw for raw in await redis.smembers("hr:quota:scopes")}


STATEFUL = pytest.mark.parametrize("limits", [{"daily_budget": Decimal(1)}, {"jobs_in_flight": 2}, {"jobs_queued": 2}])


@STATEFUL
async def test_a_scope_that_admits_nothing_for_an_hour_is_not_looked_at_any_more(
    redis: Redis, gate: Gate, jobs: Jobs, owner: Owner, limits: dict[str, Any]
) -> None:
    scopes, asked = [scope(owner, **limits)], demand()
    for _ in range(2):
        await gate.admit(scopes, asked)
        await jobs.finish(end_of(await jobs.run(id=asked.job_id)))
        await gate.reconcile()
        for _ in range(2):
            await pass_hours(redis, owner, 0.45)
            await gate.correct()
            assert await known(redis) == {owner.key_id}
        asked = demand()  # it is let in just before the hour is over, and the next one begins
    await pass_hours(redis, owner, 0.2)
    await gate.correct()
    assert await known(redis) == set()
    assert not await redis.exists(f"hr:quota:{owner.key_id}:sums", f"hr:quota:{owner.key_id}:open")
    await gate.admit(scopes, demand())
    found = await sums(redis, owner.key_id)
    assert (found["d"], found["open0"]) == (2 * int((SPENT.cost or 0) * 10**9), 1), "Postgres was asked again"


@STATEFUL
async def test_a_scope_with_an_open_job_is_not_forgotten(
    redis: Redis, gate: Gate, jobs: Jobs, owner: Owner, limits: dict[str, Any]
) -> None:
    asked = demand(background=True)
    await gate.admit([scope(owner, **limits)], asked)
    running = await jobs.run(id=asked.job_id)
    await pass_hours(redis, owner, 30)
    for _ in range(2):
        await gate.correct()
    assert (await sums(redis, owner.key_id))["open1"] == 1
    await jobs.finish(end_of(running))
    await gate.reconcile()
    await gate.correct()
    assert await known(redis) == {owner.key_id}, "it held something back until now"
    await pass_hours(redis, owner, 1.1)
    await gate.correct()
    assert await known(redis) == set()


async def test_what_is_forgotten_meanwhile_is_not_put_right(
    redis: Redis, database: Database, gate: Gate, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    scopes, asked = [scope(owner, daily_budget=Decimal(1))], demand()
    await gate.admit(scopes, asked)
    await gate.settle([owner.key_id], [Spent(asked.job_id, 0, Decimal(0))])
    read = queries.read_spent

    async def beside(database: Database, scope_id: str, now: datetime) -> queries.SpentSums:
        found = await read(database, scope_id, now)
        monkeypatch.undo()
        await pass_hours(redis, owner, 1.1)
        await Gate(redis, database, open_without_redis=False).correct()
        return found

    monkeypatch.setattr("headrace.quotas.gate.queries.read_spent", beside)
    await gate.correct()
    assert await known(redis) == set()
    assert await sums(redis, owner.key_id) == {}
    assert await admitted(gate, scopes, demand()) != []


async def test_what_was_spent_in_other_days_and_months_is_dropped(redis: Redis, gate: Gate, owner: Owner) -> None:
    await gate.admit([scope(owner, daily_budget=Decimal(1))], demand())
    key = f"hr:quota:{owner.key_id}:sums"
    present = set(await redis.hkeys(key))
    await redis.hset(key, mapping={"d:2026-01-31": 1, "m:2026-01": 1})
    # Another process may be in the next day already.
    await redis.hset(key, mapping={"d:2999-01-01": 1, "m:2999-01": 1})
    await gate.correct()
    assert set(await redis.hkeys(key)) == present | {b"d:2999-01-01", b"m:2999-01"}


@dataclass
class Calendar:
    """Gives all gates the day that a test says it is."""

    day: str = "2026-01-30"

    def periods(self, now: datetime) -> tuple[str, str]:
        return f"d:{self.day}", f"m:{self.day[:7]}"


@pytest.fixture
def calendar(monkeypatch: pytest.MonkeyPatch) -> Calendar:
    calendar = Calendar()
    monkeypatch.setattr("headrace.quotas.gate._periods", calendar.periods)
    return calendar


async def test_a_busy_scope_begins_a_day_without_a_load(
    redis: Redis, gate: Gate, owner: Owner, calendar: Calendar, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs that end while Postgres is asked would void each load of the new day, and all requests would get a 503."""
    scopes = [scope(owner, daily_budget=2 * CENT, monthly_budget=4 * CENT)]

    async def spend() -> None:
        asked = demand()
        assert await admitted(gate, scopes, asked) == [asked]
        await gate.settle([owner.key_id], [Spent(asked.job_id, 10, CENT)])

    over_midnight = demand(cost=Decimal(0))
    await gate.admit(scopes, over_midnight)
    await spend()
    await spend()
    with pytest.raises(QuotaExceededError, match="daily budget"):
        await gate.admit(scopes, demand())
    monkeypatch.delattr("headrace.quotas.queries.read_spent")
    calendar.day = "2026-01-31"
    await gate.settle([owner.key_id], [Spent(over_midnight.job_id, 10, CENT)])
    await spend()
    with pytest.raises(QuotaExceededError, match="daily budget"):
        await gate.admit(scopes, demand())
    calendar.day = "2026-02-01"
    await spend()
    calendar.day = "2026-01-31"  # the clock of another process is late
    with pytest.raises(QuotaExceededError, match="daily budget"):
        await gate.admit(scopes, demand())
    kept = await fields(redis, owner.key_id)
    assert {name: nano // 10**7 for name, nano in kept.items() if ":" in name} == {
        "d:2026-01-30": 2,
        "d:2026-01-31": 2,
        "d:2026-02-01": 1,
        "m:2026-01": 4,
        "m:2026-02": 1,
    }


async def test_a_scope_whose_jobs_end_meanwhile_is_loaded(
    redis: Redis, gate: Gate, jobs: Jobs, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key under a rate gets a budget while it is busy."""
    rate = [scope(owner, requests_per_minute=100)]
    running = []
    for _ in range(10):
        await gate.admit(rate, asked := demand(background=True))
        running.append(await jobs.run(id=asked.job_id, background=True))
    read = queries.read_spent

    async def end_one_meanwhile(database: Database, scope_id: str, now: datetime) -> queries.SpentSums:
        found = await read(database, scope_id, now)
        ended = running.pop()
        await jobs.finish(end_of(ended))
        await gate.settle_ended(rate, ended.id)
        return found

    monkeypatch.setattr("headrace.quotas.gate.queries.read_spent", end_one_meanwhile)
    await gate.admit([scope(owner, daily_budget=Decimal(1))], demand())
    monkeypatch.undo()
    await gate.reconcile()
    found = await sums(redis, owner.key_id)
    assert found["d"] == (10 - len(running)) * int((SPENT.cost or 0) * 10**9)
    assert (found["open0"], found["open1"]) == (1, len(running))


async def test_a_day_before_those_that_are_loaded_is_loaded(redis: Redis, gate: Gate, owner: Owner) -> None:
    await gate.admit([scope(owner, daily_budget=Decimal(1))], demand())
    key = f"hr:quota:{owner.key_id}:sums"
    [today] = [name for name in await fields(redis, owner.key_id) if name.startswith("d:")]
    await redis.hdel(key, today)
    await redis.hset(key, "d:2999-01-01", 1)
    await gate.admit([scope(owner, daily_budget=Decimal(1))], demand())
    assert await redis.hexists(key, today)


async def test_a_scope_that_was_loaded_and_admits_nothing_is_looked_at(
    redis: Redis, gate: Gate, jobs: Jobs, owner: Owner
) -> None:
    running = await jobs.run(background=False)
    scopes = [scope(owner, jobs_in_flight=1)]
    assert await admitted(gate, scopes, demand()) == []
    await jobs.finish(end_of(running))
    await gate.reconcile()
    assert len(await admitted(gate, scopes, demand())) == 1


async def test_however_a_job_ends_it_lets_go(
    redis: Redis, database: Database, gate: Gate, jobs: Jobs, owner: Owner, calendar: Calendar
) -> None:
    scopes = [scope(owner, jobs_in_flight=100, jobs_queued=100, daily_budget=Decimal(10), tokens_per_minute=10_000)]
    kinds = ("completed", "cancelled", "deleted", "running", "never")
    held = {kind: demand(background=kind != "never") for kind in kinds}
    for asked in held.values():
        await gate.admit(scopes, asked)
    for kind in ("completed", "running", "deleted"):
        run = await jobs.run(id=held[kind].job_id)
        if kind != "running":
            await jobs.finish(end_of(run))
    await delete_job(database, held["deleted"].job_id, owner.account_id)
    await jobs.submit(id=held["cancelled"].job_id)
    await cancel_job(database, held["cancelled"].job_id, owner.account_id, error=ERROR)
    await gate.reconcile()
    found = await sums(redis, owner.key_id)
    assert (found["open0"], found["open1"]) == (1, 1), "one runs, and one may still be on its way to its row"
    assert found["d"] == 2 * int((SPENT.cost or 0) * 10**9)
    await gate.settle([owner.key_id], await queries.find_ended(database, [held["never"].job_id], patience_seconds=0))
    found = await sums(redis, owner.key_id)
    assert (found["open0"], found["open1"], found["held"]) == (0, 1, 10_000_000)
    tokens = await redis.hget(f"hr:quota:{owner.key_id}:tokens", "sum")
    assert int(tokens or 0) == 2 * SPENT.tokens.total_tokens + 10


async def test_requests_a_minute(gate: Gate, clock: Clock, owner: Owner) -> None:
    scopes = [scope(owner, requests_per_minute=3), Scope(owner.account_id, Limits(requests_per_minute=5))]
    headers = [(await gate.admit(scopes, demand())).headers for _ in range(3)]
    assert [found["x-ratelimit-remaining-requests"] for found in headers] == ["2", "1", "0"]
    assert {found["x-ratelimit-limit-requests"] for found in headers} == {"3"}
    assert headers[0]["x-ratelimit-reset-requests"] == "1m1s"
    with pytest.raises(RateLimitError, match=r"requests per min \(RPM\): Limit 3, Used 3, Requested 1") as refused:
        await gate.admit(scopes, demand())
    assert refused.value.retry_after == 61
    assert refused.value.headers["x-ratelimit-remaining-requests"] == "0"
    # The account's limit was not touched by what the key's refused.
    assert len(await admitted(gate, scopes[1:], *(demand() for _ in range(4)))) == 2


async def test_a_clock_that_is_set_back_uses_up_no_rate(clock: Clock, gate: Gate, owner: Owner) -> None:
    scopes = [scope(owner, requests_per_minute=60)]

    async def ask_every_two_seconds(count: int) -> int:
        let_in = 0
        for _ in range(count):
            let_in += len(await admitted(gate, scopes, demand()))
            await clock.pass_by(2)
        return let_in

    assert await ask_every_two_seconds(100) == 100
    await clock.pass_by(-600)
    assert await ask_every_two_seconds(300) > 290
    assert await ask_every_two_seconds(100) == 100, "also past the time at which the clock was set back"


async def test_what_a_minute_ago_was_taken_is_free_again(redis: Redis, gate: Gate, clock: Clock, owner: Owner) -> None:
    scopes = [scope(owner, requests_per_minute=2, tokens_per_minute=25)]
    key = f"hr:quota:{owner.key_id}:"
    now = clock.now
    window: dict[Any, Any] = {"from": now - 70, "last": now - 50}
    await redis.hset(f"{key}requests", mapping={**window, "sum": 3, str(now - 62): 2, str(now - 50): 1})
    await redis.hset(f"{key}tokens", mapping={**window, "sum": 30, str(now - 62): 20, str(now - 50): 10})
    admission = await gate.admit(scopes, demand())
    assert admission.headers["x-ratelimit-remaining-tokens"] == "5"
    with pytest.raises(RateLimitError) as refused:
        await gate.admit(scopes, demand())
    assert refused.value.retry_after == 11, "when the one of 50 s ago is a minute old"


@pytest.mark.parametrize("seed", range(3))
async def test_sums_are_those_of_what_is_held_and_was_taken(
    redis: Redis, gate: Gate, owner: Owner, calendar: Calendar, seed: int
) -> None:
    chance = random.Random(seed)
    scopes = [
        scope(owner, tokens_per_minute=2_000, daily_budget=Decimal(900_000), jobs_in_flight=12, wait=True),
        Scope(owner.account_id, Limits(requests_per_minute=60, monthly_budget=Decimal(700_000), jobs_queued=20)),
    ]
    open_jobs: dict[str, Demand] = {}
    spent = Decimal()
    for _ in range(200):
        if open_jobs and chance.random() < 0.4:
            job = open_jobs.pop(chance.choice(list(open_jobs)))
            cost = job.cost * Decimal(chance.choice(["0", "1", "1.5", "0.333333333"]))
            await gate.settle([s.id for s in scopes], [Spent(job.job_id, chance.randrange(200), cost)])
            spent += cost
        cost = Decimal(chance.randrange(50_000 * 10**9)).scaleb(-9)
        asked = demand(background=chance.random() < 0.5, tokens=chance.randrange(100), cost=cost)
        if await admitted(gate, scopes, asked):
            open_jobs[asked.job_id] = asked
    for scope_id in (owner.key_id, owner.account_id):
        found = await sums(redis, scope_id)
        assert found["held"] == sum(int(job.cost * 10**9) for job in open_jobs.values())
        assert found["open0"] == sum(not job.background for job in open_jobs.values())
        assert found["open1"] == sum(job.background for job in open_jobs.values())
        assert found["d"] == found["m"] == pytest.approx(int(spent * 10**9), abs=200), "each rounded up"
        for part in ("requests", "tokens"):
            window = await redis.hgetall(f"hr:quota:{scope_id}:{part}")
            seconds = [int(count) for second, count in window.items() if second.isdigit()]
            assert sum(seconds) == int(window.get(b"sum", 0))


async def test_tokens_are_estimated_and_then_settled(gate: Gate, owner: Owner) -> None:
    scopes = [scope(owner, tokens_per_minute=100)]
    first = demand(tokens=90)
    await gate.admit(scopes, first)
    with pytest.raises(RateLimitError, match=r"tokens per min \(TPM\): Limit 100, Used 90, Requested 20"):
        await gate.admit(scopes, demand(tokens=20))
    await gate.settle([owner.key_id], [Spent(first.job_id, 30, Decimal(0))])
    admission = await gate.admit(scopes, demand(tokens=20))
    assert admission.headers["x-ratelimit-remaining-tokens"] == "50"
    with pytest.raises(RateLimitError, match="Request too large") as refused:
        await gate.admit(scopes, demand(tokens=101))
    assert refused.value.retry_after is None
    assert not refused.value.retryable


async def test_background_jobs_may_wait_and_never_break_the_rate(gate: Gate, clock: Clock, owner: Owner) -> None:
    scopes = [scope(owner, requests_per_minute=3, wait=True)]
    waits = [(await gate.admit(scopes, demand(background=True))).delay_seconds for _ in range(10)]
    assert waits == [0] * 3 + [61] * 3 + [122] * 3 + [183]
    with pytest.raises(RateLimitError):  # a foreground request does not wait that long
        await gate.admit(scopes, demand())


async def test_jobs_that_were_cancelled_while_they_waited_are_in_nobodys_way(
    redis: Redis, gate: Gate, clock: Clock, owner: Owner
) -> None:
    scopes = [scope(owner, requests_per_minute=1, tokens_per_minute=1000, wait=True)]
    waiting = [demand(background=True) for _ in range(30)]
    for asked in waiting:
        await gate.admit(scopes, asked)
    await clock.pass_by(62)  # the second has begun by now
    for asked in waiting[2:]:
        await gate.settle([owner.key_id], [Spent(asked.job_id, 0, Decimal(0))])
    assert {name: await last_second(redis, owner, name) for name in ("requests", "tokens")} == {
        "requests": NOON + 61,
        "tokens": NOON + 61,
    }
    assert (await gate.admit(scopes, demand(background=True))).delay_seconds == 60
    await gate.settle([owner.key_id], [Spent(waiting[1].job_id, 0, Decimal(0))])
    await clock.pass_by(121)
    assert (await gate.admit(scopes, demand())).headers["x-ratelimit-remaining-requests"] == "0"


async def last_second(redis: Redis, owner: Owner, name: str) -> int:
    return int(await redis.hget(f"hr:quota:{owner.key_id}:{name}", "last") or 0)


async def test_what_waits_for_later_is_in_nobodys_way_now(gate: Gate, clock: Clock, owner: Owner) -> None:
    account = Scope(owner.account_id, Limits(tokens_per_minute=100_000))
    patient, other = scope(owner, requests_per_minute=1, wait=True), Scope("key_other", Limits())
    asked = demand(background=True, tokens=4000)
    waits = [(await gate.admit([patient, account], replace(asked, job_id=new_id("job")))) for _ in range(30)]
    assert waits[-1].delay_seconds == 29 * 61
    assert waits[-1].headers["x-ratelimit-remaining-tokens"] == "96000", "of the last minute, not of those to come"
    admission = await gate.admit([other, account], demand(tokens=90_000))
    assert admission.headers["x-ratelimit-remaining-tokens"] == "6000"
    # A minute from now another 4,000 tokens are taken: until then only the rest of this minute is free.
    with pytest.raises(RateLimitError, match=r"Limit 100000, Used 94000, Requested 6001. Please try again in 1m1s"):
        await gate.admit([other, account], demand(tokens=6001))
    await gate.admit([other, account], demand(tokens=6000))
    with pytest.raises(RateLimitError, match="Limit 100000, Used 100000, Requested 1") as refused:
        await gate.admit([other, account], demand(tokens=1))
    assert refused.value.headers["x-ratelimit-reset-tokens"] == "1m1s"


async def test_who_cannot_be_let_in_before_those_that_wait_is_told_so(gate: Gate, clock: Clock, owner: Owner) -> None:
    scopes = [scope(owner, requests_per_minute=1, wait=True)]
    for _ in range(5):
        await gate.admit(scopes, demand(background=True))
    await clock.pass_by(60)
    with pytest.raises(RateLimitError, match=r"Limit 1, Used 1, Requested 1. Please try again in \dm") as refused:
        await gate.admit(scopes, demand())
    assert refused.value.headers["x-ratelimit-reset-requests"] == "1s"
    await clock.pass_by(4 * 61 - 60)
    with pytest.raises(RateLimitError, match=r"Please try again in 1m1s"):
        await gate.admit(scopes, demand())
    await clock.pass_by(61)
    await gate.admit(scopes, demand())


@dataclass
class Taken:
    """The amount of a limit that was taken in each second."""

    limit: int
    seconds: Counter[int] = field(default_factory=Counter)

    def ending(self, at: int) -> int:
        """Return what the minute has that ends with a second."""
        return sum(count for second, count in self.seconds.items() if at - 60 <= second <= at)

    def fits(self, at: int, more: int) -> bool:
        """Return whether so much more may be taken in a second."""
        ends = {at, *(second for second in self.seconds if at < second <= at + 60)}
        return all(self.ending(end) + more <= self.limit for end in ends)


class Minute:
    """Two keys of an account, and the amounts taken of their limits: by the script, and by counting."""

    def __init__(self, redis: Redis, requests: int, tokens: int) -> None:
        self.redis = redis
        self.gate = Gate(redis, Database.connect("postgresql://nowhere"), open_without_redis=False)
        self.clock = Clock(redis)
        self.limits = {
            "key_a": Limits(requests_per_minute=requests, tokens_per_minute=tokens, wait=True),
            "key_b": Limits(),
            "acct": Limits(requests_per_minute=requests + 1, tokens_per_minute=tokens + 30),
        }
        self.taken = {
            ("key_a", "requests"): Taken(requests),
            ("key_a", "tokens"): Taken(tokens),
            ("acct", "requests"): Taken(requests + 1),
            ("acct", "tokens"): Taken(tokens + 30),
        }
        self.open_jobs: list[tuple[Demand, int, list[str]]] = []

    async def ask(self, names: list[str], asked: Demand) -> None:
        """Ask for a job, and see that it is let in if there is room, and that the headers are true."""
        now = self.clock.now
        more = {(name, what): asked.tokens if what == "tokens" else 1 for name, what in self.taken if name in names}
        room = all(self.taken[place].fits(now, count) for place, count in more.items())
        left = {place: self.taken[place].limit - self.taken[place].ending(now) for place in more}
        try:
            admission = await self.gate.admit([Scope(name, self.limits[name]) for name in names], asked)
        except RateLimitError as error:
            assert not room
            headers = error.headers
        else:
            at, headers = now + int(admission.delay_seconds), admission.headers
            assert room == (at == now)
            last = {place: max(self.taken[place].seconds, default=0) for place in more}
            assert at == now or any(at >= last["key_a", what] for what in ("requests", "tokens")), (
                "no waiting job is overtaken"
            )
            self.open_jobs.append((asked, at, names))
            for place, count in more.items():
                self.taken[place].seconds[at] += count
                left[place] -= count if at == now else 0
        for what in ("requests", "tokens"):
            least = min(count for place, count in left.items() if place[1] == what)
            assert headers[f"x-ratelimit-remaining-{what}"] == str(least)

    async def settle(self, choice: int) -> None:
        """Let an open job end: it used a part of its tokens, or if it never began, nothing."""
        if not self.open_jobs:
            return
        job, at, names = self.open_jobs.pop(choice % len(self.open_jobs))
        begun = at <= self.clock.now
        used = job.tokens * choice // 100 if begun else 0
        await self.gate.settle(names, [Spent(job.job_id, used, Decimal(0))])
        for (name, what), taken in self.taken.items():
            if name in names:
                taken.seconds[at] -= job.tokens - used if what == "tokens" else int(not begun)

    async def check(self) -> None:
        """Check that no minute exceeds its limit, and that Redis has the counted amounts."""
        for (name, what), taken in self.taken.items():
            taken.seconds = +taken.seconds
            assert all(taken.ending(at) <= taken.limit for at in taken.seconds)
            raw = await self.redis.hgetall(f"hr:quota:{name}:{what}")
            kept = {key.decode(): int(count) for key, count in raw.items()}  # type: ignore[union-attr]
            seconds = {int(key): count for key, count in kept.items() if key.isdigit()}
            assert seconds.items() <= taken.seconds.items()
            assert {at for at in taken.seconds if at > self.clock.now - 61} <= seconds.keys()
            assert kept.get("sum", 0) == sum(seconds.values())
            # Seconds that have left the window stay until the next request, and which of them was last is no matter.
            left, newest = self.clock.now - 61, max(seconds, default=0)
            assert kept["last"] == newest if newest > left else kept.get("last", 0) <= left


STEP = st.tuples(
    st.sampled_from(["pass", "wait", "wait", "ask", "other", "settle", "settle"]),
    st.integers(1, 60) | st.integers(1, 10),
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(requests=st.integers(1, 4), tokens=st.integers(30, 150), steps=st.lists(STEP, min_size=20, max_size=40))
def test_no_minute_exceeds_its_limit_and_every_request_that_fits_is_admitted(
    valkey: EmbeddedValkey, requests: int, tokens: int, steps: list[tuple[str, int]]
) -> None:
    """Jobs of the first key wait for its rate; the account's rate holds for both keys and is never waited for."""

    async def run() -> None:
        async with connect_redis(valkey.url) as redis:
            await redis.flushall()
            minute = Minute(redis, requests, tokens)
            await minute.clock.govern(minute.gate)
            for step, amount in steps:
                if step == "pass":
                    await minute.clock.pass_by(amount)
                elif step == "settle":
                    await minute.settle(amount)
                else:
                    names = ["key_b" if step == "other" else "key_a", "acct"]
                    await minute.ask(names, demand(background=step == "wait", tokens=amount))
                await minute.check()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("limits", "background"),
    [({"jobs_in_flight": 1}, False), ({"jobs_queued": 1}, True), ({"daily_budget": CENT}, False)],
)
async def test_whatever_refuses_a_job_its_rates_are_told(
    gate: Gate, clock: Clock, owner: Owner, limits: dict[str, Any], background: bool
) -> None:
    rates: dict[str, Any] = {"requests_per_minute": 5, "tokens_per_minute": 100}
    scopes = [scope(owner, **limits), Scope(owner.account_id, Limits(**rates))]
    admission = await gate.admit(scopes, demand(background=background))
    assert admission.headers["x-ratelimit-remaining-requests"] == "4"
    await clock.pass_by(20)
    with pytest.raises(RateLimitError) as refused:
        await gate.admit(scopes, demand(background=background))
    told = {name: value for name, value in refused.value.headers.items() if name.startswith("x-ratelimit-")}
    assert told == {
        "x-ratelimit-limit-requests": "5",
        "x-ratelimit-remaining-requests": "4",
        "x-ratelimit-reset-requests": "41s",
        "x-ratelimit-limit-tokens": "100",
        "x-ratelimit-remaining-tokens": "90",
        "x-ratelimit-reset-tokens": "41s",
    }


async def test_what_may_cost_more_than_a_budget_runs_alone(redis: Redis, gate: Gate, owner: Owner) -> None:
    scopes = [scope(owner, daily_budget=Decimal("0.10"))]
    large, small, free = (demand(cost=Decimal(cost)) for cost in ("5", "0.001", "0"))
    assert await admitted(gate, scopes, large, replace(large, job_id=new_id("job")), small) == [large]
    assert await admitted(gate, scopes, free) == [free], "it exceeds nothing"
    await gate.settle([owner.key_id], [Spent(large.job_id, 4, Decimal("0.095"))])
    assert await admitted(gate, scopes, small, replace(large, job_id=new_id("job"))) == [small]
    await gate.settle([owner.key_id], [Spent(small.job_id, 4, Decimal("0.001"))])
    last = replace(large, job_id=new_id("job"))
    assert await admitted(gate, scopes, last) == [last], "something is left"
    await gate.settle([owner.key_id], [Spent(last.job_id, 4, Decimal("0.005"))])
    assert await admitted(gate, scopes, small, replace(large, job_id=new_id("job")), free) == []


async def test_jobs_in_flight(gate: Gate, owner: Owner) -> None:
    scopes = [scope(owner, jobs_in_flight=2)]
    found = await admitted(gate, scopes, *(demand() for _ in range(5)))
    assert len(found) == 2
    assert len(await admitted(gate, scopes, demand(background=True))) == 1
    await gate.settle([owner.key_id], [Spent(found[0].job_id, 0, Decimal(0))])
    assert len(await admitted(gate, scopes, demand(), demand())) == 1


async def test_while_redis_is_unavailable(database: Database, owner: Owner) -> None:
    nowhere = Redis.from_url("redis://127.0.0.1:9/0", socket_connect_timeout=1)
    scopes = [scope(owner, requests_per_minute=1)]
    with pytest.raises(UnavailableError) as refused:
        await Gate(nowhere, database, open_without_redis=False).admit(scopes, demand())
    assert refused.value.status == 503
    for _ in range(3):
        await Gate(nowhere, database, open_without_redis=True).admit(scopes, demand())
    with pytest.raises(RedisError):
        await Gate(nowhere, database, open_without_redis=True).reconcile()


@pytest.mark.parametrize(
    ("refuse", "restore"),
    [
        (["CONFIG", "SET", "maxmemory", "1"], ["CONFIG", "SET", "maxmemory", "0"]),
        (["REPLICAOF", "127.0.0.1", "9"], ["REPLICAOF", "NO", "ONE"]),
        (["ACL", "SETUSER", "default", "-@write"], ["ACL", "SETUSER", "default", "+@all"]),
    ],
    ids=["full", "a replica", "without permission"],
)
async def test_a_redis_that_refuses_writes_is_as_one_that_is_unavailable(
    database: Database, owner: Owner, valkey: EmbeddedValkey, refuse: list[str], restore: list[str]
) -> None:
    redis = connect_redis(valkey.url)
    scopes = [scope(owner, requests_per_minute=1)]
    queue = JobQueue(redis, leave_unsent)
    try:
        assert await redis_takes_writes(redis)
        await redis.execute_command(*refuse)
        assert not await redis_takes_writes(redis)
        with pytest.raises(UnavailableError):
            await Gate(redis, database, open_without_redis=False).admit(scopes, demand())
        await Gate(redis, database, open_without_redis=True).admit(scopes, demand())
        queue.wake([new_id("job")], tier="default")
        await queue.close()
    finally:
        await redis.execute_command(*restore)
    assert await redis_takes_writes(redis)
    await Gate(redis, database, open_without_redis=False).admit(scopes, demand())
    await redis.aclose()


async def test_of_a_budget_a_half_four_fifths_and_all_are_told_once(
    database: Database, jobs: Jobs, owner: Owner
) -> None:
    await limit_account(
        database, owner.account_id, Limits(daily_budget=Decimal("0.01"), alert_webhook="https://example.com/hook")
    )
    told: list[list[Any]] = []
    for _ in range(3):
        await jobs.complete()  # for 0.0042 USD
        for _ in range(2):
            await alert(database)
        rows = await execute(
            database.relaxed, "SELECT payload::json -> 'data' ->> 'percent' AS percent FROM webhook_deliveries"
        )
        told.append(sorted(int(row.percent) for row in rows))
    assert told == [[], [50, 80], [50, 80, 100]]
    await limit_account(
        database, owner.account_id, Limits(daily_budget=Decimal("0.02"), alert_webhook="https://example.com/hook")
    )
    for _ in range(2):
        await alert(database)
    rows = await execute(
        database.relaxed, "SELECT payload::json -> 'data' AS data FROM webhook_deliveries ORDER BY created_at DESC"
    )
    assert len(rows) == 4, "of the new budget a half is spent"
    assert (rows[0].data["percent"], rows[0].data["limit"], rows[0].data["spent"]) == (50, "0.02", "0.0126")
    await limit_account(database, owner.account_id, Limits())


async def test_an_alert_at_midnight_is_of_the_day_whose_spending_it_tells(
    database: Database, jobs: Jobs, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    today = datetime.now(UTC).replace(hour=23, minute=59, second=59)
    moments = iter([today, *[today + timedelta(seconds=1)] * 9])

    class Midnight(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Self:
            return cls.fromtimestamp(next(moments).timestamp(), tz)

    limits = Limits(daily_budget=Decimal("0.0042"), alert_webhook="https://example.com/hook")
    await limit_account(database, owner.account_id, limits)
    await jobs.complete()
    monkeypatch.setattr("headrace.quotas.alerts.datetime", Midnight)
    await alert(database)
    query = "SELECT payload::json -> 'data' ->> 'period' AS period FROM webhook_deliveries"
    assert {row.period for row in await execute(database.relaxed, query)} == {f"{today:%Y-%m-%d}"}
    await limit_account(database, owner.account_id, Limits())


async def test_a_scope_that_is_not_in_postgres_or_is_spoilt_holds_up_no_other(
    redis: Redis, gate: Gate, jobs: Jobs, owner: Owner
) -> None:
    scopes = [scope(owner, daily_budget=Decimal(1))]
    job = await jobs.submit()
    await gate.admit(scopes, demand(job))
    for stranger in ("key_a", "acct_a"):  # as after a restore, in Redis's order before and behind the other
        await redis.sadd("hr:quota:scopes", stranger)
        await redis.hset(f"hr:quota:{stranger}:sums", mapping={"loaded": 1, "version": 1})
        await redis.expire(f"hr:quota:{stranger}:sums", 3_456_000)  # it was loaded just now
    await redis.sadd("hr:quota:scopes", "key_b")
    await redis.set("hr:quota:key_b:open", "nonsense")
    await redis.set("hr:quota:key_b:sums", "nonsense")
    await jobs.cancel(job)
    await gate.correct()
    await gate.reconcile()
    assert not await redis.exists(f"hr:quota:{owner.key_id}:open")
    assert await redis.smembers("hr:quota:scopes") == {owner.key_id.encode()}
    assert not await redis.exists("hr:quota:key_a:sums", "hr:quota:key_b:open", "hr:quota:key_b:sums")


async def test_lines_of_batches_take_from_the_rates_of_requests_alone(redis: Redis, gate: Gate, owner: Owner) -> None:
    rated = [scope(owner, requests_per_minute=3, tokens_per_minute=100, jobs_queued=1, jobs_in_flight=1)]
    rates = [Scope(each.id, each.limits.rates) for each in rated]
    assert await gate.admit_line(rates, new_id("job"), 10) == 0
    await gate.admit(rated, demand())
    assert await gate.admit_line(rates, new_id("job"), 10) == 0
    assert 0 < await gate.admit_line(rates, new_id("job"), 10) <= 61
    with pytest.raises(RateLimitError, match="requests per min"):
        await gate.admit(rated, demand(background=True))
    tokens = await redis.hget(f"hr:quota:{owner.key_id}:tokens", "sum")
    assert int(tokens or 0) == 30, "what is refused takes nothing"


async def test_a_line_that_is_too_large_takes_all_of_a_minute(gate: Gate, owner: Owner) -> None:
    rates = [scope(owner, tokens_per_minute=100)]
    assert await gate.admit_line(rates, new_id("job"), 1_000) == 0
    assert await gate.admit_line(rates, new_id("job"), 1) > 0
