from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from headrace.stores.database import Database, execute
from headrace.stores.plain import Prepared
from headrace.usage import rollups
from headrace.usage.partitions import ensure_partitions
from headrace.usage.queries import ask, correct_usage, statement_of_month
from headrace.usage.question import Bucket, Question
from headrace.usage.rollups import fold_usage, rebuild_rollups, verify_rollups
from tests.integration.databases import Session, seen_by_all
from tests.integration.job_rows import Jobs, Owner
from tests.integration.ledger import ZONES, Entry, draw, expected, write

KEYS = ("team",)
START, END = datetime(2026, 1, 20, tzinfo=UTC), datetime(2026, 4, 10, tzinfo=UTC)
GROUPS = ["model", "answered_model", "provider", "key", "agent", "batch", "tier", "user", "account"]
METADATA = ["metadata.team", "metadata.customer"]


@pytest.fixture(autouse=True)
async def empty(database: Database) -> None:
    await execute(database.durable, "TRUNCATE usage_rollups, usage_latencies, usage_mark")


async def check(database: Database) -> None:
    """Check that the stored sums equal those of the ledger."""
    found = await verify_rollups(database)
    assert (found.differences, found.counted_twice) == (0, 0)


async def same(database: Database, entries: Sequence[Entry], question: Question) -> None:
    """Check an answer against the same sums done in Python."""
    rows = await ask(database, question, limit=100_000, names=False)
    wanted = expected(entries, question)
    names = list(wanted[0]) if wanted else ["start_time"]

    def ordered(lines: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
        return sorted(
            (tuple(line[name] for name in names) for line in lines),
            key=lambda line: [(value is None, str(value)) for value in line],
        )

    assert ordered(rows) == ordered(wanted), question


def some_question(chance: random.Random, account_ids: list[str] | None) -> Question:
    first = START.timestamp() + chance.randrange(int((END - START).total_seconds()))
    start, end = sorted([int(first), int(first) + chance.choice([3600, 86_400, 30 * 86_400])])
    if chance.random() < 0.5:
        start, end = start - start % 86_400, end - end % 3600 + 3600
    bucket = chance.choice([None, *Bucket])
    names = chance.sample([*GROUPS, *METADATA], chance.choice([0, 1, 1, 2, 3]))
    only = {}
    if chance.random() < 0.4:
        name, values = chance.choice([("model", ["fake", "other"]), ("key", ["key_1"]), ("metadata.team", ["a"])])
        only = {name: values}
    if bucket is Bucket.MINUTE:
        end = min(end, start + 86_400)
    return Question(account_ids, start, end, bucket, chance.choice(ZONES), names, only, KEYS)


@pytest.mark.parametrize("seed", range(6))
async def test_any_question_has_the_answer_that_the_rows_add_up_to(
    database: Database, owner: Owner, stranger: Owner, seed: int
) -> None:
    chance = random.Random(seed)
    entries = [draw(chance, chance.choice([owner, stranger]).account_id, START, END) for _ in range(240)]
    await write(database, entries[:120])
    await fold_usage(database, metadata_keys=KEYS)
    await write(database, entries[120:200])
    await fold_usage(database, metadata_keys=KEYS)
    await check(database)
    await write(database, entries[200:])  # these are in no roll-up yet
    for _ in range(60):
        await same(database, entries, some_question(chance, chance.choice([[owner.account_id], None])))
    await fold_usage(database, metadata_keys=KEYS)
    await check(database)


def parts(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield all parts of a plan."""
    yield plan
    for part in plan.get("Plans", ()):
        yield from parts(part)


async def test_a_fold_reads_new_rows_alone_before_postgres_has_statistics(
    database: Database, owner: Owner, other_session: Session
) -> None:
    chance = random.Random(0)
    await write(database, [draw(chance, owner.account_id, START, END) for _ in range(2000)])
    clear = "SELECT pg_clear_relation_stats('public', relname) FROM pg_class WHERE oid::regclass::text ~ '^usage'"
    await execute(database.relaxed, clear + " AND relkind = 'r'")

    async def explain(statement: str) -> list[dict[str, Any]]:
        found = await other_session.execute(b"EXPLAIN (FORMAT JSON) " + statement.encode(), {"metadata_keys": []})
        [[[document]]] = await found.fetchall()
        return list(parts(document["Plan"]))

    fresh = next(part for part in await explain(rollups._FOLD) if part.get("Subplan Name") == "CTE fresh")
    assert fresh["Plan Rows"] <= 2000
    await other_session.execute("SET LOCAL enable_seqscan = off")  # as for every prepared statement
    assert isinstance(rollups._STATE, Prepared)
    plan = await explain(rollups._STATE)
    reads = {part["Node Type"] for part in plan if part.get("Relation Name", "usage_mark") != "usage_mark"}
    assert reads
    assert reads <= {"Index Scan", "Index Only Scan"}


async def test_what_commits_late_is_added_when_it_does(
    database: Database, owner: Owner, other_session: Session
) -> None:
    early, late = (Entry(owner.account_id, START + timedelta(hours=number)) for number in (1, 2))
    question = Question([owner.account_id], int(START.timestamp()), int(END.timestamp()))
    await fold_usage(database, metadata_keys=KEYS)
    await other_session.execute(
        "INSERT INTO usage (job_id, attempt, kind, account_id, model, provider, prompt_tokens, completion_tokens,"
        " cached_tokens, reasoning_tokens, estimated, cost, created_at, answered_model, key_id, queue_ms,"
        " first_token_ms, duration_ms) VALUES (%s, 1, 'counted', %s, 'fake', 'fake', 5, 3, 0, 0, false, 0.001, %s,"
        " 'fake-1', 'key_1', 3, 200, 900)",
        [late.job_id, owner.account_id, late.created_at],
    )
    await write(database, [early])
    for _ in range(2):
        await fold_usage(database, metadata_keys=KEYS)
        await same(database, [early], question)
    await other_session.commit()
    await seen_by_all(database)
    await same(database, [early, late], question)
    await fold_usage(database, metadata_keys=KEYS)
    await same(database, [early, late], question)
    await check(database)
    assert await fold_usage(database, metadata_keys=KEYS) == 0


async def test_many_who_fold_while_many_write_add_every_row_once(database: Database, owner: Owner) -> None:
    chance = random.Random(1)
    entries = [draw(chance, owner.account_id, START, END) for _ in range(300)]
    await rebuild_rollups(database, metadata_keys=KEYS)
    writers = [write(database, entries[at::6]) for at in range(6)]
    done = asyncio.Event()

    async def fold() -> None:
        while not done.is_set():
            await fold_usage(database, metadata_keys=KEYS)

    async def write_all() -> None:
        await asyncio.gather(*writers)
        done.set()

    await asyncio.gather(fold(), fold(), write_all())
    await fold_usage(database, metadata_keys=KEYS)
    await same(database, entries, Question([owner.account_id], 0, 2**33, None, groups=["model"]))
    await check(database)


async def test_a_fold_takes_a_part_of_what_is_too_much(
    database: Database, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rebuild_rollups(database, metadata_keys=KEYS)
    await write(database, [Entry(owner.account_id, START) for _ in range(5)])
    await execute(  # by one transaction, which is never taken apart
        database.durable,
        "INSERT INTO usage (job_id, attempt, kind, account_id, model, provider, prompt_tokens, completion_tokens,"
        " cached_tokens, reasoning_tokens, estimated, created_at) SELECT 'job_' || n, 1, 'counted', %(id)s, 'fake',"
        " 'fake', 1, 1, 0, 0, false, %(at)s FROM generate_series(1, 20100) AS n",
        {"id": owner.account_id, "at": START},
    )
    await write(database, [Entry(owner.account_id, START) for _ in range(5)])
    await seen_by_all(database)
    folded = [await fold_usage(database, metadata_keys=KEYS) for _ in range(4)]
    assert folded == [5, 20_100, 5, 0]
    await check(database)


async def test_roll_ups_of_a_restored_database_are_made_anew(database: Database, owner: Owner) -> None:
    entries = [Entry(owner.account_id, START)]
    await write(database, entries)
    await fold_usage(database, metadata_keys=KEYS)
    await execute(database.durable, "UPDATE usage_mark SET transaction = transaction + 1000000000")
    await execute(database.durable, "UPDATE usage SET transaction = transaction + 1000000000")
    await write(database, more := [Entry(owner.account_id, START)])
    await seen_by_all(database)
    await fold_usage(database, metadata_keys=KEYS)
    # None is left to be read from the ledger at each question until this server has reached those transactions.
    assert not await execute(
        database.relaxed, "SELECT job_id FROM usage, usage_mark AS mark WHERE usage.transaction >= mark.transaction"
    )
    await same(database, [*entries, *more], Question([owner.account_id], 0, 2**33))
    await check(database)


async def test_other_metadata_keys_make_them_anew(database: Database, owner: Owner) -> None:
    entries = [Entry(owner.account_id, START, metadata={"team": "a", "customer": str(n % 3)}) for n in range(6)]
    await write(database, entries)
    await fold_usage(database, metadata_keys=["team"])
    await fold_usage(database, metadata_keys=["team", "customer"])
    question = Question([owner.account_id], 0, 2**33, groups=["metadata.customer"], metadata_keys=["team", "customer"])
    assert question.view() == "metadata"
    await same(database, entries, question)
    await check(database)


async def test_a_difference_is_found_and_repaired(database: Database, owner: Owner) -> None:
    await write(database, [Entry(owner.account_id, START)])
    await seen_by_all(database)
    await fold_usage(database, metadata_keys=KEYS)
    await execute(database.durable, "UPDATE usage_rollups SET cost = cost + 0.0000000001 WHERE view = 'total'")
    assert (await verify_rollups(database)).differences == 6  # each of three cells, with its stored and its right value
    await execute(database.durable, "DELETE FROM usage_latencies WHERE grain = 'day'")
    assert (await verify_rollups(database)).differences > 6
    await rebuild_rollups(database, metadata_keys=KEYS)
    await check(database)


async def test_a_job_that_is_counted_twice_is_found(database: Database, owner: Owner) -> None:
    entry = Entry(owner.account_id, START)
    await write(database, [entry, replace(entry, created_at=START + timedelta(seconds=1))])
    assert (await verify_rollups(database)).counted_twice == 1


async def test_a_correction_adds_to_what_was_counted(database: Database, jobs: Jobs, owner: Owner) -> None:
    job = await jobs.complete()
    await fold_usage(database, metadata_keys=KEYS)
    question = Question([owner.account_id], 0, 2**33)
    [before] = await ask(database, question, limit=10)
    assert await correct_usage(
        database, job.id, prompt_tokens=-10, completion_tokens=2, cost=Decimal("-0.0001"), note="miscounted"
    )
    for _ in range(2):
        [after] = await ask(database, question, limit=10)
        assert after["prompt_tokens"] == before["prompt_tokens"] - 10
        assert after["completion_tokens"] == before["completion_tokens"] + 2
        assert after["cost"] == before["cost"] - Decimal("0.0001")
        assert after["requests"] == before["requests"] == 1
        await fold_usage(database, metadata_keys=KEYS)
    assert not await correct_usage(
        database, "job_nonsense", prompt_tokens=1, completion_tokens=0, cost=Decimal(), note="no such job"
    )
    await check(database)


async def test_percentiles_are_those_of_the_rows_to_nine_per_cent(database: Database, owner: Owner) -> None:
    chance = random.Random(3)
    entries = [
        replace(Entry(owner.account_id, START), duration_ms=int(chance.lognormvariate(7, 1)) + 1) for _ in range(400)
    ]
    await write(database, entries[:300])
    await fold_usage(database, metadata_keys=KEYS)
    await write(database, entries[300:])
    [row] = await ask(database, Question([owner.account_id], 0, 2**33, groups=["model"]), limit=10, latency=True)
    times = sorted(entry.duration_ms or 0 for entry in entries)
    for percent in (50, 90, 95, 99):
        exact = times[-(-len(times) * percent // 100) - 1] / 1000
        assert row["duration_seconds"][f"p{percent}"] == pytest.approx(exact, rel=0.1)
    assert row["first_token_seconds"]["p50"] == pytest.approx(0.2, rel=0.1)


async def test_a_statement_adds_up_to_the_ledger_to_the_last_digit(database: Database, owner: Owner) -> None:
    chance = random.Random(5)
    entries = [draw(chance, owner.account_id, START, END) for _ in range(200)]
    await write(database, entries)
    rows = await statement_of_month(database, "2026-02", [owner.account_id])
    inside = [entry for entry in entries if (entry.created_at.year, entry.created_at.month) == (2026, 2)]
    assert sum(row["cost"] for row in rows) == sum(entry.cost or 0 for entry in inside)
    assert sum(row["entries"] for row in rows) == len(inside)


async def test_rows_go_to_the_partition_of_their_month(database: Database, owner: Owner) -> None:
    now = datetime(2031, 11, 30, tzinfo=UTC)
    for _ in range(2):
        await ensure_partitions(database, now=now)
    await write(database, [Entry(owner.account_id, now), Entry(owner.account_id, now + timedelta(days=60))])
    rows = await execute(database.relaxed, "SELECT tableoid::regclass::text AS name FROM usage ORDER BY created_at")
    assert [row.name for row in rows] == ["usage_2031_11", "usage_2032_01"]
