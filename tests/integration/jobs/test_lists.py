"""Reading jobs: one by one, in lists, and by readers that follow them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa

from headrace.errors import ListTooLongError
from headrace.jobs.records import JobFilter
from headrace.jobs.sql import lists
from headrace.jobs.sql.lists import list_jobs
from headrace.jobs.sql.read import get_job, get_request, read_positions, read_progress
from headrace.jobs.state import State
from headrace.stores.database import execute
from tests.integration.databases import Session
from tests.integration.job_rows import ERROR, RESPONSE, Jobs, Owner, end_of, segment

ALL = JobFilter()


async def ids(
    jobs: Jobs, wanted: JobFilter = ALL, *, after: str | None = None, limit: int = 100, descending: bool = False
) -> list[str]:
    rows, _ = await list_jobs(
        jobs.database, jobs.owner.account_id, wanted, after=after, limit=limit, descending=descending
    )
    return [row.id for row in rows]


@pytest.mark.parametrize("descending", [False, True])
async def test_pages_in_either_order_make_up_the_whole_list(jobs: Jobs, descending: bool) -> None:
    submitted = [await jobs.submit() for _ in range(7)]
    expected = sorted(submitted, reverse=descending)
    assert await ids(jobs, descending=descending) == expected
    pages: list[str] = []
    while page := await ids(jobs, after=pages[-1] if pages else None, limit=3, descending=descending):
        assert len(page) <= 3
        pages += page
    assert pages == expected


async def test_a_list_has_neither_anothers_jobs_nor_erased_ones(jobs: Jobs, stranger: Owner) -> None:
    mine, erased = await jobs.submit(), (await jobs.complete()).id
    await jobs.delete(erased)
    await Jobs(jobs.database, stranger).submit()
    assert await ids(jobs) == [mine]


async def test_a_list_is_narrowed_by_state(jobs: Jobs) -> None:
    by_state = {State.QUEUED: await jobs.submit(), State.RUNNING: (await jobs.run()).id}
    for state in (State.COMPLETED, State.FAILED, State.CANCELLED, State.EXPIRED):
        job = await jobs.run()
        await jobs.finish(end_of(job, state))
        by_state[state] = job.id
    assert set(by_state) == set(State)
    for state, job_id in by_state.items():
        assert await ids(jobs, JobFilter(state=state)) == [job_id]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        pytest.param(JobFilter(model="m1"), {"plain"}, id="model"),
        pytest.param(JobFilter(model="m"), set(), id="another model"),
        pytest.param(JobFilter(format="responses"), {"response"}, id="format"),
        pytest.param(JobFilter(format="chat", metadata={}), {"plain", "a", "a and b"}, id="another format"),
        pytest.param(JobFilter(metadata={"team": "a"}), {"a", "a and b"}, id="metadata"),
        pytest.param(JobFilter(metadata={"team": "a", "of": "b"}), {"a and b"}, id="all of the metadata"),
        pytest.param(JobFilter(metadata={"team": "A"}), set(), id="other metadata"),
        pytest.param(JobFilter(metadata={}), {"plain", "a", "a and b", "response"}, id="no condition on metadata"),
        pytest.param(JobFilter(metadata={"of": "b\"}' OR 1=1 --"}), set(), id="metadata that would be SQL"),
        pytest.param(
            JobFilter(model="m2", metadata={"of": "b"}, state=State.QUEUED), {"a and b"}, id="everything together"
        ),
    ],
)
async def test_a_list_is_narrowed_by_model_and_metadata(jobs: Jobs, wanted: JobFilter, expected: set[str]) -> None:
    names = {
        await jobs.submit(model="m1"): "plain",
        await jobs.submit(model="m3", format="responses"): "response",
        await jobs.submit(model="m2", metadata='{"team":"a"}'): "a",
        await jobs.submit(model="m2", metadata='{"team":"a","of":"b"}'): "a and b",
    }
    assert {names[job_id] for job_id in await ids(jobs, wanted)} == expected


async def test_a_list_is_narrowed_by_time_of_creation(jobs: Jobs) -> None:
    old, new = await jobs.submit(), await jobs.submit()
    await jobs.set(old, "created_at = '2026-01-01 00:00:00+00'")
    await jobs.set(new, "created_at = '2026-02-01 00:00:00+00'")
    january, march = datetime(2026, 1, 15, tzinfo=UTC), datetime(2026, 3, 1, tzinfo=UTC)
    assert await ids(jobs, JobFilter(created_after=january)) == [new]
    assert await ids(jobs, JobFilter(created_before=january)) == [old]
    assert await ids(jobs, JobFilter(created_after=january, created_before=march)) == [new]
    assert await ids(jobs, JobFilter(created_after=march)) == []


async def test_a_job_is_seen_as_it_stands(jobs: Jobs) -> None:
    async def seen(job_id: str) -> Any:
        row = await get_job(jobs.database, job_id, jobs.owner.account_id)
        assert row is not None
        [listed], _ = await list_jobs(jobs.database, jobs.owner.account_id, ALL, after=None, limit=1, descending=True)
        assert row == listed
        return row

    job_id = await jobs.submit(metadata='{"a":"b"}', tier="flex", request='{"messages":["ä"]}')
    queued = await seen(job_id)
    assert (queued.state, queued.attempt, queued.tier, queued.metadata) == ("queued", 0, "flex", {"a": "b"})
    assert (queued.queue_position, queued.started_at, queued.finished_at, queued.cost) == (0, None, None, None)
    assert queued.deadline_at == queued.created_at + 3600
    [job] = await jobs.claim(job_id)
    running = await seen(job_id)
    assert (running.state, running.attempt, running.queue_position) == ("running", 1, None)
    assert running.started_at >= running.created_at
    await jobs.finish(end_of(job, State.FAILED))
    failed = await seen(job_id)
    assert (failed.state, failed.response, failed.error, failed.provider) == ("failed", None, ERROR, "fake")
    assert failed.finished_at >= failed.started_at
    assert await get_request(jobs.database, job_id, jobs.owner.account_id) == '{"messages":["ä"]}'


async def test_the_position_in_the_queue_counts_those_of_the_same_tier_before(jobs: Jobs, stranger: Owner) -> None:
    await jobs.submit()
    await Jobs(jobs.database, stranger).submit()
    await jobs.submit(tier="flex")
    await jobs.run()
    last = await jobs.submit()
    row = await get_job(jobs.database, last, jobs.owner.account_id)
    assert row is not None
    assert row.queue_position == 2


async def test_progress_and_positions_tell_where_a_job_stands(jobs: Jobs) -> None:
    queued, running, ended = await jobs.submit(), await jobs.run(deltas=3), await jobs.run(deltas=2)
    await jobs.append(segment(running, 4, 4))
    await jobs.finish(end_of(ended, delta_count=2))
    retried = await jobs.run(deltas=5)
    await jobs.retry(retried)
    positions = await read_positions(jobs.database, [queued, running.id, ended.id, retried.id, "job_0"])
    assert {tuple(position) for position in positions} == {
        (queued, "queued", 0, 0),
        (running.id, "running", 1, 4),
        (ended.id, "completed", 1, 2),
        (retried.id, "queued", 1, 0),
    }
    assert await read_positions(jobs.database, []) == []
    progress = await read_progress(jobs.database, ended.id)
    assert progress is not None
    assert (progress.state, progress.attempt, progress.delta_count) == (State.COMPLETED, 1, 2)
    assert (progress.response, progress.error) == (RESPONSE, None)
    assert await read_progress(jobs.database, "job_0") is None


@pytest.mark.parametrize("descending", [False, True])
async def test_metadata_is_found_beyond_the_latest_jobs(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch, descending: bool
) -> None:
    monkeypatch.setattr(lists, "_RECENT_JOBS", 3)
    rare = [await jobs.submit(metadata='{"customer": "rare", "at": "x"}') for _ in range(2)]
    common = [await jobs.submit(metadata='{"customer": "common"}') for _ in range(6)]
    for customer, expected in (("rare", rare), ("common", common), ("none", [])):
        wanted, found = JobFilter(metadata={"customer": customer}), list[str]()
        while page := await ids(jobs, wanted, after=found[-1] if found else None, limit=2, descending=descending):
            found += page
        assert found == sorted(expected, reverse=descending)


async def test_a_list_that_takes_too_long_is_refused_with_what_would_help(
    jobs: Jobs, other_session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    await jobs.submit()
    await execute(jobs.database.lists, sa.text("SET statement_timeout = 100"))
    await other_session.execute("LOCK TABLE usage IN ACCESS EXCLUSIVE MODE")
    with pytest.raises(ListTooLongError, match="created_after"):
        await list_jobs(jobs.database, jobs.owner.account_id, JobFilter(), after=None, limit=2, descending=True)


async def test_a_job_that_is_erased_meanwhile_is_in_no_page(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = sorted([(await jobs.complete()).id for _ in range(5)])
    find = lists._find

    async def erase_meanwhile(*arguments: Any, **options: Any) -> Any:
        found = await find(*arguments, **options)
        for job_id in ended[:3]:
            await jobs.delete(job_id)
        return found

    monkeypatch.setattr(lists, "_find", erase_meanwhile)
    rows, more = await list_jobs(jobs.database, jobs.owner.account_id, ALL, after=None, limit=2, descending=False)
    assert ([row.id for row in rows], more) == (ended[3:], False), "the page that came out empty is passed over"


async def test_a_page_ends_with_the_answer_that_makes_it_too_large(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "PAGE_BYTES", 3 * len(RESPONSE) - 1)
    ended = sorted([(await jobs.complete()).id for _ in range(5)])  # two may be of one millisecond
    pages: list[list[str]] = []
    more = True
    while more:
        rows, more = await list_jobs(
            jobs.database,
            jobs.owner.account_id,
            ALL,
            after=pages[-1][-1] if pages else None,
            limit=4,
            descending=False,
        )
        pages.append([row.id for row in rows])
    assert pages == [ended[:3], ended[3:]]
