from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from headrace.agents.queries import create_agent, delete_agent
from headrace.batches.queries import cancel_batch, end_batch, get_batch
from headrace.batches.state import BatchState
from headrace.files.queries import FileWriter, find_file, forget_files, sweep_files
from headrace.files.tables import CHUNK_BYTES
from headrace.idempotency.queries import claim_id, sweep_keys
from headrace.ids import id_before, new_id
from headrace.jobs.sql import erase
from headrace.jobs.sql.accept import insert_jobs
from headrace.jobs.sql.erase import erase_unstored
from headrace.jobs.sql.read import read_progress
from headrace.jobs.state import State
from headrace.runtime.chores import going_on
from headrace.settings import Settings
from headrace.stores.database import Database, execute
from headrace.usage.tables import usage
from scheduler.retention import _MANY, Retention
from tests.integration.batches.test_queries import create
from tests.integration.databases import Session
from tests.integration.job_rows import Jobs, Owner, end_of, new_job, segment
from tests.waiting import eventually

DAY = 86_400


async def age(jobs: Jobs, job_id: str, days: float) -> str:
    """Let a job be older, its id too, which says so; returns the new id."""
    old = id_before(days * DAY) + job_id[-20:]
    await execute(
        jobs.database.relaxed,
        """WITH moved AS (
               INSERT INTO jobs SELECT (jsonb_populate_record(jobs, jsonb_build_object(
                   'id', %(old)s::text, 'finished_at', finished_at - %(days)s * interval '1 day'))).*
               FROM jobs WHERE id = %(id)s RETURNING id
           ), deltas AS (
               INSERT INTO job_deltas SELECT moved.id, attempt, first_seq, last_seq, chunks FROM job_deltas, moved
               WHERE job_id = %(id)s
           )
           DELETE FROM jobs WHERE id = %(id)s""",
        {"old": old, "id": job_id, "days": days},
    )
    return old


async def with_deltas(jobs: Jobs, **changes: object) -> str:
    """Return a completed job that was streamed."""
    job = await jobs.run(deltas=3, **changes)
    await jobs.finish(end_of(job, delta_count=4, segment=segment(job, 4, 4)))
    return job.id


async def count(database: Database, table: str, job_id: str) -> int:
    column = "id" if table == "jobs" else "job_id"
    rows = await execute(database.relaxed, f"SELECT count(*) FROM {table} WHERE {column} = %(id)s", {"id": job_id})
    return int(rows[0][0])


@pytest.fixture
def retention(database: Database) -> Retention:
    return Retention(Settings(retention_days=30), database)


async def test_deltas_are_pruned_a_day_later_and_the_answer_stays(
    database: Database, jobs: Jobs, owner: Owner, retention: Retention
) -> None:
    fresh, old = await with_deltas(jobs), await age(jobs, await with_deltas(jobs), 2)
    await retention.step()
    assert await count(database, "job_deltas", fresh) > 0
    assert await count(database, "job_deltas", old) == 0
    progress = await read_progress(database, old)
    assert progress is not None
    assert (progress.state, progress.delta_count) == (State.COMPLETED, 0)
    assert progress.response is not None


async def add_deltas(database: Database, job_id: str, count: int) -> None:
    query = "INSERT INTO job_deltas SELECT %(id)s, 1, n, n, '' FROM generate_series(101, 100 + %(count)s::int) AS n"
    await execute(database.relaxed, query, {"id": job_id, "count": count})


async def test_deltas_of_few_jobs_are_much_to_do(database: Database, jobs: Jobs, retention: Retention) -> None:
    old = await age(jobs, await with_deltas(jobs), 2)
    await add_deltas(database, old, _MANY)
    assert await retention.step() >= _MANY


@pytest.mark.parametrize(
    "off",
    [[], ["nestloop"], ["hashjoin", "mergejoin"], ["indexscan", "indexonlyscan"], ["seqscan", "bitmapscan"], ["sort"]],
)
async def test_whole_jobs_are_pruned_by_any_plan(
    database: Database, jobs: Jobs, other_session: Session, off: Sequence[str]
) -> None:
    await execute(database.relaxed, "DELETE FROM job_deltas")
    old = [await age(jobs, await with_deltas(jobs), days) for days in (5, 4, 3)]
    for job_id in old:
        await add_deltas(database, job_id, 10)
    for kind in off:
        await other_session.execute(f"SET LOCAL enable_{kind} = off".encode())
    parameters = {"before": id_before(DAY), "seconds": DAY, "limit": 12}
    pruned = await (await other_session.execute(erase._PRUNE.encode(), parameters)).fetchall()
    await other_session.commit()
    each = sum([await count(database, "job_deltas", job_id) for job_id in old[2:]])
    assert pruned == [(each,)]
    assert [await count(database, "job_deltas", job_id) for job_id in old[:2]] == [0, each]


async def test_pruning_reads_no_other_jobs(database: Database, jobs: Jobs, other_session: Session) -> None:
    await insert_jobs(database, [new_job(jobs.owner) for _ in range(500)])
    await execute(database.relaxed, "UPDATE jobs SET state = 'cancelled', finished_at = now(), error = '{}'")
    query = "INSERT INTO job_deltas SELECT id, 1, n, n, '' FROM jobs, generate_series(101, 120) AS n"
    await execute(database.relaxed, query)
    await execute(database.relaxed, "ANALYZE jobs, job_deltas")
    parameters = {"before": id_before(-60), "seconds": 0, "limit": 1000}  # there is very much to do
    plan = await (await other_session.execute(b"EXPLAIN " + erase._PRUNE.encode(), parameters)).fetchall()
    assert not [line for (line,) in plan if "Seq Scan" in line]


async def test_jobs_are_forgotten_and_their_usage_stays(
    database: Database, jobs: Jobs, owner: Owner, retention: Retention
) -> None:
    kept, old = await age(jobs, await with_deltas(jobs), 29), await with_deltas(jobs)
    spent = await execute(database.relaxed, usage.select().where(usage.c.job_id == old))
    old = await age(jobs, old, 31)
    running = await jobs.run()
    assert await retention.step() >= 1
    assert [await count(database, "jobs", job_id) for job_id in (kept, old, running.id)] == [1, 0, 1]
    assert await execute(database.relaxed, usage.select().where(usage.c.job_id == spent[0].job_id)) == spent


async def old_file(database: Database, owner: Owner, *, days: float, data: bytes = b"a prompt") -> str:
    """Return a file that is so old, as its id says too."""
    writer = FileWriter(database, account_id=owner.account_id, purpose="batch")
    writer.file_id = writer._row["id"] = id_before(days * DAY, "file") + writer.file_id[-20:]
    await writer.write(data)
    await writer.close(filename="a")
    query = "UPDATE files SET created_at = now() - %(days)s * interval '1 day' WHERE id = %(id)s"
    await execute(database.relaxed, query, {"id": writer.file_id, "days": days})
    return writer.file_id


async def ended_batch(database: Database, owner: Owner, *, days: float, files: Sequence[str]) -> str:
    """Return a batch that was cancelled that many days ago. `files` are its input, its output and its errors."""
    batch_id = await create(database, owner)
    await cancel_batch(database, batch_id, owner.account_id)
    assert await end_batch(
        database,
        batch_id,
        begin=BatchState.CANCELLING,
        end=BatchState.CANCELLED,
        output_file_id=files[1],
        error_file_id=files[2],
    )
    query = """UPDATE batches SET input_file_id = %(input)s, cancelled_at = now() - %(days)s * interval '1 day'
               WHERE id = %(id)s"""
    await execute(database.relaxed, query, {"id": batch_id, "input": files[0], "days": days})
    return batch_id


async def kept_of(database: Database, *file_ids: str) -> list[bool]:
    """Tell of each file whether any of its chunks is kept."""
    query = "SELECT DISTINCT file_id FROM file_chunks WHERE file_id = ANY(%(ids)s)"
    kept = {row.file_id for row in await execute(database.relaxed, query, {"ids": list(file_ids)})}
    return [file_id in kept for file_id in file_ids]


async def test_files_go_with_the_jobs_of_their_batch_and_the_batch_stays(
    database: Database, owner: Owner, retention: Retention
) -> None:
    old = [await old_file(database, owner, days=31) for _ in range(3)]
    batch_id = await ended_batch(database, owner, days=31, files=old)
    unused, young = await old_file(database, owner, days=31), await old_file(database, owner, days=29)
    await retention.step()
    assert await kept_of(database, *old, unused, young) == [False, False, False, False, True]
    batch = await get_batch(database, batch_id, owner.account_id)
    assert batch is not None
    assert batch.output_file_id == old[1]


async def test_an_old_input_stays_for_a_batch_that_has_just_begun_or_ended(
    database: Database, owner: Owner, retention: Retention
) -> None:
    running, ended, after, errors = [await old_file(database, owner, days=31) for _ in range(4)]
    batch_id = await create(database, owner)
    await execute(
        database.relaxed,
        "UPDATE batches SET input_file_id = %(input)s WHERE id = %(id)s",
        {"id": batch_id, "input": running},
    )
    await ended_batch(database, owner, days=29, files=[ended, after, errors])
    await retention.step()
    assert await kept_of(database, running, ended) == [True, True]
    assert await find_file(database, running, owner.account_id) is not None


async def test_a_large_file_goes_in_small_steps_and_is_not_there_meanwhile(database: Database, owner: Owner) -> None:
    large = await old_file(database, owner, days=31, data=b"x" * (5 * CHUNK_BYTES))
    assert await forget_files(database, seconds=30 * DAY) >= 1
    assert await find_file(database, large, owner.account_id) is None
    for left in (3, 1, 0):
        assert await sweep_files(database, chunks=2) > 0
        rows = await execute(database.relaxed, "SELECT count(*) FROM file_chunks WHERE file_id = %(id)s", {"id": large})
        assert rows[0][0] == left
    assert await execute(database.relaxed, "SELECT id FROM files WHERE id = %(id)s", {"id": large}) == []


async def test_many_small_files_go_without_a_rest(database: Database, owner: Owner) -> None:
    files = [await old_file(database, owner, days=1) for _ in range(150)]
    await execute(database.relaxed, "UPDATE files SET expires_at = now() WHERE id = ANY(%(ids)s)", {"ids": files})
    async with going_on(Retention(Settings(), database).run):

        async def are_gone() -> bool:
            return not await execute(database.relaxed, "SELECT id FROM files WHERE id = ANY(%(ids)s)", {"ids": files})

        await eventually(are_gone, "the files to be deleted")


async def test_nothing_is_forgotten_unless_it_is_asked_for(database: Database, jobs: Jobs, owner: Owner) -> None:
    old, file = await age(jobs, await with_deltas(jobs), 4000), await old_file(database, owner, days=4000)
    await Retention(Settings(), database).step()
    assert await count(database, "jobs", old) == 1
    assert await kept_of(database, file) == [True]


async def test_a_job_that_is_not_to_be_stored_is_erased(database: Database, jobs: Jobs, owner: Owner) -> None:
    secret = await with_deltas(jobs, stored=False, metadata='{"a": "b"}')
    stored, running = await with_deltas(jobs), (await jobs.run(stored=False)).id
    assert await erase_unstored(database, seconds=600) == 0
    for job_id in (stored, running):
        assert await erase_unstored(database, job_id=job_id) == 0
    assert await erase_unstored(database, seconds=0) >= 1
    rows = await execute(
        database.relaxed, "SELECT request, response, metadata, deleted_at FROM jobs WHERE id = %(id)s", {"id": secret}
    )
    assert rows[0][:3] == (None, None, None)
    assert rows[0].deleted_at is not None
    assert await count(database, "job_deltas", secret) == 0
    assert await count(database, "usage", secret) == 1


async def test_keys_of_a_day_ago_are_forgotten(database: Database, owner: Owner) -> None:
    job_id = new_id("job")
    for key in ("old", "new"):
        await claim_id(database, owner.account_id, key, b"\0" * 32, job_id)
    await execute(
        database.relaxed,
        "UPDATE idempotency_keys SET created_at = now() - interval '1 week' WHERE key = 'old' AND account_id = %(id)s",
        {"id": owner.account_id},
    )
    assert await sweep_keys(database) >= 1
    rows = await execute(
        database.relaxed, "SELECT key FROM idempotency_keys WHERE account_id = %(id)s", {"id": owner.account_id}
    )
    assert [row.key for row in rows] == ["new"]


async def test_of_many_that_come_at_once_all_get_one_id(database: Database, owner: Owner) -> None:
    for key in map(str, range(5)):
        ids = [new_id("job") for _ in range(20)]
        found = await asyncio.gather(*(claim_id(database, owner.account_id, key, b"\1" * 32, job_id) for job_id in ids))
        assert len(set(found)) == 1
        assert found[0] in ids


async def test_batches_are_deleted_once_their_jobs_are_if_that_is_set(
    database: Database, owner: Owner, retention: Retention
) -> None:
    files = [await old_file(database, owner, days=1) for _ in range(3)]
    ended = [await ended_batch(database, owner, days=days, files=files) for days in (41, 41, 39)]
    old = []
    for number, batch_id in enumerate(ended):
        old.append(id_before(50 * DAY, "batch") + batch_id[-20:])
        moved = "UPDATE batches SET id = %(old)s WHERE id = %(id)s"
        await execute(database.relaxed, moved, {"old": old[number], "id": batch_id})
    line = """INSERT INTO jobs (id, account_id, key_id, model, request, tier, background, streamed, batch_id, line,
                                custom_id, state, error, finished_at, finished_in, deadline_at)
              VALUES (%(id)s, %(account)s, %(key)s, 'm', '{}', 'batch', true, false, %(batch)s, 1, 'a',
                      'failed', '{}', now(), 1, now())"""
    ids = {"id": new_id("job"), "account": owner.account_id, "key": owner.key_id, "batch": old[1]}
    await execute(database.relaxed, line, ids)
    query = "SELECT id FROM batches WHERE id = ANY(%(ids)s)"
    await retention.step()
    assert len(await execute(database.relaxed, query, {"ids": old})) == 3
    await Retention(Settings(batch_retention_days=40), database).step()
    kept = {row.id for row in await execute(database.relaxed, query, {"ids": old})}
    assert kept == set(old[1:])


async def test_what_deleted_agents_say_and_urls_that_were_gone_are_forgotten(
    database: Database, owner: Owner, retention: Retention
) -> None:
    agents = [new_id("agent") for _ in range(4)]
    for agent_id in agents:
        await create_agent(database, agent_id, owner.account_id, definition='{"model": "m"}', model="m")
    for agent_id, days in zip(agents[1:], (1, 3, 3), strict=True):
        await delete_agent(database, agent_id, owner.account_id)
        await execute(
            database.relaxed,
            "UPDATE agents SET deleted_at = now() - %(days)s * interval '1 day' WHERE id = %(id)s",
            {"id": agent_id, "days": days},
        )
    batch_id = await create(database, owner)
    await execute(
        database.relaxed,
        "UPDATE batches SET agents = jsonb_build_object(%(agent)s::text, 1) WHERE id = %(id)s",
        {"agent": agents[3], "id": batch_id},
    )
    for days in (29, 31):
        await execute(
            database.relaxed,
            "INSERT INTO webhooks_gone VALUES (%(account)s, %(url)s, now() - %(days)s * interval '1 day')",
            {"account": owner.account_id, "url": f"https://example.invalid/{days}", "days": days},
        )
    await retention.step()
    query = "SELECT agent_id FROM agent_versions WHERE agent_id = ANY(%(ids)s) AND definition = '{}'"
    assert [row.agent_id for row in await execute(database.relaxed, query, {"ids": agents})] == [agents[2]]
    gone = await execute(database.relaxed, "SELECT url FROM webhooks_gone")
    assert [row.url for row in gone] == ["https://example.invalid/29"]


async def test_rare_work_that_leaves_more_to_do_goes_on_at_once(
    database: Database, owner: Owner, retention: Retention
) -> None:
    agent_id = new_id("agent")
    await create_agent(database, agent_id, owner.account_id, definition='{"model": "m"}', model="m")
    more = """INSERT INTO agent_versions (agent_id, version, definition, model)
              SELECT %(id)s, version, '{"model": "m"}', 'm' FROM generate_series(2, 600) AS version"""
    deleted = "UPDATE agents SET deleted_at = now() - interval '3 days' WHERE id = %(id)s"
    for statement in (more, deleted):
        await execute(database.relaxed, statement, {"id": agent_id})
    assert await retention.step() == 500
    assert await retention.step() == 100
    query = "SELECT version FROM agent_versions WHERE agent_id = %(id)s AND definition <> '{}'"
    assert await execute(database.relaxed, query, {"id": agent_id}) == []
