"""Readers of a job whose format keeps its log: the lines of all attempts, each once, whatever attempt was lost."""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest

from headrace.dev.valkey import EmbeddedValkey
from headrace.events import compare as comparing
from headrace.events import follow as following
from headrace.events.follow import follow, furthest_cursor
from headrace.events.hub import Hub
from headrace.events.job_events import START, Cursor, Deltas, Ended, Event, Retrying, Started
from headrace.events.publisher import Publisher
from headrace.events.wire import Frame
from headrace.jobs.records import ClaimedJob
from headrace.jobs.sql.read import read_log
from headrace.jobs.state import State
from headrace.runtime.chores import going_on
from headrace.stores.redis import connect_redis
from tests.integration.databases import Session
from tests.integration.job_rows import Jobs, end_of, segment
from tests.service import free_port
from tests.waiting import PATIENCE, eventually

RESPONSE = '{"id":"resp_1","object":"response","created_at":1,"status":"completed","output":[]}'


@pytest.fixture(autouse=True, params=[256 * 1024, 1], ids=["", "a segment a page"])
def page_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read everything from Postgres at once, and then one segment after the other."""
    monkeypatch.setattr(following, "_PAGE_BYTES", request.param)


def lines(job: ClaimedJob, first: int, last: int) -> list[bytes]:
    """Return the lines that `segment` makes."""
    return segment(job, first, last).chunks.encode().split(b"\n")


def read(events: list[Event]) -> tuple[list[bytes], int | None]:
    """Return the lines of a reading and the number of its end; a gap or a repeated line is an error."""
    found: list[bytes] = []
    last: int | None = None
    end = None
    for event in events:
        assert end is None, "nothing comes after the end"
        if isinstance(event, Deltas):
            assert last is None or event.first.seq == last + 1
            found += event.chunks
            last = event.first.seq + len(event.chunks) - 1
        elif isinstance(event, Ended):
            assert last is None or event.cursor.seq == last + 1
            end = event.cursor.seq
    return found, end


async def _all(events: AsyncIterator[Event]) -> list[Event]:
    return [event async for event in events]


async def replay(jobs: Jobs, job_id: str, after: Cursor = START) -> list[Event]:
    """Return what a reader without a live wire gets of a job that has ended."""
    async with connect_redis(f"redis://127.0.0.1:{free_port()}/0") as deaf:
        hub = Hub(deaf, buffer_bytes=2**20, patience_seconds=60)
        async with asyncio.timeout(PATIENCE), hub.listen(job_id, own=False) as listener:
            return await _all(follow(listener, jobs.database, after=after, format="responses"))


async def lost_once(jobs: Jobs) -> tuple[ClaimedJob, ClaimedJob]:
    """Return both attempts at a job whose first worker died after three lines."""
    first = await jobs.run(deltas=3, format="responses")
    await jobs.lose(first.id)
    assert [moved.state for moved in await jobs.rescue()] == [State.QUEUED]
    [second] = await jobs.claim(first.id)
    return first, second


async def test_numbers_go_on_over_attempts_and_any_cut_resumes_to_the_same_lines(jobs: Jobs) -> None:
    first, second = await lost_once(jobs)
    assert [(attempt, seq) for attempt, seq, _ in (await read_log(jobs.database, first.id)).segments] == [(1, 1)]
    await jobs.append(segment(second, 4, 5))
    await jobs.finish(end_of(second, delta_count=6, segment=segment(second, 6, 6), response=RESPONSE))
    whole = [*lines(first, 1, 3), *lines(second, 4, 6)]
    assert read(await replay(jobs, first.id)) == (whole, 7)
    for seq in range(7):
        assert read(await replay(jobs, first.id, Cursor(0, seq))) == (whole[seq:], 7)
    for seq in (7, 8, 1000):
        assert [event for event in await replay(jobs, first.id, Cursor(0, seq)) if not isinstance(event, Started)] == []
    assert await furthest_cursor(jobs.database, first.id) == Cursor(2, 7)


async def test_a_replay_tells_that_it_has_all_lines_of_a_lost_attempt(jobs: Jobs) -> None:
    first, second = await lost_once(jobs)
    await jobs.finish(end_of(second, delta_count=4, segment=segment(second, 4, 4), response=RESPONSE))
    assert [event for event in await replay(jobs, first.id) if isinstance(event, Retrying)] == [Retrying(1, kept=True)]


@pytest.mark.usefixtures("hurried")
async def test_a_live_reader_may_have_lines_of_a_lost_attempt_that_postgres_lacks(
    jobs: Jobs, valkey: EmbeddedValkey
) -> None:
    async with connect_redis(valkey.url) as redis:
        hub = Hub(redis, buffer_bytes=2**20, patience_seconds=60)
        publisher = Publisher(redis, interval_seconds=0)
        async with going_on(hub.run, functools.partial(comparing.compare_readers, hub, jobs.database)):
            await eventually(lambda: hub.connected, "the wire")
            job = await jobs.run(format="responses")
            async with asyncio.timeout(PATIENCE), hub.listen(job.id, own=False) as listener:
                events = follow(listener, jobs.database, format="responses")
                assert await anext(events) == Started(Cursor(1, 0))
                publisher.publish(Frame(job.id, 1, 1, "delta", lines(job, 1, 3)), origin=None)
                assert isinstance(await anext(events), Deltas)
                await jobs.retry(job)
                assert await anext(events) == Retrying(1, kept=False)


async def test_a_retry_keeps_the_log(jobs: Jobs) -> None:
    first = await jobs.run(deltas=2, format="responses")
    assert await jobs.retry(first) is State.QUEUED
    assert await jobs.deltas(first.id) == [(1, 1, 2, 2)]
    assert await furthest_cursor(jobs.database, first.id) == Cursor(1, 2)


async def test_a_chat_job_starts_its_stream_over(jobs: Jobs) -> None:
    first = await jobs.run(deltas=2)
    assert await jobs.retry(first) is State.QUEUED
    assert await jobs.deltas(first.id) == []


@pytest.mark.parametrize("how", ["cancelled", "expired", "failed"])
async def test_a_job_that_ends_outside_of_an_attempt_has_its_end_after_the_log(jobs: Jobs, how: str) -> None:
    job = await jobs.run(deltas=3, format="responses")
    if how == "failed":
        await jobs.lose(job.id)
        await jobs.rescue(max_lost=1)
    else:
        await jobs.retry(job)
        if how == "expired":
            await jobs.set(job.id, "deadline_at = now() - interval '1 second'")
            await jobs.expire()
        else:
            await jobs.cancel(job.id)
    assert await jobs.state(job.id) == State(how)
    assert read(await replay(jobs, job.id)) == (lines(job, 1, 3), 4)
    assert read(await replay(jobs, job.id, Cursor(0, 4))) == ([], None)


async def test_a_reader_that_comes_back_with_lines_that_postgres_never_got_gets_the_end(jobs: Jobs) -> None:
    job = await jobs.run(deltas=3, format="responses")
    await jobs.lose(job.id)
    await jobs.rescue(max_lost=1)
    assert read(await replay(jobs, job.id, Cursor(1, 5))) == ([], 6)
    assert read(await replay(jobs, job.id, Cursor(2, 4))) == ([], None), "it has the end"


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("attempt", [0, 1])
async def test_a_reader_ahead_of_postgres_gets_the_end_of_its_job(jobs: Jobs, attempt: int) -> None:
    job = await jobs.run(deltas=3, format="responses")
    async with connect_redis(f"redis://127.0.0.1:{free_port()}/0") as deaf:
        hub = Hub(deaf, buffer_bytes=2**20, patience_seconds=60)
        async with (
            asyncio.timeout(PATIENCE),
            going_on(functools.partial(comparing.compare_readers, hub, jobs.database)),
            hub.listen(job.id, own=False) as listener,
        ):
            events = follow(listener, jobs.database, after=Cursor(attempt, 5), format="responses")
            reading = asyncio.create_task(_all(events))
            await eventually(lambda: listener.position == (1, 5), "the first look at Postgres")
            await jobs.lose(job.id)
            await jobs.rescue(max_lost=1)
            assert read(await reading) == ([], 6)


async def test_a_job_that_was_never_started_ends_without_a_start(jobs: Jobs) -> None:
    job_id = await jobs.submit(format="responses")
    await jobs.cancel(job_id)
    [end] = await replay(jobs, job_id)
    assert isinstance(end, Ended)
    assert end.cursor.seq == 1


async def test_erasure_deletes_the_log(jobs: Jobs) -> None:
    first, _ = await lost_once(jobs)
    assert await jobs.delete(first.id)
    assert await jobs.deltas(first.id) == []


async def test_a_line_on_its_way_to_postgres_keeps_the_job_from_another_attempt(
    jobs: Jobs, other_session: Session
) -> None:
    """What an attempt reads of an earlier one is final: no line of that one comes later."""
    job = await jobs.run(deltas=1, format="responses")
    await other_session.execute("SELECT FROM jobs WHERE id = %s FOR KEY SHARE", [job.id])  # as an append holds it
    await jobs.lose(job.id)
    assert await jobs.rescue() == []
    await other_session.rollback()
    assert len(await jobs.rescue()) == 1
    await jobs.append(segment(job, 2, 2))
    assert await jobs.deltas(job.id) == [(1, 1, 1, 1)]


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let readers that wait for Postgres look again soon."""
    monkeypatch.setattr(comparing, "_CHECK_SECONDS", 0.05)
    monkeypatch.setattr(comparing, "_POLL_SECONDS", 0.05)
    monkeypatch.setattr(following, "_SEGMENT_WAIT_SECONDS", 0.01)


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("seed", range(8))
async def test_live_readers_get_the_log_whatever_frames_are_lost(jobs: Jobs, valkey: EmbeddedValkey, seed: int) -> None:
    chance = random.Random(seed)
    async with connect_redis(valkey.url) as redis:
        hub = Hub(redis, buffer_bytes=2**20, patience_seconds=60)
        publisher = Publisher(redis, interval_seconds=0)
        async with going_on(hub.run, functools.partial(comparing.compare_readers, hub, jobs.database)):
            await eventually(lambda: hub.connected, "the wire")
            job = await jobs.run(format="responses")
            readers = [asyncio.create_task(_read_live(hub, jobs, job.id)) for _ in range(3)]
            written: list[bytes] = []

            def publish(frame: Frame) -> None:
                if chance.random() < 0.6:
                    publisher.publish(frame, origin=None)

            for attempt in range(1, 4):
                for _ in range(chance.randrange(4)):
                    count = chance.randrange(1, 4)
                    part = segment(job, len(written) + 1, len(written) + count)
                    await jobs.append(part)
                    publish(Frame(job.id, attempt, part.first_seq, "delta", part.chunks.encode().split(b"\n")))
                    written += part.chunks.encode().split(b"\n")
                if attempt < 3:
                    await jobs.retry(job)
                    publish(Frame(job.id, attempt, 0, "retrying", ()))
                    [job] = await jobs.claim(job.id)
                    publish(Frame(job.id, job.attempt, 0, "started", ()))
            await jobs.finish(end_of(job, delta_count=len(written), response=RESPONSE))
            publish(Frame(job.id, 3, 0, "completed", ()))
            async with asyncio.timeout(PATIENCE):
                for events in await asyncio.gather(*readers):
                    assert read(events)[0] == (written or read(await replay(jobs, job.id))[0])
                    assert len([event for event in events if isinstance(event, Retrying)]) <= 2


async def _read_live(hub: Hub, jobs: Jobs, job_id: str) -> list[Any]:
    found: list[Event] = []

    def write(deltas: Deltas) -> bool:
        if deltas.first.seq % 2:
            return False
        found.append(deltas)
        return True

    async with hub.listen(job_id, own=False) as listener:
        async for event in follow(listener, jobs.database, format="responses", write=write):
            found.append(event)  # noqa: PERF401  (`write` adds to it meanwhile)
    return found
