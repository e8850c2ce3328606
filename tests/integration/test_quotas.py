from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from headrace.database import Database, execute
from headrace.errors import QuotaExceededError, RateLimitError, UnavailableError
from headrace.ids import new_id
from headrace.jobs.queries import cancel_job, delete_job
from headrace.keys.queries import limit_account
from headrace.quotas import queries
from headrace.quotas.gate import Demand, Gate, Scope
from headrace.quotas.queries import Spent
from headrace.quotas.rules import Limits
from tests.integration.jobs import ERROR, SPENT, Jobs, Owner, end_of
from tests.service import Stores

CENT = Decimal("0.01")


@pytest.fixture
async def redis(stores: Stores) -> AsyncIterator[Redis]:
    redis = Redis.from_url(stores.redis_url, socket_timeout=2)
    for key in await redis.keys("hr:quota:*"):
        await redis.delete(key)
    yield redis
    await redis.aclose()


@pytest.fixture
def gate(redis: Redis, database: Database) -> Gate:
    return Gate(redis, database, open_when_away=False)


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


async def sums(redis: Redis, scope_id: str) -> dict[str, int]:
    raw = await redis.hgetall(f"hr:quota:{scope_id}:sums")
    names = [name if isinstance(name, str) else name.decode() for name in raw]
    return {name.split(":")[0]: int(value) for name, value in zip(names, raw.values(), strict=True)}


async def test_without_limits_nobody_is_asked(database: Database, owner: Owner) -> None:
    nowhere = Redis.from_url("redis://127.0.0.1:9/0")
    assert (await Gate(nowhere, database, open_when_away=False).admit([scope(owner)], demand())).headers == {}


async def test_a_budget_holds_whoever_asks_at_once(redis: Redis, database: Database, gate: Gate, owner: Owner) -> None:
    other = Gate(redis, database, open_when_away=False)
    scopes = [scope(owner, daily_budget=Decimal("0.5")), Scope(owner.account_id, Limits(monthly_budget=Decimal(7)))]
    found = await asyncio.gather(*(admitted(gates, scopes, *(demand() for _ in range(100))) for gates in (gate, other)))
    assert sum(map(len, found)) == 50
    with pytest.raises(QuotaExceededError, match=r"daily budget of 0\.5 USD") as refused:
        await gate.admit(scopes, demand())
    assert refused.value.type == refused.value.code == "insufficient_quota"
    assert 0 < (refused.value.retry_after or 0) <= 86_400
    assert (await sums(redis, owner.account_id))["held"] == 500_000_000, "what is refused takes nothing"


async def test_what_was_spent_counts_and_what_was_held_back_comes_free(redis: Redis, gate: Gate, owner: Owner) -> None:
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

    async def slowly(database: Database, scope_id: str) -> queries.SpentSums:
        found = await read(database, scope_id)
        await gate.settle([owner.key_id], [Spent(job.job_id, 1, CENT)])
        return found

    monkeypatch.setattr("headrace.quotas.gate.queries.read_spent", slowly)
    await gate.correct()
    assert (await sums(redis, owner.key_id))["d"] == 10_000_000
    monkeypatch.undo()
    await gate.correct()  # the ledger knows no such job
    assert (await sums(redis, owner.key_id))["d"] == 0


async def test_however_a_job_ends_it_lets_go(
    redis: Redis, database: Database, gate: Gate, jobs: Jobs, owner: Owner
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


async def test_requests_a_minute(gate: Gate, owner: Owner) -> None:
    scopes = [scope(owner, requests_per_minute=3), Scope(owner.account_id, Limits(requests_per_minute=5))]
    headers = [(await gate.admit(scopes, demand())).headers for _ in range(3)]
    assert [found["x-ratelimit-remaining-requests"] for found in headers] == ["2", "1", "0"]
    assert {found["x-ratelimit-limit-requests"] for found in headers} == {"3"}
    assert headers[0]["x-ratelimit-reset-requests"] == "1m1s"
    with pytest.raises(RateLimitError, match=r"requests per min \(RPM\): Limit 3, Used 3, Requested 1") as refused:
        await gate.admit(scopes, demand())
    assert 55 < (refused.value.retry_after or 0) <= 61
    assert refused.value.headers["x-ratelimit-remaining-requests"] == "0"
    # The account's limit was not touched by what the key's refused.
    assert len(await admitted(gate, scopes[1:], *(demand() for _ in range(4)))) == 2


async def test_what_a_minute_ago_was_taken_is_free_again(redis: Redis, gate: Gate, owner: Owner) -> None:
    scopes = [scope(owner, requests_per_minute=2, tokens_per_minute=25)]
    key = f"hr:quota:{owner.key_id}:"
    now = int((await redis.time())[0])
    window: dict[Any, Any] = {"from": now - 70, "last": now - 50}
    await redis.hset(f"{key}requests", mapping={**window, "sum": 3, str(now - 62): 2, str(now - 50): 1})
    await redis.hset(f"{key}tokens", mapping={**window, "sum": 30, str(now - 62): 20, str(now - 50): 10})
    admission = await gate.admit(scopes, demand())
    assert admission.headers["x-ratelimit-remaining-tokens"] == "5"
    with pytest.raises(RateLimitError) as refused:
        await gate.admit(scopes, demand())
    assert 8 <= (refused.value.retry_after or 0) <= 11, "when the one of 50 s ago is a minute old"


@pytest.mark.parametrize("seed", range(3))
async def test_sums_are_those_of_what_is_held_and_was_taken(redis: Redis, gate: Gate, owner: Owner, seed: int) -> None:
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
    assert refused.value.headers["x-should-retry"] == "false"


async def test_background_jobs_may_wait_and_never_break_the_rate(redis: Redis, gate: Gate, owner: Owner) -> None:
    scopes = [scope(owner, requests_per_minute=3, wait=True)]
    waits = [(await gate.admit(scopes, demand(background=True))).delay_seconds for _ in range(10)]
    assert waits[:3] == [0, 0, 0]
    assert waits == sorted(waits)
    now = int(time.time())
    starts = sorted(now + wait for wait in waits)
    assert all(later - earlier >= 60 for earlier, later in zip(starts, starts[3:], strict=False))
    with pytest.raises(RateLimitError):  # who waits in person does not wait that long
        await gate.admit(scopes, demand())


async def test_jobs_in_flight(gate: Gate, owner: Owner) -> None:
    scopes = [scope(owner, jobs_in_flight=2)]
    found = await admitted(gate, scopes, *(demand() for _ in range(5)))
    assert len(found) == 2
    assert len(await admitted(gate, scopes, demand(background=True))) == 1
    await gate.settle([owner.key_id], [Spent(found[0].job_id, 0, Decimal(0))])
    assert len(await admitted(gate, scopes, demand(), demand())) == 1


async def test_while_redis_is_away(database: Database, owner: Owner) -> None:
    nowhere = Redis.from_url("redis://127.0.0.1:9/0", socket_connect_timeout=1)
    scopes = [scope(owner, requests_per_minute=1)]
    with pytest.raises(UnavailableError) as refused:
        await Gate(nowhere, database, open_when_away=False).admit(scopes, demand())
    assert refused.value.status == 503
    for _ in range(3):
        await Gate(nowhere, database, open_when_away=True).admit(scopes, demand())
    with pytest.raises(RedisError):
        await Gate(nowhere, database, open_when_away=True).reconcile()


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
            await queries.alert(database)
        rows = await execute(
            database.relaxed, "SELECT payload::json -> 'data' ->> 'percent' AS percent FROM webhook_deliveries"
        )
        told.append(sorted(int(row.percent) for row in rows))
    assert told == [[], [50, 80], [50, 80, 100]]
    await limit_account(database, owner.account_id, Limits())
