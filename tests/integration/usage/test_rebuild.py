"""Roll-ups that are rebuilt: exact at any moment meanwhile, and resumed after an interruption."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest

from headrace.stores.database import Database, execute
from headrace.usage import rebuild
from headrace.usage.queries import ask
from headrace.usage.question import Question
from headrace.usage.rollups import fold_usage, rebuild_rollups, verify_rollups
from tests.integration.databases import Session, waiting
from tests.integration.job_rows import Owner
from tests.integration.ledger import Entry, draw, write
from tests.waiting import PATIENCE

KEYS = ["team"]
START, END = datetime(2026, 1, 20, tzinfo=UTC), datetime(2026, 2, 10, tzinfo=UTC)


@pytest.fixture(autouse=True)
async def empty(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rebuild, "_RETRY_SECONDS", 0.05)
    await execute(database.durable, "TRUNCATE usage_rollups, usage_latencies, usage_mark")
    await execute(
        database.durable,
        "DROP TABLE IF EXISTS usage_rollups_next, usage_latencies_next, usage_mark_next, usage_days_next",
    )


def some(owner: Owner, count: int, seed: int = 1) -> list[Entry]:
    chance = random.Random(seed)
    return [draw(chance, owner.account_id, START, END) for _ in range(count)]


async def check(database: Database, rows: int) -> None:
    """Check that the roll-ups are the sums of the ledger, which has so many rows, and that no new table is left."""
    found = await verify_rollups(database)
    assert (found.rows, found.differences, found.counted_twice) == (rows, 0, 0)
    assert not await execute(database.relaxed, "SELECT FROM pg_class WHERE relname LIKE 'usage_%%_next'", {})


async def mark(database: Database) -> int:
    return int((await execute(database.relaxed, "SELECT transaction FROM usage_mark"))[0][0])


async def requests(database: Database, owner: Owner) -> int:
    [row] = await ask(database, Question([owner.account_id], 0, 2**33), limit=2)
    return int(row["requests"])


async def begin(database: Database, keys: Sequence[str] = KEYS) -> None:
    """Begin a rebuild, and stop when it has added a day."""
    await rebuild._begin(database, keys)
    assert await rebuild._add_day(database, keys)


async def test_an_interrupted_rebuild_adds_the_days_that_are_left_and_the_rows_since(
    database: Database, owner: Owner
) -> None:
    await write(database, some(owner, 60))
    await fold_usage(database, metadata_keys=KEYS)
    await begin(database)
    [(day, added)] = await execute(database.relaxed, "SELECT day, rows FROM usage_days_next WHERE rows IS NOT NULL")
    # Its rows are not read again: else this would be.
    await execute(database.durable, "UPDATE usage_days_next SET rows = rows + 1000 WHERE day = %(day)s", {"day": day})
    await write(database, some(owner, 30, seed=2))
    await fold_usage(database, metadata_keys=KEYS)
    before = await mark(database)
    assert added > 0
    assert await rebuild_rollups(database, metadata_keys=KEYS) == 1060
    assert await mark(database) >= before
    await check(database, 90)


async def test_a_rebuild_that_was_interrupted_at_its_end_resumes_there(database: Database, owner: Owner) -> None:
    await write(database, some(owner, 60))
    await begin(database)
    await rebuild._add_days(database, KEYS)
    await rebuild._finish(database)
    assert await rebuild_rollups(database, metadata_keys=KEYS) == 60
    await check(database, 60)


async def test_a_rebuild_with_other_metadata_keys_or_of_a_restored_ledger_begins_anew(
    database: Database, owner: Owner
) -> None:
    await write(database, some(owner, 60))
    await begin(database)
    await execute(database.durable, "UPDATE usage_rollups_next SET requests = requests + 1")
    await rebuild_rollups(database, metadata_keys=[*KEYS, "customer"])
    await check(database, 60)
    await begin(database)
    await execute(database.durable, "UPDATE usage_mark_next SET transaction = transaction + 1000000000")
    await execute(database.durable, "UPDATE usage_rollups_next SET requests = requests + 1")
    await rebuild_rollups(database, metadata_keys=KEYS)
    await check(database, 60)


async def test_answers_are_exact_while_jobs_end_and_roll_ups_are_folded_and_rebuilt(
    database: Database, owner: Owner
) -> None:
    entries = [Entry(owner.account_id, START + timedelta(hours=number)) for number in range(400)]
    await write(database, entries[:100])
    await fold_usage(database, metadata_keys=KEYS)
    written, ended = 100, asyncio.Event()

    async def work() -> None:
        nonlocal written
        while not ended.is_set() and written < len(entries):
            await write(database, entries[written : written + 1])
            written += 1

    async def fold() -> None:
        while not ended.is_set():
            await fold_usage(database, metadata_keys=KEYS)

    async def read() -> None:
        while not ended.is_set():
            least = written
            told = await requests(database, owner)
            assert least <= told <= written + 1  # the row of which the writer has no answer yet may count

    async def rebuild_often() -> None:
        for _ in range(6):
            before = await mark(database)
            await rebuild_rollups(database, metadata_keys=KEYS)
            assert await mark(database) >= before
        ended.set()

    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
        for task in (work(), fold(), read(), read(), rebuild_often()):
            group.create_task(task)
    await fold_usage(database, metadata_keys=KEYS)
    await check(database, written)


async def test_two_rebuilds_wait_for_each_other(database: Database, owner: Owner) -> None:
    await write(database, some(owner, 40))
    rebuilds = (rebuild_rollups(database, metadata_keys=keys) for keys in (KEYS, [], KEYS))
    assert await asyncio.gather(*rebuilds) == [40, 40, 40]
    await check(database, 40)


async def test_questions_are_answered_while_a_rebuild_waits_for_a_long_one(
    database: Database, owner: Owner, other_session: Session
) -> None:
    await write(database, some(owner, 40))
    await fold_usage(database, metadata_keys=KEYS)
    told = await requests(database, owner)
    await other_session.execute("LOCK TABLE usage_rollups IN ACCESS SHARE MODE")
    rebuilding = asyncio.create_task(rebuild_rollups(database, metadata_keys=KEYS))
    await waiting(other_session)
    async with asyncio.timeout(PATIENCE):
        assert await requests(database, owner) == told
        assert not rebuilding.done()
        await other_session.commit()
        await rebuilding
    assert await requests(database, owner) == told
    await check(database, 40)


async def test_a_role_that_may_read_the_roll_ups_still_may_after_a_rebuild(database: Database, owner: Owner) -> None:
    may = "SELECT has_table_privilege('public', 'usage_rollups', 'SELECT')"
    await write(database, some(owner, 5))
    assert await execute(database.relaxed, may) == [(False,)]
    await execute(database.durable, "GRANT SELECT ON usage_rollups TO PUBLIC")
    await rebuild_rollups(database, metadata_keys=KEYS)
    assert await execute(database.relaxed, may) == [(True,)]
    await execute(database.durable, "REVOKE SELECT ON usage_rollups FROM PUBLIC")
