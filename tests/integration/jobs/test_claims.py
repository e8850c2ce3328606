"""From the insert to the claim, and the lease that holds a claim."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import replace

import pytest
import sqlalchemy as sa

from headrace.jobs.sql.accept import insert_jobs
from headrace.jobs.sql.run import extend_leases
from headrace.jobs.state import State
from headrace.stores.database import Database, execute
from tests.integration.databases import Session
from tests.integration.job_rows import LEASE, Jobs, Owner, end_of, new_job

RACERS = 24


async def count_jobs(database: Database) -> int:
    return int((await execute(database.durable, "SELECT count(*) FROM jobs"))[0][0])


async def test_jobs_are_accepted_in_the_order_they_are_given(database: Database, owner: Owner) -> None:
    new = [new_job(owner, model=f"m{number}", metadata='{"a":"b"}') for number in range(20)]
    random.Random(1).shuffle(new)
    created = await insert_jobs(database, new)
    rows = await execute(database.durable, "SELECT id, model, metadata, extract(epoch FROM created_at) FROM jobs")
    kept = {row[0]: row for row in rows}
    for job, at in zip(new, created, strict=True):
        assert (kept[job.id][1], kept[job.id][2]) == (job.model, {"a": "b"})
        assert int(kept[job.id][3]) == at


async def test_no_job_of_a_refused_insert_is_kept(database: Database, owner: Owner) -> None:
    with pytest.raises(sa.exc.DBAPIError):
        await insert_jobs(database, [new_job(owner), new_job(owner, tier="gold"), new_job(owner)])
    assert await count_jobs(database) == 0


async def test_inserting_again_changes_nothing(jobs: Jobs) -> None:
    new = new_job(jobs.owner)
    first = await insert_jobs(jobs.database, [new])
    [claimed] = await jobs.claim(new.id)
    before = await jobs.row(new.id)
    again = await insert_jobs(jobs.database, [replace(new, model="other"), new_job(jobs.owner)])
    assert again[:1] == first
    assert await jobs.row(new.id) == before
    assert await jobs.finish(end_of(claimed)) == [True]
    assert await insert_jobs(jobs.database, [new]) == first
    assert await jobs.state(new.id) is State.COMPLETED


async def test_a_claim_has_what_it_takes_to_run_the_job(jobs: Jobs) -> None:
    new = new_job(
        jobs.owner,
        model="m",
        request='{"messages":[1]}',
        tier="flex",
        background=False,
        streamed=True,
        origin="api-1",
        trace_context="00-1-2-01\na=1",
        timeout_seconds=100,
    )
    [created] = await insert_jobs(jobs.database, [new])
    [job] = await jobs.claim(new.id, worker="w7")
    assert (job.id, job.attempt, job.account_id, job.key_id) == (new.id, 1, new.account_id, new.key_id)
    assert (job.model, job.request, job.tier, job.origin) == ("m", '{"messages":[1]}', "flex", "api-1")
    assert (job.background, job.streamed, job.route, job.retries, job.created) == (False, True, 0, 0, created)
    assert job.trace_context == "00-1-2-01\na=1"
    assert not job.has_webhook
    assert 0 < job.seconds_left <= 100
    row = await jobs.row(job.id)
    assert (row.state, row.worker, row.attempt) == ("running", "w7", 1)
    assert row.lease_until > row.started_at


async def test_only_what_is_queued_and_due_and_in_time_is_claimed(jobs: Jobs) -> None:
    due, running, ended = await jobs.submit(), (await jobs.run()).id, (await jobs.complete()).id
    later = await jobs.run()
    assert await jobs.retry(later, delay_seconds=60)
    late = await jobs.submit()
    await jobs.set(late, "deadline_at = now() - interval '1 second'")
    before = {job_id: await jobs.row(job_id) for job_id in (running, ended, later.id, late)}
    claimed = await jobs.claim(due, running, ended, later.id, late, "job_" + "0" * 32)
    assert [job.id for job in claimed] == [due]
    assert {job_id: await jobs.row(job_id) for job_id in before} == before


async def test_a_later_attempt_keeps_when_the_job_first_started(jobs: Jobs) -> None:
    first = await jobs.run()
    started = (await jobs.row(first.id)).started_at
    await jobs.retry(first)
    [second] = await jobs.claim(first.id)
    assert (second.attempt, second.retries) == (2, 1)
    assert (await jobs.row(first.id)).started_at == started


async def test_of_many_who_claim_a_job_one_gets_it(jobs: Jobs) -> None:
    job_ids = [await jobs.submit() for _ in range(8)]
    claims = await asyncio.gather(*(jobs.claim(*job_ids, worker=f"w{number}") for number in range(RACERS)))
    winners = Counter(job.id for claimed in claims for job in claimed)
    assert winners == dict.fromkeys(job_ids, 1)
    assert all(job.attempt == 1 for claimed in claims for job in claimed)


async def test_workers_whose_lists_overlap_in_any_order_never_wait_for_each_other(jobs: Jobs) -> None:
    rng = random.Random(2)
    new = [new_job(jobs.owner) for _ in range(300)]
    await insert_jobs(jobs.database, new)

    async def take(worker: str) -> list[str]:
        won: list[str] = []
        for _ in range(8):
            wanted = rng.sample([job.id for job in new], 150)
            won += [job.id for job in await jobs.claim(*wanted, worker=worker)]
        return won

    won = await asyncio.gather(*(take(f"w{number}") for number in range(8)))
    assert all(count == 1 for count in Counter(job_id for ids in won for job_id in ids).values())
    rows = await execute(jobs.database.durable, "SELECT id, worker FROM jobs WHERE state = 'running'")
    assert {row[0]: row[1] for row in rows} == {
        job_id: f"w{number}" for number, ids in enumerate(won) for job_id in ids
    }


async def test_everything_at_once_on_the_same_jobs_does_not_deadlock(jobs: Jobs) -> None:
    rng = random.Random(3)
    new = [new_job(jobs.owner) for _ in range(60)]
    await insert_jobs(jobs.database, new)

    async def work(worker: str) -> None:
        for _ in range(12):
            held = await jobs.claim(*rng.sample([job.id for job in new], 40), worker=worker)
            rng.shuffle(held)
            await extend_leases(jobs.database, [(job.id, job.attempt) for job in held], lease_seconds=LEASE)
            half = len(held) // 2
            await jobs.finish(*(end_of(job) for job in held[half:]))
            await asyncio.gather(*(jobs.retry(job) for job in held[:half]))

    async def sweep() -> None:
        for _ in range(12):
            await execute(
                jobs.database.durable,
                "UPDATE jobs SET lease_until = now() - interval '1 second' WHERE id IN"
                " (SELECT id FROM jobs WHERE state = 'running' ORDER BY id LIMIT 5 FOR UPDATE SKIP LOCKED)",
            )
            await jobs.rescue(max_lost=99)
            await jobs.expire()
            await jobs.resend()
            await jobs.cancel(rng.choice(new).id)

    await asyncio.gather(sweep(), *(work(f"w{number}") for number in range(6)))
    rows = await execute(
        jobs.database.durable,
        "SELECT state, (SELECT count(*) FROM usage WHERE job_id = jobs.id AND kind = 'counted') FROM jobs",
    )
    assert all(row[1] == (row[0] == "completed") for row in rows)


async def test_a_heartbeat_extends_the_leases_that_are_held(jobs: Jobs) -> None:
    held = [await jobs.run() for _ in range(3)]
    for job in held:
        await jobs.lose(job.id)
    pairs = [(job.id, job.attempt) for job in reversed(held)]
    assert await extend_leases(jobs.database, pairs, lease_seconds=LEASE) == []
    assert await jobs.rescue() == []


async def test_a_heartbeat_tells_what_is_lost_and_what_was_cancelled(jobs: Jobs, stranger: Owner) -> None:
    mine, cancelled, ended, queued, overtaken = [await jobs.run() for _ in range(5)]
    await jobs.cancel(cancelled.id)
    await jobs.finish(end_of(ended))
    await jobs.retry(queued)
    await jobs.retry(overtaken)
    [taken] = await jobs.claim(overtaken.id, worker="w2")
    lease = (await jobs.row(taken.id)).lease_until
    absent = "job_" + "0" * 32
    held = [(job.id, job.attempt) for job in (mine, cancelled, ended, queued, overtaken)]
    to_stop = await extend_leases(jobs.database, [*held, (absent, 1)], lease_seconds=2 * LEASE)
    assert set(to_stop) == {
        (cancelled.id, 1, False),
        (ended.id, 1, True),
        (queued.id, 1, True),
        (overtaken.id, 1, True),
        (absent, 1, True),
    }
    assert (await jobs.row(taken.id)).lease_until == lease
    assert (await jobs.row(queued.id)).lease_until is None


async def test_a_heartbeat_passes_over_a_locked_job_without_calling_it_lost(jobs: Jobs, other_session: Session) -> None:
    locked, free = await jobs.run(), await jobs.run()
    for job in (locked, free):
        await jobs.lose(job.id)
    await other_session.execute("SELECT FROM jobs WHERE id = %s FOR UPDATE", [locked.id])
    held = [(locked.id, 1), (free.id, 1)]
    assert await extend_leases(jobs.database, held, lease_seconds=LEASE) == []
    await other_session.rollback()
    assert [moved.id for moved in await jobs.rescue()] == [locked.id]


async def test_a_claim_passes_over_a_locked_job(jobs: Jobs, other_session: Session) -> None:
    locked, free = await jobs.submit(), await jobs.submit()
    await other_session.execute("SELECT FROM jobs WHERE id = %s FOR UPDATE", [locked])
    assert [job.id for job in await jobs.claim(locked, free)] == [free]
