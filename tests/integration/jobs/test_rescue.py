"""The scheduler rescues jobs that no worker runs."""

from __future__ import annotations

import pytest

from headrace.jobs.records import Backlog, MovedJob
from headrace.jobs.sql.accept import mark_unsent
from headrace.jobs.sql.rescue import Overdue, find_overdue, keep_in_hand
from headrace.jobs.sql.run import extend_leases
from headrace.jobs.state import State
from headrace.queue import TIERS
from headrace.stores.database import execute
from tests.integration.databases import Session
from tests.integration.job_rows import Jobs, end_of


async def test_a_job_whose_worker_went_away_goes_back_to_the_queue(jobs: Jobs) -> None:
    job = await jobs.run(deltas=3, tier="priority", origin="api-1")
    await jobs.retry(job)
    [job] = await jobs.claim(job.id)
    await jobs.lose(job.id)
    assert await jobs.rescue() == [MovedJob(job.id, "priority", State.QUEUED, 2, "api-1")]
    row = await jobs.row(job.id)
    assert (row.state, row.lost, row.retries, row.worker, row.lease_until) == ("queued", 1, 1, None, None)
    assert await jobs.deltas(job.id) == []
    assert await jobs.ledger(job.id) == []
    assert [again.attempt for again in await jobs.claim(job.id)] == [3]


async def test_a_lease_that_holds_is_left_alone(jobs: Jobs) -> None:
    await jobs.run()
    await jobs.submit()
    await jobs.complete()
    assert await jobs.rescue() == []


async def test_a_job_that_was_to_be_cancelled_ends_when_its_worker_is_gone(jobs: Jobs) -> None:
    job = await jobs.run(deltas=1)
    await jobs.cancel(job.id)
    await jobs.lose(job.id)
    assert [moved.state for moved in await jobs.rescue()] == [State.CANCELLED]
    row = await jobs.row(job.id)
    assert (row.state, row.error) == ("cancelled", '{"why":"cancelled"}')


@pytest.mark.parametrize("max_lost", [1, 2, 4])
async def test_a_job_that_takes_workers_with_it_fails_after_so_many(jobs: Jobs, max_lost: int) -> None:
    job_id = await jobs.submit()
    for lost in range(1, max_lost + 1):
        assert len(await jobs.claim(job_id)) == 1
        await jobs.lose(job_id)
        [moved] = await jobs.rescue(max_lost=max_lost)
        assert moved.state is (State.FAILED if lost == max_lost else State.QUEUED)
    row = await jobs.row(job_id)
    assert (row.error, row.lost, row.attempt) == ('{"why":"poisonous"}', max_lost, max_lost)


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("deltas", [0, 2])
async def test_only_a_foreground_stream_that_has_begun_fails_rather_than_repeat_itself(
    jobs: Jobs, background: bool, streamed: bool, deltas: int
) -> None:
    job = await jobs.run(background=background, streamed=streamed, deltas=deltas)
    await jobs.lose(job.id)
    [moved] = await jobs.rescue()
    interrupted = streamed and not background and deltas > 0
    assert moved.state is (State.FAILED if interrupted else State.QUEUED)
    assert (await jobs.row(job.id)).error == ('{"why":"interrupted"}' if interrupted else None)


async def test_a_job_whose_wake_up_was_not_sent_is_sent_by_the_next_sweep(jobs: Jobs) -> None:
    unsent, sent, claimed = [await jobs.submit() for _ in range(3)]
    await jobs.claim(claimed)
    await mark_unsent(jobs.database, [unsent, claimed, "job_0"])
    assert [moved.id for moved in await jobs.resend(seconds=30)] == [unsent]
    assert await jobs.resend(seconds=30) == [], "it counts as sent now"
    assert (await jobs.row(sent)).state == "queued"


async def test_an_unsent_job_at_the_head_of_a_long_queue_hides_no_lost_one(jobs: Jobs) -> None:
    lost, last = await jobs.submit(), await jobs.submit()
    await jobs.set(lost, "sent_at = now() - interval '1 hour'")
    await mark_unsent(jobs.database, [last])
    backlog = Backlog([last], [last], whole=False)
    assert [moved.id for moved in await jobs.resend(backlog=backlog, seconds=30)] == [lost]


async def test_a_rescued_job_is_due_after_the_delay_and_not_sent_again_at_once(jobs: Jobs) -> None:
    job = await jobs.run()
    await jobs.set(job.id, "sent_at = now() - interval '1 hour'")
    await jobs.lose(job.id)
    await jobs.rescue(delay_seconds=60)
    assert await jobs.claim(job.id) == []
    await jobs.set(job.id, "scheduled_at = now()")
    assert await jobs.resend(seconds=30) == []
    assert len(await jobs.claim(job.id)) == 1


async def test_queued_jobs_expire_and_running_ones_are_left_to_their_worker(jobs: Jobs) -> None:
    running = await jobs.run()
    ended = await jobs.complete()
    late, delayed, in_time = await jobs.submit(origin="api-1", tier="flex"), await jobs.run(), await jobs.submit()
    await jobs.retry(delayed, delay_seconds=600)
    for job_id in (running.id, ended.id, late, delayed.id):
        await jobs.set(job_id, "deadline_at = now()")
    moved = sorted(await jobs.expire(), key=lambda job: job.attempt)
    assert moved == [
        MovedJob(late, "flex", State.EXPIRED, 0, "api-1"),
        MovedJob(delayed.id, "default", State.EXPIRED, 1, None),
    ]
    assert (await jobs.row(late)).error == '{"why":"expired"}'
    assert await jobs.state(running.id) is State.RUNNING
    assert await jobs.state(in_time) is State.QUEUED
    assert await jobs.expire() == []


async def test_a_look_finds_what_is_to_be_rescued_expired_or_sent_again(jobs: Jobs) -> None:
    async def overdue() -> Overdue:
        return await find_overdue(jobs.database, TIERS, resend_seconds=60)

    nothing = Overdue(leases=False, deadlines=False, tiers=[])
    job = await jobs.run()
    await jobs.complete()
    waiting, later, unsent = await jobs.submit(tier="flex"), await jobs.submit(tier="batch"), await jobs.submit()
    assert await overdue() == nothing

    await jobs.lose(job.id)
    assert await overdue() == nothing._replace(leases=True)
    assert len(await jobs.rescue()) == 1
    assert await overdue() == nothing

    await jobs.set(waiting, "sent_at = now() - interval '61 seconds'")
    await jobs.set(later, "sent_at = now() - interval '61 seconds', scheduled_at = now() + interval '1 hour'")
    await mark_unsent(jobs.database, [unsent])
    found = await overdue()
    assert sorted(found.tiers) == ["default", "flex"]
    assert (found.leases, found.deadlines) == (False, False)
    for tier in found.tiers:
        assert len(await jobs.resend(tier, seconds=60)) == 1
    assert await overdue() == nothing

    await jobs.set(later, "deadline_at = now() - interval '1 second'")
    assert await overdue() == nothing._replace(deadlines=True)
    assert len(await jobs.expire()) == 1
    assert await overdue() == nothing


async def test_what_no_worker_took_is_sent_again_once_in_a_while(jobs: Jobs) -> None:
    forgotten = {tier: await jobs.submit(tier=tier) for tier in ("priority", "default", "flex")}
    recent = await jobs.submit()
    running, ended = await jobs.run(), await jobs.complete()
    for job_id in (*forgotten.values(), running.id, ended.id):
        await jobs.set(job_id, "sent_at = now() - interval '1 minute'")
    before = await jobs.row(recent)

    async def resend(*tiers: str) -> set[MovedJob]:
        return {moved for tier in tiers for moved in await jobs.resend(tier, seconds=30)}

    assert await resend() == set()
    assert await resend("priority", "flex") == {
        MovedJob(forgotten[tier], tier, State.QUEUED, 0, None) for tier in ("priority", "flex")
    }
    assert await resend("priority", "default", "flex") == {
        MovedJob(forgotten["default"], "default", State.QUEUED, 0, None)
    }
    assert await resend("priority", "default", "flex") == set()
    assert await jobs.row(recent) == before
    assert {job.id for job in await jobs.claim(*forgotten.values())} == set(forgotten.values())


MANY_LATER = """
INSERT INTO jobs (id, account_id, key_id, model, request, tier, background, streamed, deadline_at, scheduled_at,
                  sent_at)
SELECT 'job_' || lpad(to_hex(number), 32, '0'), account_id, key_id, model, request, tier, true, false, deadline_at,
       now() + interval '1 hour', now() + interval '1 hour'
FROM jobs, generate_series(1, 20000) AS number WHERE id = %(id)s
"""


async def test_jobs_that_are_not_due_yet_hide_no_lost_wake_up(jobs: Jobs) -> None:
    lost = await jobs.submit()
    await execute(jobs.database.durable, MANY_LATER, {"id": lost})
    await mark_unsent(jobs.database, [lost])
    assert (await find_overdue(jobs.database, TIERS, resend_seconds=60)).tiers == ["default"]
    assert [moved.id for moved in await jobs.resend(seconds=60)] == [lost]


async def test_what_waits_in_a_queue_or_in_a_workers_hands_is_not_sent_again(jobs: Jobs) -> None:
    waiting, held, lost = [await jobs.submit() for _ in range(3)]
    for job_id in (waiting, held, lost):
        await jobs.set(job_id, "sent_at = now() - interval '1 minute'")
    await keep_in_hand(jobs.database, [held])
    sent = await jobs.resend(backlog=Backlog([waiting], [waiting], whole=True), seconds=30)
    assert [moved.id for moved in sent] == [lost]
    assert await jobs.resend(backlog=Backlog([waiting], [waiting], whole=True), seconds=30) == []


async def test_of_a_long_queue_only_what_should_have_been_at_its_head_was_lost(jobs: Jobs) -> None:
    lost, head, last, beyond = [await jobs.submit() for _ in range(4)]
    for minutes, job_id in enumerate((beyond, last, head, lost), start=1):
        await jobs.set(job_id, f"sent_at = now() - interval '{minutes} minutes'")
    sent = await jobs.resend(backlog=Backlog([head, last], [last], whole=False), seconds=30)
    assert [moved.id for moved in sent] == [lost], "what lies beyond the head is not known to be lost"


async def test_sweeps_pass_over_what_another_has_locked(jobs: Jobs, other_session: Session) -> None:
    dead, late, forgotten = await jobs.run(), await jobs.submit(), await jobs.submit()
    await jobs.lose(dead.id)
    await jobs.set(late, "deadline_at = now()")
    await other_session.execute("SELECT FROM jobs WHERE id = ANY(%s) FOR UPDATE", [[dead.id, late, forgotten]])
    assert await jobs.rescue() == []
    assert await jobs.expire() == []
    assert await jobs.resend() == []
    await other_session.rollback()
    assert [job.id for job in await jobs.rescue()] == [dead.id]
    assert [job.id for job in await jobs.expire()] == [late]


async def test_a_worker_that_comes_back_before_the_sweep_keeps_its_job(jobs: Jobs) -> None:
    job = await jobs.run()
    await jobs.lose(job.id)
    await extend_leases(jobs.database, [(job.id, 1)], lease_seconds=60)
    assert await jobs.rescue() == []
    assert await jobs.finish(end_of(job)) == [True]
