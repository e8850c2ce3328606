"""An attempt stores its deltas, and its end or its retry."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa

from headrace.jobs.records import JobFilter
from headrace.jobs.sql.lists import list_jobs
from headrace.jobs.sql.read import Page, get_job, read_deltas, read_log
from headrace.jobs.sql.run import retry_job
from headrace.jobs.state import State
from tests.integration.databases import Session, waiting
from tests.integration.job_rows import ERROR, RESPONSE, SPENT, Jobs, end_of, segment


async def test_segments_are_kept_and_read_from_any_point(jobs: Jobs) -> None:
    job, other = await jobs.run(), await jobs.run()
    await jobs.append(segment(job, 1, 3), segment(other, 1, 1))
    await jobs.append(segment(job, 4, 4))
    await jobs.append(segment(job, 5, 9), segment(other, 2, 2))
    assert await jobs.deltas(job.id) == [(1, 1, 3, 3), (1, 4, 4, 1), (1, 5, 9, 5)]
    assert await jobs.deltas(other.id) == [(1, 1, 1, 1), (1, 2, 2, 1)]
    for after, firsts in [(0, [1, 4, 5]), (2, [1, 4, 5]), (3, [4, 5]), (4, [5]), (8, [5]), (9, [])]:
        kept, more = await read_deltas(jobs.database, job.id, 1, after=after)
        assert ([first_seq for _, first_seq, _ in kept], more) == (firsts, False)
    assert await read_deltas(jobs.database, job.id, 2, after=0) == Page([])


async def test_more_deltas_than_are_asked_for_are_read_page_by_page(jobs: Jobs) -> None:
    job = await jobs.run()
    for first_seq in (1, 3, 5):
        await jobs.append(segment(job, first_seq, first_seq + 1))
    bytes_of_one = len(segment(job, 1, 2).chunks)
    for most, after, firsts, more in [
        (1, 0, [1], True),
        (bytes_of_one, 0, [1], True),
        (bytes_of_one + 1, 0, [1, 3], True),
        (bytes_of_one + 1, 2, [3, 5], False),
        (1, 3, [3], True),
        (1, 4, [5], False),
        (1, 6, [], False),
    ]:
        for page in (
            await read_deltas(jobs.database, job.id, 1, after=after, most_bytes=most),
            await read_log(jobs.database, job.id, after=after, most_bytes=most),
        ):
            assert ([first_seq for _, first_seq, _ in page.segments], page.more) == (firsts, more)


async def test_a_segment_that_is_written_again_grows(jobs: Jobs) -> None:
    job = await jobs.run()
    for _ in range(2):
        await jobs.append(segment(job, 1, 2))
    await jobs.append(segment(job, 1, 5))
    assert await jobs.deltas(job.id) == [(1, 1, 5, 5)]


async def test_segments_of_an_attempt_that_is_over_are_dropped_and_others_kept(jobs: Jobs) -> None:
    running, ended, queued, overtaken = [await jobs.run() for _ in range(4)]
    await jobs.finish(end_of(ended))
    await jobs.retry(queued)
    await jobs.retry(overtaken)
    [taken] = await jobs.claim(overtaken.id)
    await jobs.append(*(segment(job, 1, 1) for job in (ended, queued, overtaken, running)))
    for job in (ended, queued, taken):
        assert await jobs.deltas(job.id) == []
    assert await jobs.deltas(running.id) == [(1, 1, 1, 1)]


async def test_an_end_brings_state_response_usage_and_last_deltas_at_once(jobs: Jobs) -> None:
    job = await jobs.run(deltas=2, metadata='{"a":"b"}')
    ended = end_of(job, delta_count=4, seconds_since_first_token=10.0, segment=segment(job, 3, 4))
    assert await jobs.finish(ended) == [True]
    row = await jobs.row(job.id)
    assert (row.state, row.response, row.error, row.delta_count) == ("completed", RESPONSE, None, 4)
    assert row.lease_until is None
    assert (row.finished_at - row.first_token_at).total_seconds() == 10
    assert await jobs.deltas(job.id) == [(1, 1, 2, 2), (1, 3, 4, 2)]
    [usage] = await jobs.ledger(job.id)
    assert (usage.attempt, usage.kind, usage.provider, usage.model) == (1, "counted", "fake", "fake")
    assert (usage.account_id, usage.key_id) == (jobs.owner.account_id, jobs.owner.key_id)
    assert (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens, usage.reasoning_tokens) == (
        50,
        30,
        20,
        10,
    )
    assert (usage.estimated, usage.cost) == (False, Decimal("0.0042"))
    seen = await get_job(jobs.database, job.id, jobs.owner.account_id)
    assert seen is not None
    assert (seen.state, seen.prompt_tokens, seen.cost) == ("completed", 50, Decimal("0.0042"))


@pytest.mark.parametrize("state", [State.FAILED, State.CANCELLED, State.EXPIRED])
@pytest.mark.parametrize("spent", [None, replace(SPENT, cost=None)], ids=["nothing spent", "spent without a price"])
async def test_an_end_without_a_result_has_an_error_and_what_was_spent(jobs: Jobs, state: State, spent: Any) -> None:
    job = await jobs.run()
    assert await jobs.finish(end_of(job, state, spent=spent)) == [True]
    row = await jobs.row(job.id)
    assert (row.state, row.response, row.error) == (state.value, None, ERROR)
    assert [usage.cost for usage in await jobs.ledger(job.id)] == ([] if spent is None else [None])


async def test_many_ends_are_written_together_and_each_learns_its_own(jobs: Jobs) -> None:
    held = [await jobs.run() for _ in range(20)]
    for job in held[::3]:
        await jobs.retry(job)
    results = await jobs.finish(
        *(
            end_of(job, segment=segment(job, 1, 1), delta_count=1) if index % 2 else end_of(job, State.FAILED)
            for index, job in enumerate(held)
        )
    )
    assert results == [index % 3 != 0 for index in range(20)]
    for index, job in enumerate(held):
        expected = "queued" if index % 3 == 0 else "completed" if index % 2 else "failed"
        assert (await jobs.row(job.id)).state == expected
        assert len(await jobs.ledger(job.id)) == (expected == "completed")
        assert len(await jobs.deltas(job.id)) == (expected == "completed")


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param({"state": State.RUNNING}, id="a state that is not final"),
        pytest.param({"response": None}, id="no response"),
        pytest.param({"error": ERROR}, id="response and error"),
        pytest.param({"spent": replace(SPENT, cost=Decimal(-1))}, id="a negative cost"),
        pytest.param({"spent": replace(SPENT, tokens=replace(SPENT.tokens, cached_tokens=99))}, id="odd tokens"),
        pytest.param({"delta_count": -1}, id="a negative count"),
        pytest.param({"segment": "upside down"}, id="deltas upside down"),
    ],
)
async def test_an_end_that_contradicts_itself_leaves_nothing_at_all(jobs: Jobs, wrong: dict[str, Any]) -> None:
    job = await jobs.run(deltas=1)
    before = await jobs.row(job.id)
    if wrong.get("segment"):
        wrong = {"segment": replace(segment(job, 2, 3), last_seq=1)}
    with pytest.raises(sa.exc.IntegrityError):
        await jobs.finish(replace(end_of(job, segment=segment(job, 2, 2)), **wrong))
    assert await jobs.row(job.id) == before
    assert await jobs.deltas(job.id) == [(1, 1, 1, 1)]
    assert await jobs.ledger(job.id) == []


async def test_a_late_attempt_writes_nothing(jobs: Jobs) -> None:
    """The old attempt changes neither the row, its deltas nor its usage, in any later state of the job."""
    queued, taken, cancelled, ended, deleted = [await jobs.run() for _ in range(5)]
    for job in (queued, taken):
        await jobs.retry(job, spent=SPENT)
    await jobs.claim(taken.id)
    await jobs.cancel(cancelled.id)
    await jobs.lose(cancelled.id)
    await jobs.rescue()
    await jobs.finish(end_of(ended, State.EXPIRED))
    await jobs.finish(end_of(deleted))
    await jobs.delete(deleted.id)
    late = [queued, taken, cancelled, ended, deleted]
    before = [(await jobs.row(job.id), await jobs.ledger(job.id)) for job in late]
    ends = [end_of(job, delta_count=1, segment=segment(job, 1, 1)) for job in late]
    assert await jobs.finish(*ends) == [False] * 5
    await jobs.append(*(segment(job, 1, 1) for job in late))
    assert [await jobs.retry(job, spent=SPENT) for job in late] == [None] * 5
    assert [(await jobs.row(job.id), await jobs.ledger(job.id)) for job in late] == before
    assert [await jobs.deltas(job.id) for job in late] == [[]] * 5


async def test_of_many_ends_of_one_attempt_one_counts(jobs: Jobs) -> None:
    job = await jobs.run()
    states = [State.COMPLETED, State.FAILED, State.CANCELLED, State.EXPIRED] * 4
    results = await asyncio.gather(*(jobs.finish(end_of(job, state, spent=SPENT)) for state in states))
    assert results.count([True]) == 1
    assert await jobs.state(job.id) is states[results.index([True])]
    assert len(await jobs.ledger(job.id)) == 1


async def test_an_end_and_a_rescue_that_meet_agree_on_one(jobs: Jobs) -> None:
    for _ in range(15):
        job = await jobs.run(deltas=1)
        await jobs.lose(job.id)
        [finished], rescued = await asyncio.gather(
            jobs.finish(end_of(job, delta_count=2, segment=segment(job, 2, 2))), jobs.rescue()
        )
        assert finished is not bool(rescued)
        assert await jobs.state(job.id) is (State.COMPLETED if finished else State.QUEUED)
        assert len(await jobs.ledger(job.id)) == finished
        await jobs.cancel(job.id)


async def test_an_end_waits_for_the_lock_of_its_row_and_then_goes_by_what_it_says(
    jobs: Jobs, other_session: Session
) -> None:
    kept, taken = await jobs.run(), await jobs.run()
    await other_session.execute("UPDATE jobs SET cancel_requested_at = now() WHERE id = %s", [kept.id])
    await other_session.execute(
        "UPDATE jobs SET state = 'queued', worker = NULL, lease_until = NULL WHERE id = %s", [taken.id]
    )
    finishing = asyncio.create_task(jobs.finish(end_of(kept), end_of(taken)))
    await waiting(other_session)
    await other_session.commit()
    assert await finishing == [True, False]
    assert [len(await jobs.ledger(job.id)) for job in (kept, taken)] == [1, 0]


async def test_a_retry_puts_the_job_back_and_discards_what_the_attempt_made(jobs: Jobs) -> None:
    job = await jobs.run(deltas=3)
    state = await retry_job(
        jobs.database, job.id, 1, delay_seconds=0, route=1, retries=0, cancelled="{}", record="{}", spent=SPENT
    )
    assert state is State.QUEUED
    row = await jobs.row(job.id)
    assert (row.state, row.attempt, row.route, row.retries, row.worker, row.lease_until) == (
        "queued",
        1,
        1,
        0,
        None,
        None,
    )
    assert await jobs.deltas(job.id) == []
    [usage] = await jobs.ledger(job.id)
    assert (usage.attempt, usage.kind, usage.prompt_tokens, usage.cost) == (1, "discarded", 50, Decimal("0.0042"))
    [again] = await jobs.claim(job.id)
    assert (again.attempt, again.route) == (2, 1)
    assert await jobs.finish(end_of(again)) == [True]
    assert [(usage.attempt, usage.kind) for usage in await jobs.ledger(job.id)] == [(1, "discarded"), (2, "counted")]
    seen, _ = await list_jobs(jobs.database, jobs.owner.account_id, JobFilter(), after=None, limit=10, descending=True)
    assert [row.id for row in seen] == [job.id], "discarded usage makes no second job"


async def test_a_delayed_retry_is_neither_claimed_nor_sent_again_before_it_is_due(jobs: Jobs) -> None:
    job = await jobs.run()
    assert await jobs.retry(job, delay_seconds=60)
    assert await jobs.claim(job.id) == []
    assert await jobs.resend(seconds=-120) == []
    await jobs.set(job.id, "scheduled_at = now(), sent_at = now()")
    assert [moved.id for moved in await jobs.resend()] == [job.id]
    assert [job.attempt for job in await jobs.claim(job.id)] == [2]


async def test_a_retry_after_someone_cancelled_does_not_run_again(jobs: Jobs) -> None:
    job = await jobs.run()
    await jobs.cancel(job.id)
    assert await jobs.retry(job, spent=SPENT) is State.CANCELLED
    row = await jobs.row(job.id)
    assert (row.state, row.error) == ("cancelled", '{"why":"cancelled"}')
    assert len(await jobs.ledger(job.id)) == 1, "what it spent is recorded"
    assert await jobs.claim(job.id) == []


async def test_a_job_remembers_how_each_attempt_ended(jobs: Jobs) -> None:
    job = await jobs.run()
    await jobs.retry(job)
    [again] = await jobs.claim(job.id)
    await jobs.lose(again.id)
    await jobs.rescue()
    [last] = await jobs.claim(job.id)
    assert await jobs.finish(end_of(last)) == [True]
    tried = (await jobs.row(job.id)).tried
    assert [(record["attempt"], record["status"]) for record in tried] == [
        (1, "failed"),
        (2, "lost"),
        (3, "completed"),
    ]
    assert all(record["ended_at"] > 1_700_000_000 for record in tried)
    assert await jobs.delete(job.id)
    assert (await jobs.row(job.id)).tried == []
