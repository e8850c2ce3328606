from __future__ import annotations

import base64
import json
import logging
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from redis import Redis

from headrace.dev.valkey import EmbeddedValkey
from headrace.jobs.records import Backlog
from headrace.queue import _JOBS_A_MESSAGE, RUN_LINES_TASK, RUN_TASK, TIERS, JobQueue, queue_name
from headrace.stores.redis import connect_redis
from tests.service import free_port
from tests.wakeups import leave_unsent


def messages(url: str, tier: str) -> list[list[str]]:
    """Return the job ids of each wake-up on a tier's queue, oldest first, and nothing else that would be in one."""
    with Redis.from_url(url) as redis:
        raw: Any = redis.lrange(queue_name(tier), 0, -1)
    found = []
    seen = set()
    for message in map(json.loads, reversed(raw)):
        assert message["headers"]["task"] == (RUN_LINES_TASK if tier == "batch" else RUN_TASK)
        assert message["headers"]["argsrepr"] == ""
        assert message["headers"]["id"] == message["properties"]["correlation_id"] not in seen
        seen.add(message["headers"]["id"])
        arguments, options, _ = json.loads(base64.b64decode(message["body"]))
        assert options == {}
        [job_ids] = arguments
        found.append(job_ids)
    return found


@pytest.fixture
async def queue(valkey: EmbeddedValkey) -> AsyncIterator[JobQueue]:
    async with connect_redis(valkey.url) as redis:
        queue = JobQueue(redis, leave_unsent)
        yield queue
        await queue.close()


async def settled(queue: JobQueue) -> None:
    """Return once everything that was to be sent has been."""
    while queue._task is not None:
        await queue._task


async def test_a_lone_wake_up_is_sent_at_once(queue: JobQueue, valkey: EmbeddedValkey) -> None:
    queue.wake(["job_1"], tier="flex")
    await settled(queue)
    assert messages(valkey.url, "flex") == [["job_1"]]
    assert messages(valkey.url, "default") == messages(valkey.url, "priority") == []


async def test_what_is_woken_together_travels_together_and_every_job_once(
    queue: JobQueue, valkey: EmbeddedValkey
) -> None:
    job_ids = [f"job_{number}" for number in range(100)]
    for job_id in job_ids:
        queue.wake([job_id], tier="default")
    await settled(queue)
    sent = messages(valkey.url, "default")
    assert [job_id for message in sent for job_id in message] == job_ids
    assert len(sent) == -(-100 // _JOBS_A_MESSAGE)


async def test_what_is_woken_while_a_message_is_under_way_goes_into_the_next(
    queue: JobQueue, valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[dict[str, list[str]]] = []
    send = queue._send

    async def recorded(batch: dict[str, list[str]]) -> None:
        batches.append({tier: list(job_ids) for tier, job_ids in batch.items()})
        if len(batches) == 1:
            for tier in TIERS:
                queue.wake([f"{tier}_1"], tier=tier)
                queue.wake([f"{tier}_2"], tier=tier)
        await send(batch)

    monkeypatch.setattr(queue, "_send", recorded)
    queue.wake(["job_1"], tier="default")
    await settled(queue)
    sent = Counter(job_id for tier in TIERS for message in messages(valkey.url, tier) for job_id in message)
    assert sent == dict.fromkeys(["job_1", *(f"{tier}_{number}" for tier in TIERS for number in (1, 2))], 1)
    assert len(batches) == 2


async def test_closing_sends_what_is_pending(queue: JobQueue, valkey: EmbeddedValkey) -> None:
    queue.wake([f"job_{number}" for number in range(40)], tier="priority")
    await queue.close()
    assert sum(map(len, messages(valkey.url, "priority"))) == 40


async def test_without_redis_nothing_is_raised_and_nothing_looks_lost(caplog: pytest.LogCaptureFixture) -> None:
    async with connect_redis(f"redis://127.0.0.1:{free_port()}/0") as redis:
        queue = JobQueue(redis, leave_unsent)
        with caplog.at_level(logging.WARNING):
            queue.wake(["job_1"], tier="default")
            await settled(queue)
            assert await queue.backlog("default") is None
        assert "the scheduler will" in caplog.text
        await queue.close()


async def test_only_jobs_whose_wake_up_was_not_sent_are_noted(valkey: EmbeddedValkey) -> None:
    noted: list[str] = []

    async def note(job_ids: Sequence[str]) -> None:
        noted.extend(job_ids)

    async with connect_redis(valkey.url) as redis:
        queue = JobQueue(redis, note)
        queue.wake(["job_1"], tier="default")
        await settled(queue)
        valkey.stop()
        queue.wake(["job_2"], tier="default")
        queue.wake(["job_3"], tier="flex")
        await queue.close()
        assert set(noted) == {"job_2", "job_3"}


async def test_wake_ups_are_sent_again_as_soon_as_redis_is_back(queue: JobQueue, valkey: EmbeddedValkey) -> None:
    queue.wake(["job_1"], tier="default")
    await settled(queue)
    valkey.stop()
    queue.wake(["job_2"], tier="default")
    await settled(queue)
    valkey.start()
    queue.wake(["job_3"], tier="default")
    await settled(queue)
    assert messages(valkey.url, "default")[-1] == ["job_3"]


async def test_the_backlog_is_what_workers_take_next(queue: JobQueue, valkey: EmbeddedValkey) -> None:
    assert await queue.backlog("default") == Backlog([], [], whole=True)
    first, then = [f"job_a{number}" for number in range(20)], [f"job_b{number}" for number in range(3)]
    for job_ids in (first, then):
        queue.wake(job_ids, tier="default")
        await settled(queue)
    with Redis.from_url(valkey.url) as redis:
        redis.lpush(queue_name("default"), b"not ours", b'{"body": "bm90IG91cnM="}')
    assert await queue.backlog("default") == Backlog([*first, *then], [*first, *then], whole=True)


async def test_of_a_long_queue_the_backlog_is_the_head(queue: JobQueue) -> None:
    job_ids = [f"job_{number}" for number in range(250 * 16)]
    queue.wake(job_ids, tier="default")
    await settled(queue)
    backlog = await queue.backlog("default")
    assert backlog == Backlog(job_ids[: 200 * 16], job_ids[190 * 16 : 200 * 16], whole=False)
