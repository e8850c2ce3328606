from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest

from headrace.batches.ended import list_ended, read_lines
from headrace.batches.lines import LineProblem
from headrace.batches.queries import (
    NewBatch,
    WrittenFile,
    cancel_batch,
    create_batch,
    end_batch,
    fail_batch,
    fold_tallies,
    get_batch,
    start_batch,
)
from headrace.batches.state import BatchState
from headrace.errors import QuotaExceededError, RateLimitError
from headrace.files.queries import (
    FileWriter,
    delete_file,
    expire_spare_outputs,
    find_file,
    read_file,
    sweep_files,
)
from headrace.files.quota import check_file_quota
from headrace.files.tables import CHUNK_BYTES
from headrace.ids import new_id
from headrace.jobs.records import NewLine
from headrace.jobs.sql.cancel import cancel_lines
from headrace.jobs.sql.lines import feed_lines, settle_restored_ends
from headrace.jobs.state import State
from headrace.settings import Settings
from headrace.stores.connections import Row
from headrace.stores.database import Database, execute
from scheduler.batches.output import Output
from tests.integration.databases import Session, seen_by_all, waiting
from tests.integration.job_rows import RESPONSE, Jobs, Owner, end_of

ERROR = '{"code":"batch_cancelled","message":"stopped"}'
LARGE_ERROR = '{"code":"server_error","message":"' + "x" * 3 * len(RESPONSE) + '"}'


async def store(database: Database, owner: Owner, data: bytes = b"{}\n", **options: Any) -> str:
    """Keep an input file and return its id."""
    writer = FileWriter(database, account_id=owner.account_id, purpose="batch")
    await writer.write(data)
    await writer.close(filename="in.jsonl", **options)
    return writer.file_id


def new_batch(
    owner: Owner, file_id: str, *, seconds: int = 3600, webhook: str | None = None, trace_context: str | None = None
) -> NewBatch:
    return NewBatch(
        id=new_id("batch"),
        account_id=owner.account_id,
        key_id=owner.key_id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        seconds=seconds,
        input_file_id=file_id,
        output_seconds=None,
        metadata=None,
        webhook=webhook,
        trace_context=trace_context,
    )


async def create(
    database: Database,
    owner: Owner,
    *,
    data: bytes = b"{}\n",
    total: int = 0,
    seconds: int = 3600,
    webhook: str | None = None,
    trace_context: str | None = None,
) -> str:
    """Create a batch, under way if it has lines, and return its id."""
    file_id = await store(database, owner, data)
    new = new_batch(owner, file_id, seconds=seconds, webhook=webhook, trace_context=trace_context)
    assert await create_batch(database, new, most=1000)
    if total:
        assert await start_batch(database, new.id, total=total, model=None, agents={})
    return new.id


def new_lines(first: int, count: int) -> list[NewLine]:
    return [
        NewLine(new_id("job"), number, f"r{number}", "fake", "{}", None, None, None, None)
        for number in range(first, first + count)
    ]


async def feed(database: Database, batch_id: str, first: int, count: int) -> list[str]:
    """Make jobs of lines, each of ten bytes, and return their ids; an empty list if the batch does not exist."""
    lines = new_lines(first, count)
    fed = await feed_lines(
        database, batch_id, lines, start=10 * (first - 1), end=10 * (first + count - 1), next_line=first + count
    )
    return [line.id for line in lines] if fed else []


async def ended(
    database: Database, batch_id: str, *, after: str | None = None, limit: int = 10, most_bytes: int = 1000
) -> tuple[Sequence[Row], bool]:
    """Return a page of the lines that have ended, and whether there are more."""
    return await list_ended(database, batch_id, after=after, limit=limit, most_bytes=most_bytes)


async def get(database: Database, owner: Owner, batch_id: str) -> Row:
    row = await get_batch(database, batch_id, owner.account_id)
    assert row is not None
    return row


async def test_a_slice_of_lines_becomes_jobs_once(database: Database, owner: Owner) -> None:
    batch_id = await create(database, owner, total=5)
    assert len(await feed(database, batch_id, 1, 3)) == 3
    assert await feed(database, batch_id, 1, 3) == []
    assert len(await feed(database, batch_id, 4, 2)) == 2
    row = await get(database, owner, batch_id)
    assert (row.fed, row.next_offset, row.next_line) == (5, 50, 6)
    rows = await execute(database.relaxed, "SELECT line, custom_id, tier, background FROM jobs ORDER BY line")
    assert [tuple(row) for row in rows] == [(number, f"r{number}", "batch", True) for number in range(1, 6)]


async def test_lines_have_the_trace_context_of_their_batch(database: Database, owner: Owner, jobs: Jobs) -> None:
    context = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\na=1"
    for expected in (context, None):
        batch_id = await create(database, owner, total=2, trace_context=expected)
        claimed = await jobs.claim(*await feed(database, batch_id, 1, 2))
        assert [job.trace_context for job in claimed] == [expected, expected]


async def test_two_feeders_at_once_make_every_job_once(database: Database, owner: Owner) -> None:
    batch_id = await create(database, owner, total=20)
    fed = await asyncio.gather(*(feed(database, batch_id, 1, 20) for _ in range(8)))
    assert sorted(map(len, fed)) == [0] * 7 + [20]


@pytest.mark.parametrize("end", ["cancelled", "expired", "validating"])
async def test_only_a_batch_under_way_is_fed(database: Database, owner: Owner, end: str) -> None:
    batch_id = await create(
        database, owner, total=0 if end == "validating" else 3, seconds=0 if end == "expired" else 60
    )
    if end == "cancelled":
        await cancel_batch(database, batch_id, owner.account_id)
    assert await feed(database, batch_id, 1, 3) == []
    assert (await get(database, owner, batch_id)).fed == 0


async def test_a_cancelled_batch_is_not_started(database: Database, owner: Owner) -> None:
    batch_id = await create(database, owner)
    await cancel_batch(database, batch_id, owner.account_id)
    assert not await start_batch(database, batch_id, total=3, model=None, agents={})
    assert not await fail_batch(database, batch_id, [LineProblem(1, "a", "b", None)])
    assert (await get(database, owner, batch_id)).state == BatchState.CANCELLING


@pytest.mark.parametrize(("total", "never_runs"), [(0, True), (3, False)], ids=["validating", "in progress"])
async def test_the_lines_of_a_batch_that_is_cancelled_before_it_begins_never_run(
    database: Database, owner: Owner, total: int, never_runs: bool
) -> None:
    batch_id = await create(database, owner, total=total)
    for _ in range(2):
        assert await cancel_batch(database, batch_id, owner.account_id) is never_runs
    assert await cancel_batch(database, "batch_unknown", owner.account_id)


async def test_a_batch_that_is_cancelled_while_it_is_checked_has_no_files(database: Database, owner: Owner) -> None:
    batch_id = await create(database, owner)
    await cancel_batch(database, batch_id, owner.account_id)
    cancelling = await get(database, owner, batch_id)
    assert await Output(database, cancelling, room=asyncio.Semaphore(1)).write() == BatchState.CANCELLED
    batch = await get(database, owner, batch_id)
    assert (batch.state, batch.total, batch.output_file_id, batch.error_file_id) == ("cancelled", 0, None, None)


@pytest.mark.parametrize("seed", range(8))
async def test_the_counts_are_those_of_the_lines_however_they_end(
    database: Database, owner: Owner, jobs: Jobs, seed: int
) -> None:
    draw = random.Random(seed)
    batch_id = await create(database, owner, total=60)
    job_ids = await feed(database, batch_id, 1, 60)
    for _ in range(60):
        await _move(database, jobs, draw, batch_id, job_ids)
        if draw.random() < 0.2:
            await execute(database.relaxed, "UPDATE batch_tallies SET created_at = now() - interval '1 hour'")
        if draw.random() < 0.2:
            await fold_tallies(database)
        await _check_counts(database, owner, batch_id)
    await cancel_lines(database, batch_id, error=ERROR)
    await _check_counts(database, owner, batch_id)


async def _move(database: Database, jobs: Jobs, draw: random.Random, batch_id: str, job_ids: list[str]) -> None:
    some = draw.sample(job_ids, draw.randint(1, 6))
    match draw.randint(0, 6):
        case 0 | 1:
            held = await jobs.claim(*some)
            states = [State.COMPLETED, State.COMPLETED, State.FAILED, State.CANCELLED, State.EXPIRED]
            ended = [end_of(job, draw.choice(states)) for job in held]
            if ended:
                assert await jobs.finish(*ended) == [True] * len(ended)
                assert await jobs.finish(*ended) == [False] * len(ended), "twice"
        case 2:
            await jobs.cancel(some[0])
        case 3:
            for job in await jobs.claim(*some):
                await jobs.cancel(job.id) if draw.random() < 0.5 else None
                await jobs.retry(job)
        case 4:
            for job in await jobs.claim(*some):
                await jobs.lose(job.id)
            await jobs.rescue(max_lost=draw.choice([1, 3]))
        case 5:
            await jobs.set(some[0], "deadline_at = now() - interval '1 second'")
            await jobs.expire()
        case _:
            await jobs.delete(some[0])


async def _check_counts(database: Database, owner: Owner, batch_id: str) -> None:
    query = """
        SELECT state, count(*) AS lines, bool_and((finished_in IS NULL) = (finished_at IS NULL)) AS marked,
               coalesce(sum(prompt_tokens), 0) AS prompt, coalesce(sum(completion_tokens), 0) AS completion,
               sum(cost) AS cost
        FROM jobs LEFT JOIN usage ON job_id = jobs.id AND kind = 'counted'
        WHERE jobs.batch_id = %(id)s GROUP BY state
    """
    rows = await execute(database.relaxed, query, {"id": batch_id})
    lines = Counter({row.state: row.lines for row in rows})
    assert all(row.marked for row in rows)
    batch = await get(database, owner, batch_id)
    assert batch.completed == lines["completed"]
    assert batch.failed == lines["failed"] + lines["expired"]
    assert batch.cancelled == lines["cancelled"]
    assert batch.prompt_tokens == sum(row.prompt for row in rows)
    assert batch.completion_tokens == sum(row.completion for row in rows)
    assert (batch.cost or 0) == sum(row.cost or 0 for row in rows)


async def test_a_reader_of_results_misses_no_line_that_ends_beside_another(
    database: Database, owner: Owner, jobs: Jobs, other_session: Session
) -> None:
    batch_id = await create(database, owner, total=3)
    first, second, third = await feed(database, batch_id, 1, 3)
    held = {job.id: job for job in await jobs.claim(first, second, third)}
    # It has begun before the others end, and ends after them.
    await other_session.execute(
        "UPDATE jobs SET state = 'completed', response = '{}', finished_at = now(), lease_until = NULL,"
        " finished_in = pg_current_xact_id()::text::bigint WHERE id = %s",
        [first],
    )
    await jobs.finish(end_of(held[second]))
    assert await ended(database, batch_id) == ([], False)
    await other_session.commit()
    await jobs.finish(end_of(held[third]))
    await seen_by_all(database)
    page, more = await ended(database, batch_id, limit=2)
    assert ([row.id for row in page], more) == ([first, second], True)
    rest, more = await ended(database, batch_id, after=page[-1].id)
    assert ([row.id for row in rest], more) == ([third], False)


@pytest.mark.parametrize(
    ("most_bytes", "pages"),
    [
        (3 * len(RESPONSE), [[1, 2, 3], [4, 5], [6]]),
        (3 * len(RESPONSE) + 1, [[1, 2, 3, 4], [5], [6]]),
        (1, [[1], [2], [3], [4], [5], [6]]),
    ],
)
async def test_a_page_of_results_ends_with_the_line_that_makes_it_too_large(
    database: Database, owner: Owner, jobs: Jobs, most_bytes: int, pages: list[list[int]]
) -> None:
    batch_id = await create(database, owner, total=6)
    job_ids = await feed(database, batch_id, 1, 6)
    held = {job.id: job for job in await jobs.claim(*job_ids)}
    for number, job_id in enumerate(job_ids, start=1):
        job = held[job_id]
        await jobs.finish(end_of(job, State.FAILED, error=LARGE_ERROR) if number == 5 else end_of(job))
    await seen_by_all(database)
    read: list[list[int]] = []
    after, more = None, True
    while more:
        page, more = await ended(database, batch_id, after=after, limit=4, most_bytes=most_bytes)
        read.append([row.line for row in page])
        after = page[-1].id
    assert read == pages


async def test_lines_are_read_in_order_of_the_input(database: Database, owner: Owner, jobs: Jobs) -> None:
    batch_id = await create(database, owner, total=4)
    job_ids = await feed(database, batch_id, 1, 4)
    held = {job.id: job for job in await jobs.claim(*job_ids)}
    for job_id in (job_ids[2], job_ids[0], job_ids[3]):
        await jobs.finish(end_of(held[job_id]))
    read = await read_lines(database, batch_id, after=0, last=3, most_bytes=1000)
    assert [row.line for row in read] == [1, 3]
    rest = await read_lines(database, batch_id, after=3, last=5, most_bytes=1000)
    assert [row.line for row in rest] == [4]


async def test_results_of_a_restored_database_are_there_and_come_first(
    database: Database, owner: Owner, jobs: Jobs
) -> None:
    batch_id = await create(database, owner, total=4)
    job_ids = await feed(database, batch_id, 1, 4)
    held = {job.id: job for job in await jobs.claim(*job_ids)}
    for job_id in (job_ids[2], job_ids[0]):
        await jobs.finish(end_of(held[job_id]))
    # The backup was made by a server on which more transactions had been.
    await execute(database.relaxed, "UPDATE jobs SET finished_in = finished_in + 1000000 WHERE finished_in IS NOT NULL")
    restored, _ = await ended(database, batch_id)
    assert [row.line for row in restored] == [3, 1]
    assert await settle_restored_ends(database, limit=1) == 1
    assert await settle_restored_ends(database) == 1
    assert await settle_restored_ends(database) == 0
    await jobs.finish(end_of(held[job_ids[1]]))
    await seen_by_all(database)
    whole, _ = await ended(database, batch_id)
    assert [row.line for row in whole] == [3, 1, 2]
    since, _ = await ended(database, batch_id, after=restored[0].id)
    assert [row.line for row in since] == [1, 2]


async def test_files_of_an_account_are_bounded_in_number_and_bytes(database: Database, stranger: Owner) -> None:
    await store(database, stranger, b"x" * 600)
    await store(database, stranger, b"x" * 600, seconds=0)  # has expired
    writer = FileWriter(database, account_id=stranger.account_id, purpose="batch")
    await writer.write(b"x" * 300)
    await writer.flush()  # is under way
    check = partial(check_file_quota, database, stranger.account_id, param="file")
    await check(Settings(account_files=2, account_file_bytes=900))
    await check(Settings(account_files=3, account_file_bytes=1000), files=1, size=100)
    for files, size in ((2, 1000), (3, 999)):
        with pytest.raises(QuotaExceededError) as refused:
            await check(Settings(account_files=files, account_file_bytes=size), files=1, size=100)
        assert (refused.value.code, refused.value.param) == ("file_quota_exceeded", "file")


async def test_an_unfinished_file_is_nobodys(database: Database, owner: Owner) -> None:
    writer = FileWriter(database, account_id=owner.account_id, purpose="batch")
    await writer.write(b"x" * (CHUNK_BYTES + 1))
    assert await find_file(database, writer.file_id, owner.account_id) is None
    await writer.discard()
    rows = await execute(
        database.relaxed, "SELECT count(*) FROM file_chunks WHERE file_id = %(id)s", {"id": writer.file_id}
    )
    assert rows[0][0] == 0


async def test_what_has_expired_or_was_broken_off_is_swept_but_for_an_input_in_use(
    database: Database, owner: Owner
) -> None:
    gone = await store(database, owner, seconds=0)
    kept = await store(database, owner, seconds=3600)
    broken = FileWriter(database, account_id=owner.account_id, purpose="batch")
    await broken.write(b"x" * CHUNK_BYTES)
    await execute(
        database.relaxed,
        "UPDATE files SET created_at = now() - interval '2 days' WHERE id = %(id)s",
        {"id": broken.file_id},
    )
    batch_id = await create(database, owner, total=1)
    batch = await get(database, owner, batch_id)
    await execute(
        database.relaxed, "UPDATE files SET expires_at = now() WHERE id = %(id)s", {"id": batch.input_file_id}
    )
    assert await find_file(database, gone, owner.account_id) is None
    await sweep_files(database)
    rows = await execute(database.relaxed, "SELECT id FROM files")
    ids = {row.id for row in rows}
    assert {gone, broken.file_id}.isdisjoint(ids)
    assert {kept, batch.input_file_id} <= ids


async def test_a_file_is_not_deleted_under_a_batch_that_is_being_created(
    database: Database, owner: Owner, other_session: Session
) -> None:
    batch_id, other_id = await create(database, owner), await create(database, owner)
    file_id = await store(database, owner)
    # What creates a batch, in a transaction that takes long.
    await other_session.execute("SELECT id FROM files WHERE id = %s FOR KEY SHARE", [file_id])
    await other_session.execute("UPDATE batches SET input_file_id = %s WHERE id = %s", [file_id, batch_id])
    deleting = asyncio.create_task(delete_file(database, file_id, owner.account_id))
    await waiting(other_session)
    await other_session.commit()
    assert await deleting == (True, batch_id)
    assert await find_file(database, file_id, owner.account_id) is not None

    expired = await store(database, owner, seconds=0)
    await other_session.execute("LOCK TABLE batches IN ACCESS EXCLUSIVE MODE")
    sweeping = asyncio.create_task(sweep_files(database))
    await waiting(other_session)
    await other_session.execute("UPDATE batches SET input_file_id = %s WHERE id = %s", [expired, other_id])
    await other_session.commit()
    await sweeping
    assert await execute(database.relaxed, "SELECT id FROM files WHERE id = %(id)s", {"id": expired})


async def test_batches_that_are_created_at_once_are_no_more_than_an_account_may_have(
    database: Database, stranger: Owner
) -> None:
    file_id = await store(database, stranger)
    news = [new_batch(stranger, file_id) for _ in range(30)]
    outcomes = await asyncio.gather(*(create_batch(database, new, most=5) for new in news), return_exceptions=True)
    assert Counter(map(type, outcomes)) == {bool: 5, RateLimitError: 25}
    made = [new for new, outcome in zip(news, outcomes, strict=True) if outcome is True]
    assert await create_batch(database, made[0], most=5), "the same batch again"
    for new in made:
        await cancel_batch(database, new.id, stranger.account_id)


async def test_a_batch_is_created_or_its_file_deleted(database: Database, owner: Owner) -> None:
    outcomes = Counter[tuple[bool, bool]]()
    for _ in range(30):
        file_id = await store(database, owner)
        new = new_batch(owner, file_id)
        created, (_, user) = await asyncio.gather(
            create_batch(database, new, most=1000), delete_file(database, file_id, owner.account_id)
        )
        outcomes[created, user is not None] += 1
    assert set(outcomes) <= {(True, True), (False, False)}


async def test_the_files_of_a_batch_are_there_when_it_has_ended(database: Database, owner: Owner) -> None:
    batch_id = await create(database, owner)
    await cancel_batch(database, batch_id, owner.account_id)
    writer = FileWriter(database, account_id=owner.account_id, purpose="batch_output")
    await writer.write(b"{}\n")
    await writer.flush()
    written = [WrittenFile(writer.file_id, writer.size, f"{batch_id}_error.jsonl")]
    for expected, begin in ((False, BatchState.FINALIZING), (True, BatchState.CANCELLING)):
        ended = await end_batch(
            database,
            batch_id,
            begin=begin,
            end=BatchState.CANCELLED,
            output_file_id=None,
            error_file_id=writer.file_id,
            written=written,
        )
        assert ended is expected
        assert (await find_file(database, writer.file_id, owner.account_id) is not None) is expected
    # One of a scheduler that made its files be there first, and died.
    spare = FileWriter(database, account_id=owner.account_id, purpose="batch_output")
    await spare.write(b"{}\n")
    await spare.close(filename=f"{batch_id}_error.jsonl")
    assert await expire_spare_outputs(database) == 1
    assert await find_file(database, spare.file_id, owner.account_id) is None
    assert await find_file(database, writer.file_id, owner.account_id) is not None


async def test_a_file_is_deleted_only_by_its_account_and_not_in_use(
    database: Database, owner: Owner, stranger: Owner
) -> None:
    batch_id = await create(database, owner, total=1)
    batch = await get(database, owner, batch_id)
    assert await delete_file(database, batch.input_file_id, stranger.account_id) == (False, None)
    assert await delete_file(database, batch.input_file_id, owner.account_id) == (True, batch_id)
    await cancel_batch(database, batch_id, owner.account_id)
    assert await end_batch(
        database,
        batch_id,
        begin=BatchState.CANCELLING,
        end=BatchState.CANCELLED,
        output_file_id=None,
        error_file_id=None,
    )
    assert await delete_file(database, batch.input_file_id, owner.account_id) == (True, None)
    assert await delete_file(database, batch.input_file_id, owner.account_id) == (False, None)
    assert [piece async for piece in read_file(database, batch.input_file_id)] == []
