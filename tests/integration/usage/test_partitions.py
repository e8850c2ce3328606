"""The ledger's partitions by month: each row is in its month's, and counts in the sums once."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import psycopg
import pytest
from sqlalchemy.exc import DBAPIError

from headrace.stores.database import Database, execute
from headrace.usage import partitions, rebuild
from headrace.usage.partitions import ensure_partitions
from headrace.usage.queries import ask
from headrace.usage.question import Bucket, Question
from headrace.usage.rollups import fold_usage, rebuild_rollups, repair_short_months, verify_rollups
from tests.integration.databases import Session, waiting
from tests.integration.job_rows import Owner
from tests.integration.ledger import Entry, write
from tests.service import ROOT
from tests.waiting import PATIENCE


@pytest.fixture
async def month(database: Database) -> AsyncIterator[datetime]:
    """The first moment of a month, which no test before had, in a ledger without partitions and sums."""
    await execute(database.durable, "TRUNCATE usage_rollups, usage_latencies, usage_mark")
    yield datetime(2033, 5, 1, tzinfo=UTC)
    for row in await execute(
        database.relaxed,
        "SELECT oid::regclass::text AS name FROM pg_class WHERE relname ~ '^usage_20' AND relkind = 'r'",
    ):
        await execute(database.durable, f"DROP TABLE {row.name}")


async def names(database: Database) -> list[str]:
    """Return the table of each row, in order of time."""
    rows = await execute(database.relaxed, "SELECT tableoid::regclass::text AS name FROM usage ORDER BY created_at")
    return [row.name for row in rows]


async def take_out(database: Database, month: datetime) -> None:
    """Detach the partition of a month from the ledger."""
    await execute(database.durable, f"ALTER TABLE usage DETACH PARTITION usage_{month:%Y_%m}")


async def check(database: Database, rows: int) -> None:
    """Check the ledger's number of rows, and that the sums count each of them once."""
    await fold_usage(database, metadata_keys=[])
    found = await verify_rollups(database)
    assert (found.rows, found.differences, found.counted_twice) == (rows, 0, 0)


def some(owner: Owner, start: datetime, count: int) -> list[Entry]:
    """Return entries of three months."""
    return [Entry(owner.account_id, start + timedelta(days=90 * number / count)) for number in range(count)]


async def test_rows_that_came_before_their_partition_are_moved_and_counted_once(
    database: Database, owner: Owner, month: datetime
) -> None:
    entries = [Entry(owner.account_id, month + timedelta(days=days)) for days in (-1, 0, 40, 100)]
    await write(database, entries)
    assert set(await names(database)) == {"usage_other"}
    await fold_usage(database, metadata_keys=[])
    await ensure_partitions(database, now=month)
    assert await names(database) == ["usage_2033_04", "usage_2033_05", "usage_2033_06", "usage_2033_08"]
    await check(database, 4)
    await write(database, [Entry(owner.account_id, month + timedelta(days=1000))])
    assert (await names(database))[-1] == "usage_other"


async def test_making_them_again_changes_nothing(database: Database, owner: Owner, month: datetime) -> None:
    for _ in range(2):
        await ensure_partitions(database, now=month)
    await write(database, [Entry(owner.account_id, month)])
    assert await names(database) == ["usage_2033_05"]


async def test_rows_are_copied_in_steps_and_anew_after_a_scheduler_died(
    database: Database, owner: Owner, month: datetime, monkeypatch: pytest.MonkeyPatch, other_session: Session
) -> None:
    monkeypatch.setattr(partitions, "_STEP", 7)
    await execute(  # by one transaction, as a migration adds them
        database.durable,
        "INSERT INTO usage (job_id, attempt, kind, account_id, model, provider, prompt_tokens, completion_tokens,"
        " cached_tokens, reasoning_tokens, estimated, created_at) SELECT 'job_' || n, 1, 'counted', %(id)s, 'fake',"
        " 'fake', 1, 1, 0, 0, false, %(at)s + n * interval '1 hour' FROM generate_series(0, 99) AS n",
        {"id": owner.account_id, "at": month},
    )
    await other_session.execute("LOCK TABLE usage IN ROW EXCLUSIVE MODE")
    dying = asyncio.create_task(ensure_partitions(database, now=month))
    await waiting(other_session)
    dying.cancel()
    await asyncio.gather(dying, return_exceptions=True)
    await other_session.commit()
    await ensure_partitions(database, now=month)
    assert set(await names(database)) == {"usage_2033_05"}
    await check(database, 100)


async def test_a_scheduler_that_was_frozen_drops_no_partition_that_was_made_meanwhile(
    database: Database, owner: Owner, month: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ensure_partitions(database, now=month)
    await write(database, [Entry(owner.account_id, month)])
    with monkeypatch.context() as patched:
        patched.setattr(partitions, "_MADE", "SELECT '' AS name WHERE false")  # as it was before it froze
        with pytest.raises(DBAPIError, match="already exists"):
            await ensure_partitions(database, now=month)
    await ensure_partitions(database, now=month)
    assert await names(database) == ["usage_2033_05"]
    await check(database, 1)


async def test_a_month_that_was_taken_out_is_left_alone(database: Database, owner: Owner, month: datetime) -> None:
    await ensure_partitions(database, now=month)
    await write(database, [Entry(owner.account_id, month)])
    await take_out(database, month)
    await write(database, [Entry(owner.account_id, month)])
    await ensure_partitions(database, now=month + timedelta(days=31))
    assert await names(database) == ["usage_other"]
    assert len(await execute(database.relaxed, "SELECT job_id FROM usage_2033_05")) == 1


async def test_taking_a_month_out_as_the_docs_say_waits_for_no_reader(
    database: Database, database_url: str, owner: Owner, month: datetime, other_session: Session
) -> None:
    page = (ROOT / "docs" / "how-to" / "back-up-and-restore.md").read_text()
    [block] = re.findall(r"```sql\n([^`]*DETACH[^`]*)```", page)
    await ensure_partitions(database, now=month)
    await write(database, [Entry(owner.account_id, month)])
    await other_session.execute("SELECT FROM usage")  # in a transaction, which stays open
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
        settle, detach = block.replace("2026_11", f"{month:%Y_%m}").split(";\n", 1)
        await connection.execute(settle.encode())
        with pytest.raises(psycopg.errors.LockNotAvailable):
            await connection.execute(detach.encode())
        await other_session.commit()
        await connection.execute(detach.encode())
    assert await names(database) == []


async def answers(database: Database, owner: Owner, keys: Sequence[str]) -> list[list[dict[str, Any]]]:
    """Return what the sums say of everything, by hour, by model with its times, and by metadata."""
    ask_all = partial(Question, [owner.account_id], 0, 2**33, metadata_keys=keys)
    return [
        await ask(database, ask_all(bucket=Bucket.HOUR), limit=100),
        await ask(database, ask_all(groups=["model"]), limit=100, latency=True),
        await ask(database, ask_all(groups=["metadata.team"]), limit=100),
    ]


async def test_a_month_that_was_taken_out_keeps_its_sums_when_they_are_rebuilt(
    database: Database, owner: Owner, month: datetime
) -> None:
    entries = [replace(entry, metadata={"team": entry.job_id[-1]}) for entry in some(owner, month, 12)]
    await write(database, entries)
    await ensure_partitions(database, now=month)
    await fold_usage(database, metadata_keys=["team"])
    before = await answers(database, owner, ["team"])
    await take_out(database, month)
    found = await verify_rollups(database)
    assert (found.rows, found.differences, found.detached_months) == (7, 0, ["2033-05"])
    for keys in (["customer", "team"], [], ["team"]):
        await fold_usage(database, metadata_keys=keys)
        assert "team" not in keys or await answers(database, owner, ["team"]) == before
        found = await verify_rollups(database)
        assert (found.rows, found.differences, found.detached_months) == (7, 0, ["2033-05"])
    await execute(database.durable, "UPDATE usage_rollups SET cost = cost + 1 WHERE start >= '2033-06-01 00:00+00'")
    assert (await verify_rollups(database)).differences > 0
    await rebuild_rollups(database, metadata_keys=["team"])
    assert await answers(database, owner, ["team"]) == before


async def test_a_month_that_is_taken_out_during_a_rebuild_keeps_its_sums(
    database: Database, owner: Owner, month: datetime
) -> None:
    await write(database, some(owner, month, 12))
    await ensure_partitions(database, now=month)
    await fold_usage(database, metadata_keys=["team"])
    before = await answers(database, owner, ["team"])
    await rebuild._begin(database, ["team"])
    assert await rebuild._add_day(database, ["team"])
    await take_out(database, month)
    await rebuild_rollups(database, metadata_keys=["team"])
    assert await answers(database, owner, ["team"]) == before
    assert (await verify_rollups(database)).differences == 0


async def test_rows_of_a_month_since_a_rebuild_began_are_counted_once(
    database: Database, owner: Owner, month: datetime
) -> None:
    await fold_usage(database, metadata_keys=[])
    await rebuild._begin(database, [])
    await write(database, some(owner, month, 12))
    await fold_usage(database, metadata_keys=[])
    await rebuild_rollups(database, metadata_keys=[])
    await check(database, 12)


async def test_a_fold_that_waits_for_new_partitions_adds_the_rows_in_them(
    database: Database, owner: Owner, month: datetime, other_session: Session
) -> None:
    await fold_usage(database, metadata_keys=[])
    await write(database, some(owner, month, 9))
    await other_session.execute("LOCK TABLE usage_other IN ACCESS SHARE MODE")
    making = asyncio.create_task(ensure_partitions(database, now=month))
    await waiting(other_session)  # the partitions, for a reader of the rows
    folds = [asyncio.create_task(fold_usage(database, metadata_keys=[])) for _ in range(3)]
    question = Question([owner.account_id], 0, 2**33)
    asking = asyncio.create_task(ask(database, question, limit=10))
    await asyncio.sleep(0.1)  # for those to begin: with partitions made otherwise they wait in turn
    await other_session.commit()
    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(making, *folds)
        assert (await asking)[0]["requests"] == 9
    await check(database, 9)


async def test_job_ends_do_not_wait_while_new_partitions_do(
    database: Database, owner: Owner, month: datetime, other_session: Session
) -> None:
    await other_session.execute("LOCK TABLE usage IN ROW EXCLUSIVE MODE")  # as a statement that ends a job, and is long
    making = asyncio.create_task(ensure_partitions(database, now=month))
    await waiting(other_session)
    async with asyncio.timeout(PATIENCE):
        await write(database, some(owner, month, 20))
        assert not making.done()
        await other_session.commit()
        await making
    await check(database, 20)


async def test_every_row_is_counted_once_while_jobs_end_and_partitions_are_made(
    database: Database, database_url: str, owner: Owner, month: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partitions, "_STEP", 40)
    monkeypatch.setattr(partitions, "_REST_SECONDS", 0)
    entries = some(owner, month, 600)
    await write(database, entries[:200])
    await fold_usage(database, metadata_keys=[])
    ended = asyncio.Event()

    async def fold() -> None:
        while not ended.is_set():
            await fold_usage(database, metadata_keys=[])

    async def read() -> None:
        # Locks what a long reader does, so that the partitions have to be tried for again.
        async with await psycopg.AsyncConnection.connect(database_url) as connection:
            while not ended.is_set():
                await connection.execute("LOCK TABLE usage_other IN ACCESS SHARE MODE")
                await asyncio.sleep(0.05)
                await connection.commit()
                await asyncio.sleep(0.05)

    async def work() -> None:
        writers = (write(database, entries[200 + part :: 4]) for part in range(4))
        await asyncio.gather(*writers, ensure_partitions(database, now=month))
        ended.set()

    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(fold(), fold(), read(), work())
    await check(database, 600)
    assert "usage_other" not in await names(database)


async def test_a_month_whose_sums_are_short_is_made_anew(database: Database, owner: Owner, month: datetime) -> None:
    await write(database, some(owner, month, 90))
    await fold_usage(database, metadata_keys=[])
    assert await repair_short_months(database) == []
    [short] = await execute(
        database.durable,
        "UPDATE usage_rollups SET requests = requests - 1 WHERE view = 'total' AND grain = 'month' "
        "AND start = %(start)s RETURNING start",
        {"start": month},
    )
    assert await repair_short_months(database) == [short.start] == [month]
    assert await repair_short_months(database) == []
    await check(database, 90)
    # A month that was taken out of the ledger keeps its sums.
    await execute(database.durable, "DELETE FROM usage WHERE created_at < %(end)s", {"end": month + timedelta(days=9)})
    assert await repair_short_months(database) == []
