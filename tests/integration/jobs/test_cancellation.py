from __future__ import annotations

import asyncio

import pytest

from headrace.events.publisher import Publisher
from headrace.events.wire import job_channel, unpack
from headrace.jobs import cancellation
from headrace.jobs.records import MovedJob
from headrace.jobs.sql.read import get_job, get_request, read_progress
from headrace.jobs.sql.run import _SEGMENTS, extend_leases
from headrace.jobs.state import State
from headrace.stores.database import execute
from headrace.stores.redis import connect_redis
from tests.integration.databases import Session, waiting
from tests.integration.job_rows import Jobs, Owner, end_of, segment
from tests.service import Stores


async def test_a_queued_job_is_cancelled_at_once(jobs: Jobs) -> None:
    job_id = await jobs.submit(tier="flex", origin="api-1")
    moved = await jobs.cancel(job_id)
    assert moved == MovedJob(job_id, "flex", State.CANCELLED, 0, "api-1")
    row = await jobs.row(job_id)
    assert (row.state, row.error) == ("cancelled", '{"why":"cancelled"}')
    assert await jobs.claim(job_id) == []


async def test_a_running_job_is_only_asked_and_its_worker_may_still_complete_it(jobs: Jobs) -> None:
    job = await jobs.run()
    before = await jobs.row(job.id)
    moved = await jobs.cancel(job.id)
    assert moved == MovedJob(job.id, "default", State.RUNNING, 1, None)
    row = await jobs.row(job.id)
    assert (row.state, row.error, row.finished_at, row.lease_until) == ("running", None, None, before.lease_until)
    asked = row.cancel_requested_at
    assert asked is not None
    await jobs.cancel(job.id)
    assert (await jobs.row(job.id)).cancel_requested_at == asked
    assert await jobs.finish(end_of(job)) == [True]


async def test_readers_of_a_queued_job_and_workers_of_a_running_one_hear_of_it(jobs: Jobs, stores: Stores) -> None:
    queued, running = await jobs.submit(), (await jobs.run()).id
    account_id = jobs.owner.account_id
    async with connect_redis(stores.redis_url) as redis, redis.pubsub(ignore_subscribe_messages=True) as pubsub:
        await pubsub.psubscribe("headrace:*")
        publisher = Publisher(redis, interval_seconds=0)
        for job_id in (queued, running):
            assert await cancellation.cancel_job(jobs.database, publisher, job_id, account_id) is not None
        await publisher.flush()
        heard: dict[bytes, bytes] = {}
        async with asyncio.timeout(30):
            while len(heard) < 2:
                message = await pubsub.get_message(timeout=5)
                if message is not None and any(job_id.encode() in message["data"] for job_id in (queued, running)):
                    heard[message["channel"]] = message["data"]
    [frame] = unpack(heard[job_channel(queued).encode()])
    assert (frame.job_id, frame.kind) == (queued, "cancelled")
    assert heard[b"headrace:cancel"] == running.encode()


@pytest.mark.parametrize("state", [State.COMPLETED, State.FAILED, State.CANCELLED, State.EXPIRED])
async def test_a_job_that_ended_stays_as_it_is(jobs: Jobs, state: State) -> None:
    job = await jobs.run()
    await jobs.finish(end_of(job, state))
    before = await jobs.row(job.id)
    moved = await jobs.cancel(job.id)
    assert moved is not None
    assert moved.state is state
    assert await jobs.row(job.id) == before


async def test_another_accounts_job_is_no_job(jobs: Jobs, stranger: Owner) -> None:
    queued, running, ended = await jobs.submit(), (await jobs.run()).id, (await jobs.complete()).id
    for job_id in (queued, running, ended, "job_" + "0" * 32):
        rows = await execute(jobs.database.durable, "SELECT * FROM jobs WHERE id = %(id)s", {"id": job_id})
        assert await jobs.cancel(job_id, stranger) is None
        assert await jobs.delete(job_id, stranger) is False
        assert await get_job(jobs.database, job_id, stranger.account_id) is None
        assert await get_request(jobs.database, job_id, stranger.account_id) is None
        assert rows == await execute(jobs.database.durable, "SELECT * FROM jobs WHERE id = %(id)s", {"id": job_id})


async def test_a_cancel_that_meets_a_claim_is_either_done_or_asked_of_the_worker(jobs: Jobs) -> None:
    for _ in range(15):
        job_id = await jobs.submit()
        claimed, moved = await asyncio.gather(jobs.claim(job_id), jobs.cancel(job_id))
        assert moved is not None
        if claimed:
            assert moved.state is State.RUNNING
            stop = await extend_leases(jobs.database, [(job_id, 1)], lease_seconds=60)
            assert stop == [(job_id, 1, False)]
        else:
            assert moved.state is State.CANCELLED


async def test_erasing_takes_the_content_and_leaves_the_usage(jobs: Jobs) -> None:
    job = await jobs.run(deltas=2, metadata='{"a":"b"}')
    await jobs.finish(end_of(job, delta_count=3, segment=segment(job, 3, 3)))
    ledger = await jobs.ledger(job.id)
    assert await jobs.delete(job.id)
    row = await jobs.row(job.id)
    assert (row.state, row.request, row.response, row.metadata) == ("completed", None, None, None)
    assert row.deleted_at is not None
    assert await jobs.deltas(job.id) == []
    assert await jobs.ledger(job.id) == ledger
    assert await jobs.delete(job.id) is False
    assert await jobs.cancel(job.id) is None
    assert await get_job(jobs.database, job.id, jobs.owner.account_id) is None
    assert await get_request(jobs.database, job.id, jobs.owner.account_id) is None
    assert await read_progress(jobs.database, job.id) is None


@pytest.mark.parametrize("state", [State.FAILED, State.CANCELLED, State.EXPIRED])
async def test_a_job_without_a_result_is_erased_too(jobs: Jobs, state: State) -> None:
    job = await jobs.run(deltas=1)
    await jobs.finish(end_of(job, state))
    assert await jobs.delete(job.id)
    row = await jobs.row(job.id)
    assert (row.state, row.request) == (state.value, None)
    assert await jobs.deltas(job.id) == []


@pytest.mark.parametrize("state", [State.COMPLETED, State.FAILED, State.CANCELLED, State.EXPIRED])
async def test_the_end_of_a_job_erased_while_it_ran_keeps_no_content_but_its_usage(jobs: Jobs, state: State) -> None:
    job = await jobs.run(deltas=2, metadata='{"a":"b"}')
    assert await jobs.delete(job.id)
    assert await jobs.deltas(job.id) == []
    await jobs.append(segment(job, 3, 3))
    spent = end_of(job).spent
    assert await jobs.finish(end_of(job, state, delta_count=4, segment=segment(job, 3, 4), spent=spent)) == [True]
    row = await jobs.row(job.id)
    assert (row.state, row.response, row.metadata) == (state.value, None, None)
    assert await jobs.deltas(job.id) == []
    assert len(await jobs.ledger(job.id)) == 1
    assert row.request is None, "the prompt is content too"


@pytest.mark.parametrize("how", ["cancelled by the sweep", "failed by the sweep", "expired"])
async def test_a_job_erased_before_the_scheduler_ends_it_keeps_no_prompt(jobs: Jobs, how: str) -> None:
    job = await jobs.run()
    if how == "expired":
        await jobs.retry(job)
        await jobs.set(job.id, "deadline_at = now()")
    else:
        await jobs.lose(job.id)
    if how == "cancelled by the sweep":
        await jobs.cancel(job.id)
    assert await jobs.delete(job.id)
    moved = [*await jobs.rescue(max_lost=1), *await jobs.expire()]
    assert [job.id for job in moved] == [job.id]
    assert (await jobs.row(job.id)).request is None


async def test_an_erasure_that_waits_for_an_end_takes_the_ends_deltas_too(jobs: Jobs, other_session: Session) -> None:
    job = await jobs.run(deltas=1)
    await other_session.execute(
        """
        WITH ended AS (UPDATE jobs SET state = 'completed', response = '{}', lease_until = NULL, finished_at = now()
                       WHERE id = %(id)s RETURNING id)
        INSERT INTO job_deltas (job_id, attempt, first_seq, last_seq, chunks) SELECT id, 1, 2, 2, '{}' FROM ended
        """,
        {"id": job.id},
    )
    erasing = asyncio.create_task(jobs.delete(job.id))
    await waiting(other_session)
    await other_session.commit()
    assert await erasing
    row = await jobs.row(job.id)
    assert (row.response, row.request) == (None, None)
    assert await jobs.deltas(job.id) == []


async def test_deltas_on_their_way_when_the_job_is_erased_are_not_kept(jobs: Jobs, other_session: Session) -> None:
    job = await jobs.run()
    late = segment(job, 1, 1)
    await other_session.execute(
        _SEGMENTS,
        {"job_id": [job.id], "attempt": [1], "first_seq": [1], "last_seq": [1], "chunks": [late.chunks]},
    )
    erasing = asyncio.create_task(jobs.delete(job.id))
    # It may wait for the deltas or go ahead of them: either way, when both are over there must be none.
    await asyncio.wait({erasing, asyncio.create_task(waiting(other_session))}, return_when=asyncio.FIRST_COMPLETED)
    await other_session.commit()
    assert await erasing
    await jobs.finish(end_of(job, State.CANCELLED))
    assert await jobs.deltas(job.id) == []
