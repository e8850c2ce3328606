"""Readers of a job's events: whatever the live wire loses, each event of the last attempt once and in order."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson
import pytest

from headrace.dev.valkey import EmbeddedValkey
from headrace.errors import NotFoundError
from headrace.events import compare as comparing
from headrace.events import follow as following
from headrace.events.follow import follow, furthest_cursor
from headrace.events.hub import Hub
from headrace.events.job_events import START, Cursor, Deltas, Ended, Event, Retrying, Silence, Started
from headrace.events.listener import Listener, ListenerClosedError
from headrace.events.publisher import Publisher
from headrace.events.wire import Frame, job_channel
from headrace.ids import new_id
from headrace.jobs.records import ClaimedJob, Segment
from headrace.jobs.state import State
from headrace.runtime.chores import going_on
from headrace.stores.database import Database
from headrace.stores.namespace import NamespacedRedis
from headrace.stores.redis import connect_redis
from headrace.stores.redis_pipe import RedisPipe
from headrace.usage.spent import NOTHING
from tests.integration.job_rows import ERROR, RESPONSE, SPENT, Jobs, end_of, new_job, segment
from tests.service import free_port
from tests.waiting import PATIENCE, eventually

BUFFER = 1024 * 1024


@dataclass
class Reading:
    """The events that one reader received, over all its connections."""

    cursor: Cursor = START
    chunks: dict[int, list[bytes]] = field(default_factory=dict)
    first: dict[int, int] = field(default_factory=dict)
    retried: list[int] = field(default_factory=list)
    written: int = field(default=0, compare=False)
    """Deltas that came at once, and not as the events of `follow`."""
    started: list[int] = field(default_factory=list)
    ended: list[Ended] = field(default_factory=list)

    def has(self, cursor: Cursor) -> bool:
        """Return whether the reader has come so far."""
        return self.cursor >= cursor

    def take(self, event: Event) -> None:
        """Note an event; a repeated event or one out of order is an error."""
        assert not self.ended, "nothing comes after the end"
        if isinstance(event, Started):
            assert event.cursor > self.cursor or self.cursor == START
            assert event.cursor.seq == 0
            self.started.append(event.cursor.attempt)
            self.cursor = event.cursor
        elif isinstance(event, Deltas):
            assert event.first == Cursor(self.cursor.attempt, self.cursor.seq + 1)
            self.first.setdefault(event.first.attempt, event.first.seq)
            self.chunks.setdefault(event.first.attempt, []).extend(event.chunks)
            self.cursor = Cursor(event.first.attempt, self.cursor.seq + len(event.chunks))
        elif isinstance(event, Retrying):
            self.retried.append(event.attempt)
        elif isinstance(event, Ended):
            self.ended.append(event)
            self.cursor = event.cursor

    def write(self, deltas: Deltas) -> bool:
        """Take deltas at once, but every third time as if the client did not read fast enough."""
        self.written += 1
        if self.written % 3 == 0:
            return False
        self.take(deltas)
        return True


def lines(text: str) -> list[bytes]:
    return text.encode().split(b"\n")


def whole(job: ClaimedJob, first_seq: int, last_seq: int) -> list[bytes]:
    """Return the chunks that `segment` makes."""
    return lines(segment(job, first_seq, last_seq).chunks)


@contextlib.asynccontextmanager
async def served(redis: NamespacedRedis, database: Database, *, buffer_bytes: int = BUFFER) -> AsyncIterator[Hub]:
    """Yield a hub as an API process has it."""
    hub = Hub(redis, buffer_bytes=buffer_bytes, patience_seconds=60)
    async with going_on(hub.run, functools.partial(comparing.compare_readers, hub, database)):
        yield hub


async def all_of(*work: Coroutine[Any, Any, object]) -> None:
    """Run each to its own end, so that one failure does not stop the others; then raise the errors."""
    results = await asyncio.gather(*work, return_exceptions=True)
    if errors := [result for result in results if isinstance(result, Exception)]:
        raise ExceptionGroup("readers", errors)


async def connected(hub: Hub) -> None:
    await eventually(lambda: hub.connected, "the wire")


@pytest.fixture(autouse=True, params=[256 * 1024, 1], ids=["", "a segment a page"])
def page_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read everything from Postgres at once, and then one segment after the other."""
    monkeypatch.setattr(following, "_PAGE_BYTES", request.param)


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let readers that wait for Postgres look again soon."""
    monkeypatch.setattr(comparing, "_CHECK_SECONDS", 0.05)
    monkeypatch.setattr(comparing, "_POLL_SECONDS", 0.05)
    monkeypatch.setattr(following, "_SEGMENT_WAIT_SECONDS", 0.01)


@pytest.fixture
async def redis(valkey: EmbeddedValkey) -> AsyncIterator[NamespacedRedis]:
    async with connect_redis(valkey.url) as redis:
        yield redis


@pytest.fixture
async def deaf() -> AsyncIterator[NamespacedRedis]:
    """A client of a Redis that does not exist."""
    async with connect_redis(f"redis://127.0.0.1:{free_port()}/0") as redis:
        yield redis


async def read_rest(jobs: Jobs, redis: NamespacedRedis, job_id: str, after: Cursor = START) -> Reading:
    """Return the events that a reader gets from Postgres alone for a job that has ended."""
    reading = Reading(after)
    hub = Hub(redis, buffer_bytes=BUFFER, patience_seconds=60)
    async with asyncio.timeout(PATIENCE), hub.listen(job_id, own=False) as listener:
        await collect(listener, jobs.database, reading)
    return reading


# -- replay -----------------------------------------------------------------------------------------------------------


async def test_a_stream_that_ended_is_replayed_from_after_any_event(jobs: Jobs, deaf: NamespacedRedis) -> None:
    job = await jobs.run(deltas=3)
    await jobs.append(segment(job, 4, 5))
    await jobs.finish(end_of(job, delta_count=7, segment=segment(job, 6, 7)))
    for seq in range(8):
        reading = await read_rest(jobs, deaf, job.id, Cursor(1, seq))
        assert reading.chunks.get(1, []) == (whole(job, seq + 1, 7) if seq < 7 else [])
        assert reading.started == []
        assert [ended.state for ended in reading.ended] == [State.COMPLETED]
        assert reading.ended[0].response == RESPONSE.encode()
    reading = await read_rest(jobs, deaf, job.id)
    assert (reading.started, reading.chunks) == ([1], {1: whole(job, 1, 7)})
    end = reading.ended[0].cursor
    assert end > Cursor(1, 7)
    assert await furthest_cursor(jobs.database, job.id) == end
    assert await read_rest(jobs, deaf, job.id, end) == Reading(end)


async def test_an_answer_that_came_whole_is_replayed_as_the_same_chunks_each_time(
    jobs: Jobs, deaf: NamespacedRedis
) -> None:
    job = await jobs.run()
    response = orjson.dumps(
        {
            "id": "chatcmpl-0",
            "object": "chat.completion",
            "created": 1,
            "model": "m",
            "choices": [
                {"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"},
            ],
        }
    )
    await jobs.finish(end_of(job, response=response.decode()))
    full = await read_rest(jobs, deaf, job.id)
    chunks = full.chunks[1]
    assert b"Hello" in b"".join(chunks)
    assert full.ended[0].response == response
    for seq in range(len(chunks) + 1):
        reading = await read_rest(jobs, deaf, job.id, Cursor(1, seq))
        assert reading.chunks.get(1, []) == chunks[seq:]
        assert len(reading.ended) == 1
    assert await furthest_cursor(jobs.database, job.id) == full.cursor


@pytest.mark.parametrize("form", ["chat", "responses"])
async def test_a_reader_holds_no_more_than_a_page_for_a_client_that_does_not_read(
    jobs: Jobs, deaf: NamespacedRedis, form: Literal["chat", "responses"]
) -> None:
    job = await jobs.run(format=form)
    line = '{"n":"' + "ä" * 100_000 + '"}'
    for seq in range(1, 9):
        await jobs.append(Segment(job.id, 1, seq, seq, line))
    await jobs.finish(end_of(job, delta_count=8))
    hub = Hub(deaf, buffer_bytes=BUFFER, patience_seconds=60)
    held = 0
    async with asyncio.timeout(PATIENCE), hub.listen(job.id, own=False) as listener:
        events = follow(listener, jobs.database, format=form)
        assert await anext(events) == Started(Cursor(1, 0))
        await jobs.delete(job.id)  # from here on the reader has what it held already
        with contextlib.suppress(NotFoundError):
            while isinstance(event := await anext(events), Deltas):
                held += sum(map(len, event.chunks))
    assert 0 < held <= following._PAGE_BYTES + len(line.encode())


@pytest.mark.parametrize("state", [State.FAILED, State.CANCELLED, State.EXPIRED])
async def test_an_end_without_a_result_comes_with_its_error(jobs: Jobs, deaf: NamespacedRedis, state: State) -> None:
    job = await jobs.run(deltas=2)
    await jobs.finish(end_of(job, state, delta_count=2))
    reading = await read_rest(jobs, deaf, job.id)
    assert reading.chunks == {1: whole(job, 1, 2)}
    assert reading.ended == [Ended(reading.cursor, state, None, ERROR.encode(), NOTHING)]


async def test_only_the_last_attempt_is_replayed_and_a_reader_of_an_earlier_one_is_told(
    jobs: Jobs, deaf: NamespacedRedis
) -> None:
    job = await jobs.run(deltas=4)
    await jobs.retry(job)
    [job] = await jobs.claim(job.id)
    await jobs.finish(end_of(job, delta_count=2, segment=segment(job, 1, 2)))
    for after, retried in [(START, []), (Cursor(1, 0), [1]), (Cursor(1, 4), [1])]:
        reading = await read_rest(jobs, deaf, job.id, after)
        assert (reading.retried, reading.started) == (retried, [2])
        assert reading.chunks == {2: whole(job, 1, 2)}


async def test_a_reader_of_an_erased_job_is_told(jobs: Jobs, deaf: NamespacedRedis) -> None:
    job = await jobs.complete()
    await jobs.delete(job.id)
    with pytest.raises(NotFoundError):
        await read_rest(jobs, deaf, job.id)
    with pytest.raises(NotFoundError):
        await furthest_cursor(jobs.database, job.id)


# -- ends that no worker writes ---------------------------------------------------------------------------------------


async def _cancelled_in_the_queue(jobs: Jobs, job: ClaimedJob) -> None:
    await jobs.retry(job)
    await jobs.cancel(job.id)


async def _expired_in_the_queue(jobs: Jobs, job: ClaimedJob) -> None:
    await jobs.retry(job)
    await jobs.set(job.id, "deadline_at = now()")
    await jobs.expire()


async def _failed_by_the_sweep(jobs: Jobs, job: ClaimedJob) -> None:
    await jobs.lose(job.id)
    await jobs.rescue(max_lost=1)


async def _cancelled_by_the_sweep(jobs: Jobs, job: ClaimedJob) -> None:
    await jobs.cancel(job.id)
    await _failed_by_the_sweep(jobs, job)


WORKERLESS = [_cancelled_in_the_queue, _expired_in_the_queue, _failed_by_the_sweep, _cancelled_by_the_sweep]


@pytest.mark.parametrize("end", WORKERLESS)
@pytest.mark.parametrize("seq", [0, 1, 2, 4])
async def test_a_reader_of_any_delta_hears_of_an_end_that_no_worker_wrote_once(
    jobs: Jobs, deaf: NamespacedRedis, end: Callable[[Jobs, ClaimedJob], Awaitable[None]], seq: int
) -> None:
    job = await jobs.run(deltas=3)  # the fourth was published, and its worker died before it was kept
    await end(jobs, job)
    after = Cursor(1, seq)
    assert after <= await furthest_cursor(jobs.database, job.id), "it is refused as one that never was"
    reading = await read_rest(jobs, deaf, job.id, after)
    assert len(reading.ended) == 1
    assert reading.cursor > after, "ids of events go up"
    assert await read_rest(jobs, deaf, job.id, reading.cursor) == Reading(reading.cursor)


async def test_the_cursor_of_a_reader_is_good_while_the_job_waits_for_its_next_attempt(jobs: Jobs) -> None:
    job = await jobs.run(deltas=3)
    await jobs.retry(job, delay_seconds=30)
    assert Cursor(1, 3) <= await furthest_cursor(jobs.database, job.id)


# -- live -------------------------------------------------------------------------------------------------------------


async def collect(listener: Listener, database: Database, reading: Reading, *, replay: bool = True) -> None:
    async for event in follow(listener, database, after=reading.cursor, replay=replay, write=reading.write):
        reading.take(event)


async def test_the_client_that_submitted_gets_everything_over_the_wire_alone(
    jobs: Jobs, redis: NamespacedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher = Publisher(redis, interval_seconds=0)
    hub = Hub(redis, buffer_bytes=BUFFER, patience_seconds=60)
    async with asyncio.timeout(PATIENCE), going_on(hub.run):
        await connected(hub)
        new = new_job(jobs.owner, streamed=True, background=False, origin=hub.origin)
        async with hub.listen(new.id, own=True) as listener:
            reading = Reading()
            reader = asyncio.create_task(collect(listener, jobs.database, reading, replay=False))
            for kind, first_seq, content in [
                ("started", 0, []),
                ("delta", 1, [b'{"n":1}', b'{"n":2}']),
                ("delta", 3, [b'{"n":3}']),
                ("completed", 4, [RESPONSE.encode(), SPENT.charge.pack()]),
            ]:
                publisher.publish(Frame(new.id, 1, first_seq, kind, content), origin=hub.origin)
            await reader  # there is no row: Postgres was not asked
    assert reading.started == [1]
    assert reading.chunks == {1: [b'{"n":1}', b'{"n":2}', b'{"n":3}']}
    assert reading.ended == [Ended(Cursor(1, 4), State.COMPLETED, RESPONSE.encode(), None, SPENT.charge)]


async def test_without_redis_readers_get_everything_from_postgres(
    jobs: Jobs, deaf: NamespacedRedis, hurried: None
) -> None:
    async with asyncio.timeout(PATIENCE), served(deaf, jobs.database) as hub:
        job_id = await jobs.submit()
        reading = Reading()
        async with hub.listen(job_id, own=False) as listener:
            reader = asyncio.create_task(collect(listener, jobs.database, reading))
            [job] = await jobs.claim(job_id)
            for seq in range(1, 6):
                await jobs.append(segment(job, seq, seq))
                await eventually(functools.partial(reading.has, Cursor(1, seq)), f"delta {seq}")
            await jobs.finish(end_of(job, delta_count=6, segment=segment(job, 6, 6)))
            await reader
    assert reading.chunks == {1: whole(job, 1, 6)}
    assert [(ended.response, ended.charge) for ended in reading.ended] == [(RESPONSE.encode(), SPENT.charge)]


async def test_an_end_too_large_for_the_wire_is_read_from_postgres(jobs: Jobs, redis: NamespacedRedis) -> None:
    response = orjson.dumps({"choices": [], "padding": "x" * 300_000})
    async with asyncio.timeout(PATIENCE), served(redis, jobs.database) as hub:
        await connected(hub)
        job = await jobs.run(deltas=1)
        reading = Reading()
        async with hub.listen(job.id, own=True) as listener:
            reader = asyncio.create_task(collect(listener, jobs.database, reading))
            await jobs.finish(end_of(job, delta_count=1, response=response.decode()))
            publisher = Publisher(redis, interval_seconds=0)
            publisher.publish(Frame(job.id, 1, 2, "completed", [response, NOTHING.pack()]), origin=hub.origin)
            await reader
    assert [ended.response for ended in reading.ended] == [response]


async def test_an_end_that_comes_twice_is_told_once(jobs: Jobs, deaf: NamespacedRedis) -> None:
    job_id = new_id("job")
    hub = Hub(deaf, buffer_bytes=BUFFER, patience_seconds=60)
    reading = Reading()
    async with hub.listen(job_id, own=True) as listener:
        for _ in range(2):
            listener.put(Frame(job_id, 1, 1, "completed", [RESPONSE.encode(), NOTHING.pack()]))
        await collect(listener, jobs.database, reading, replay=False)
    assert len(reading.ended) == 1


@pytest.mark.parametrize("steps", range(4))
async def test_watching_ends_when_told_to_even_while_it_wakes_up(jobs: Jobs, deaf: NamespacedRedis, steps: int) -> None:
    hub = Hub(deaf, buffer_bytes=BUFFER, patience_seconds=60)
    watching = asyncio.create_task(comparing.compare_readers(hub, jobs.database))
    await asyncio.sleep(0.01)
    hub.interrupted.set()
    for _ in range(steps):
        await asyncio.sleep(0)
    watching.cancel()
    done, _ = await asyncio.wait({watching}, timeout=PATIENCE)
    watching.cancel()
    assert done


async def test_a_reader_whose_job_is_lost_in_a_crash_of_postgres_ends(
    jobs: Jobs, deaf: NamespacedRedis, hurried: None
) -> None:
    async with (
        asyncio.timeout(PATIENCE),
        served(deaf, jobs.database) as hub,
        hub.listen(new_id("job"), own=True) as listener,
    ):
        with pytest.raises(NotFoundError):
            await collect(listener, jobs.database, Reading(), replay=False)


async def test_a_reader_that_is_closed_ends(jobs: Jobs, deaf: NamespacedRedis) -> None:
    job_id = await jobs.submit()
    hub = Hub(deaf, buffer_bytes=BUFFER, patience_seconds=60)
    async with hub.listen(job_id, own=False) as listener:
        listener.close()
        with pytest.raises(ListenerClosedError):
            await collect(listener, jobs.database, Reading())


async def test_a_quiet_job_gives_silences(jobs: Jobs, deaf: NamespacedRedis) -> None:
    job_id = await jobs.submit()
    hub = Hub(deaf, buffer_bytes=BUFFER, patience_seconds=0.01)
    async with going_on(hub.end_silences), hub.listen(job_id, own=False) as listener:
        events = follow(listener, jobs.database)
        assert [await anext(events) for _ in range(3)] == [Silence()] * 3


async def test_who_joins_while_the_wire_is_being_made_is_subscribed_too(
    jobs: Jobs, redis: NamespacedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the reader gets its events only from Postgres, every two seconds."""
    reached, go = asyncio.Event(), asyncio.Event()
    open_pipe = RedisPipe.open

    async def held_up(*args: Any, **options: Any) -> RedisPipe:
        pipe = await open_pipe(*args, **options)
        if "on_push" in options:
            reached.set()
            await go.wait()
        return pipe

    monkeypatch.setattr(RedisPipe, "open", held_up)
    job_id = new_id("job")
    async with asyncio.timeout(PATIENCE), served(redis, jobs.database) as hub:
        await reached.wait()
        async with hub.listen(job_id, own=False):
            go.set()
            await connected(hub)
            await eventually(functools.partial(listened, redis, job_channel(job_id).encode()), "the subscription")


async def listened(redis: NamespacedRedis, channel: bytes) -> bool:
    return channel in await redis.pubsub_channels()


async def left(redis: NamespacedRedis, channel: bytes) -> bool:
    return channel not in await redis.pubsub_channels()


async def test_leaving_a_job_leaves_no_subscription_behind(jobs: Jobs, redis: NamespacedRedis) -> None:
    job_id = new_id("job")
    channel = job_channel(job_id).encode()
    async with asyncio.timeout(PATIENCE), served(redis, jobs.database) as hub:
        await connected(hub)
        async with hub.listen(job_id, own=False):
            async with hub.listen(job_id, own=False):
                assert channel in await redis.pubsub_channels()
            assert channel in await redis.pubsub_channels()
        await eventually(lambda: left(redis, channel), "the end of the subscription")
        assert hub.followed == []


# -- attempts that are void -------------------------------------------------------------------------------------------


async def test_a_reader_drops_what_the_worker_of_a_void_attempt_still_publishes(
    jobs: Jobs, deaf: NamespacedRedis
) -> None:
    first = await jobs.run()
    hub = Hub(deaf, buffer_bytes=BUFFER, patience_seconds=60)
    reading = Reading()
    async with asyncio.timeout(PATIENCE), hub.listen(first.id, own=True) as listener:
        collecting = asyncio.create_task(collect(listener, jobs.database, reading))
        listener.put(Frame(first.id, 1, 0, "started", ()))
        await eventually(lambda: reading.started == [1], "the first attempt")
        await jobs.lose(first.id)
        await jobs.rescue()
        listener.put(Frame(first.id, 1, 0, "retrying", ()))
        listener.put(Frame(first.id, 1, 1, "delta", whole(first, 1, 3)))
        await eventually(lambda: reading.retried == [1], "the attempt to be void")
        listener.put(Frame(first.id, 1, 4, "delta", whole(first, 4, 5)))
        [second] = await jobs.claim(first.id)
        await jobs.finish(end_of(second, delta_count=2, segment=segment(second, 1, 2)))
        listener.put(Frame(first.id, 2, 1, "delta", whole(second, 1, 2)))
        listener.put(Frame(first.id, 2, 3, "completed", [RESPONSE.encode(), NOTHING.pack()]))
        await collecting
    assert reading.chunks == {2: whole(second, 1, 2)}
    assert (reading.started, reading.retried) == ([1, 2], [1])


async def test_a_reader_that_missed_that_its_attempt_is_void_learns_it_from_postgres(
    jobs: Jobs, deaf: NamespacedRedis, hurried: None
) -> None:
    job = await jobs.run()
    reading = Reading()
    async with (
        asyncio.timeout(PATIENCE),
        served(deaf, jobs.database) as hub,
        hub.listen(job.id, own=True) as listener,
    ):
        collecting = asyncio.create_task(collect(listener, jobs.database, reading))
        await eventually(lambda: reading.started == [1], "the first attempt")
        await jobs.lose(job.id)
        await jobs.rescue()
        await eventually(lambda: reading.retried == [1], "the attempt to be void")
        listener.put(Frame(job.id, 1, 1, "delta", whole(job, 1, 3)))
        await jobs.cancel(job.id)
        await collecting
    assert (reading.chunks, reading.retried) == ({}, [1])
    assert [ended.state for ended in reading.ended] == [State.CANCELLED]


# -- a wire that loses, doubles and delays ----------------------------------------------------------------------------


@dataclass
class Chaos:
    """A publisher whose frames get lost, come twice or come late, though never in another order."""

    publisher: Publisher
    rng: random.Random
    held: list[tuple[Frame, str | None]] = field(default_factory=list)

    def publish(self, frame: Frame, origin: str | None) -> None:
        """Send a frame, or not."""
        fate = self.rng.random()
        if fate < 0.15:
            return
        self.held += [(frame, origin)] * (2 if fate < 0.3 else 1)
        if fate > 0.5:
            self.flush()

    def flush(self) -> None:
        """Send the late messages."""
        for frame, origin in self.held:
            self.publisher.publish(frame, origin=origin)
        self.held.clear()


async def produce(
    jobs: Jobs, wire: Chaos, rng: random.Random, job_id: str, origin: str, made: dict[int, list[bytes]]
) -> None:
    """Run a job as workers would, some of which die, and note in `made` the chunks of each attempt."""
    attempts = rng.randint(1, 3)
    for number in range(1, attempts + 1):
        [job] = await jobs.claim(job_id)
        wire.publish(Frame(job_id, number, 0, "started", ()), origin)
        saved, seq, last = 0, 0, rng.choice([0, 1, 5, 40] if number < attempts else [1, 5, 40])
        while seq < last:
            first, seq = seq + 1, min(last, seq + rng.randint(1, 4))
            wire.publish(Frame(job_id, number, first, "delta", whole(job, first, seq)), origin)
            if rng.random() < 0.4:
                await jobs.append(segment(job, saved + 1, seq))
                saved = seq
            await asyncio.sleep(rng.random() * 0.01)
        made[number] = whole(job, 1, last) if last else []
        rest: Segment | None = segment(job, saved + 1, last) if saved < last else None
        if number == attempts:
            assert await jobs.finish(end_of(job, delta_count=last, segment=rest)) == [True]
            wire.publish(Frame(job_id, number, last + 1, "completed", [RESPONSE.encode(), NOTHING.pack()]), origin)
        elif rng.random() < 0.5:
            assert await jobs.retry(job)
            wire.publish(Frame(job_id, number, 0, "retrying", ()), origin)
        else:
            await jobs.lose(job_id)
            while await jobs.state(job_id) is not State.QUEUED:
                await jobs.rescue(max_lost=99)
            # Its worker does not know yet, and goes on.
            wire.publish(Frame(job_id, number, last + 1, "delta", [b'{"n":"late"}']), origin)
            await jobs.append(segment(job, last + 1, last + 1))
            wire.publish(Frame(job_id, number, 0, "retrying", ()), origin)
    wire.flush()


async def wander(jobs: Jobs, hubs: Sequence[Hub], rng: random.Random, job_id: str, reading: Reading) -> None:
    """Follow a job to its end over connections that break after any event, now to this process and now to that."""
    while not reading.ended:
        left = rng.choice([1, 2, 3, 10, 1000])
        async with rng.choice(hubs).listen(job_id, own=False) as listener:
            async for event in follow(listener, jobs.database, after=reading.cursor):
                if isinstance(event, Deltas) and rng.random() < 0.3:
                    # Cut off in the middle of what came together.
                    reading.take(Deltas(event.first, event.chunks[: rng.randint(1, len(event.chunks))]))
                    break
                reading.take(event)
                left -= 1
                if not left:
                    break
                if rng.random() < 0.1:
                    await asyncio.sleep(0.05)
        await asyncio.sleep(0)


async def disturb(redis: NamespacedRedis, rng: random.Random) -> None:
    """Cut every subscriber off now and then."""
    while True:
        await asyncio.sleep(rng.uniform(0.1, 0.6))
        await redis.client_kill_filter(_type="pubsub")


# redis-py leaves a connection that was killed under it to the garbage collector.
@pytest.mark.filterwarnings("ignore:.*StreamWriter.__del__:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("seed", range(3))
async def test_whatever_is_lost_every_reader_gets_the_last_attempt_once_and_in_order(
    jobs: Jobs, redis: NamespacedRedis, hurried: None, seed: int
) -> None:
    rng = random.Random(seed)

    async def run_one(hubs: Sequence[Hub], publisher: Publisher) -> None:
        own = rng.choice(hubs)
        new = new_job(jobs.owner, origin=own.origin)
        wire = Chaos(publisher, rng)
        submitter, wanderers = Reading(), [Reading() for _ in range(3)]
        async with own.listen(new.id, own=True) as listener:
            await Jobs(jobs.database, jobs.owner).submit(id=new.id, origin=new.origin)
            made: dict[int, list[bytes]] = {}
            await all_of(
                collect(listener, jobs.database, submitter, replay=False),
                *(wander(jobs, hubs, rng, new.id, reading) for reading in wanderers),
                produce(jobs, wire, rng, new.id, own.origin, made),
            )
        last = max(made)
        for reading in (submitter, *wanderers):
            assert reading.chunks.get(last, []) == made[last]
            assert [ended.response for ended in reading.ended] == [RESPONSE.encode()]
            assert reading.started == sorted(set(reading.started))
            assert sorted(set(reading.retried)) == reading.started[:-1]
            for attempt, chunks in reading.chunks.items():
                assert reading.first[attempt] == 1
                assert chunks[: len(made[attempt])] == made[attempt][: len(chunks)]

    async with (
        asyncio.timeout(PATIENCE),
        served(redis, jobs.database) as hub,
        served(redis, jobs.database, buffer_bytes=400) as cramped,
    ):
        await asyncio.gather(connected(hub), connected(cramped))
        publisher = Publisher(redis, interval_seconds=0.002)
        chaos = asyncio.create_task(disturb(redis, rng))
        try:
            await all_of(*(run_one((hub, cramped), publisher) for _ in range(15)))
        finally:
            chaos.cancel()
