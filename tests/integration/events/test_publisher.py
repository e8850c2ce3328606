"""When frames leave a process: few do not wait for one another, and those that come together leave together."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator
from types import SimpleNamespace

import pytest

from headrace.dev.valkey import EmbeddedValkey
from headrace.events import publisher as publishing
from headrace.events.publisher import Publisher
from headrace.events.subscription import Subscription
from headrace.events.wire import WORK_CHANNEL, Frame, job_channel, unpack
from headrace.runtime.chores import going_on
from headrace.stores.namespace import NamespacedRedis, prefix_in
from headrace.stores.redis import connect_redis
from tests.waiting import PATIENCE, eventually

JOB = "job_watched"


@pytest.fixture
async def redis(valkey: EmbeddedValkey) -> AsyncIterator[NamespacedRedis]:
    async with connect_redis(valkey.url) as redis:
        yield redis


@contextlib.asynccontextmanager
async def hearing(redis: NamespacedRedis) -> AsyncIterator[asyncio.Queue[list[Frame]]]:
    """Give the frames of each message that the subscribers of `JOB` get."""
    heard: asyncio.Queue[list[Frame]] = asyncio.Queue()
    subscribed = asyncio.Event()

    def take(message: bytes | None) -> None:
        if message is None:
            subscribed.set()
        else:
            heard.put_nowait(list(unpack(message)))

    subscription = Subscription(redis)
    await subscription.subscribe(job_channel(JOB, prefix_in(redis)))
    async with asyncio.timeout(PATIENCE), going_on(functools.partial(subscription.run, take)):
        await subscribed.wait()
        yield heard


def publish(publisher: Publisher, seq: int) -> None:
    publisher.publish(Frame(JOB, 1, seq, "delta", [b"{}"]), origin=None)


async def test_a_frame_that_follows_another_does_not_wait_for_the_interval(redis: NamespacedRedis) -> None:
    publisher = Publisher(redis, interval_seconds=10 * PATIENCE)
    async with hearing(redis) as messages:
        for seq in range(1, 6):
            publish(publisher, seq)
            assert [frame.first_seq for frame in await messages.get()] == [seq]


async def test_frames_that_come_together_leave_in_one_message(redis: NamespacedRedis) -> None:
    publisher = Publisher(redis, interval_seconds=0.005)
    async with hearing(redis) as messages:
        for seq in range(1, 101):
            publish(publisher, seq)
        assert [frame.first_seq for frame in await messages.get()] == list(range(1, 101))
        await publisher.flush()
        assert messages.empty()


async def test_frames_that_follow_many_leave_together_after_the_interval(
    redis: NamespacedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits, is_over = list[float](), asyncio.Event()

    async def wait(seconds: float) -> None:
        """Wait as long as the test says, in place of some seconds."""
        waits.append(seconds)
        await is_over.wait()

    monkeypatch.setattr(publishing, "asyncio", SimpleNamespace(**{**vars(asyncio), "sleep": wait}))
    monkeypatch.setattr(publishing, "_SECONDS_A_FRAME", PATIENCE)  # each counts as many
    publisher = Publisher(redis, interval_seconds=PATIENCE)
    async with hearing(redis) as messages:
        publish(publisher, 1)
        await messages.get()
        for seq in (2, 3):
            publish(publisher, seq)
            await asyncio.sleep(0)
        [seconds] = await eventually(lambda: waits, "the interval to begin")
        assert 0 < seconds <= PATIENCE
        assert messages.empty()
        is_over.set()
        assert [frame.first_seq for frame in await messages.get()] == [2, 3]


async def test_calls_for_the_scheduler_leave_with_frames_and_without_any(redis: NamespacedRedis) -> None:
    publisher, heard = Publisher(redis, interval_seconds=0.005), asyncio.Queue[bytes | None]()
    subscription = Subscription(redis)
    await subscription.subscribe(prefix_in(redis) + WORK_CHANNEL)
    async with hearing(redis) as messages, going_on(functools.partial(subscription.run, heard.put_nowait)):
        assert await heard.get() is None  # it is connected
        publisher.call_scheduler()
        assert await heard.get() == b"work"
        for seq in range(1, 4):
            publish(publisher, seq)
            publisher.call_scheduler()
        assert [frame.first_seq for frame in await messages.get()] == [1, 2, 3]
        assert await heard.get() == b"work"
        await publisher.flush()
        assert heard.empty()
