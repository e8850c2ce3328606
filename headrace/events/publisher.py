"""The sending end of the live wire, in every process that runs or moves jobs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections import defaultdict
from collections.abc import Sequence

from headrace.events.wire import (
    CANCEL_CHANNEL,
    LARGEST_END,
    WORK_CHANNEL,
    Frame,
    job_channel,
    pack_deltas,
    without_lines,
)
from headrace.jobs.records import ClaimedJob, MovedJob
from headrace.jobs.state import State
from headrace.runtime.clock import now
from headrace.stores.namespace import NamespacedRedis
from headrace.stores.redis import REDIS_UNAVAILABLE
from headrace.telemetry import rates
from headrace.telemetry.metrics import JOBS_ENDED, OTHER, bound

log = logging.getLogger(__name__)

_ended = bound(JOBS_ENDED)
# Seconds until the next send, per frame of the last one: with few frames the next send is immediate.
_SECONDS_A_FRAME = 0.001

# A frame to be sent: `until`, `job_id`, `for_subscribers`, `origin` and `for_origin`. A named tuple takes five times as
# long to make.
_Packed = tuple[float, str, bytes, str | None, bytes]


class Publisher:
    """Sends frames soon, many at a time, and drops them while Redis is unavailable."""

    def __init__(self, redis: NamespacedRedis, *, interval_seconds: float) -> None:
        """Send a frame at once, unless many just left: then the frames of `interval_seconds` at most leave together."""
        self._redis = redis
        self._prefix = redis.prefix
        self._interval = interval_seconds
        self._pending: list[_Packed] = []
        self._calls_scheduler = False
        self._task: asyncio.Task[None] | None = None
        self._free_at = 0.0
        """When the next frames may leave, by the event loop's clock."""
        self._redis_lost = False

    def publish(self, frame: Frame, *, origin: str | None, until: float = math.inf) -> None:
        """Send a frame to the job's subscribers and to its origin, if it has one.

        After `until`, a time of `headrace.runtime.clock`, it is dropped: the job may have another attempt then.
        """
        for_subscribers = for_origin = without_lines(frame).pack()  # subscribers read a job's end from Postgres
        if origin is not None or frame.kind == "delta":
            packed = frame.pack()
            for_subscribers = packed if frame.kind == "delta" else for_subscribers
            for_origin = packed if len(packed) <= LARGEST_END else for_origin
        self._add((until, frame.job_id, for_subscribers, origin, for_origin))

    def publish_deltas(self, job: ClaimedJob, first_seq: int, count: int, body: bytes, *, until: float) -> None:
        """Send the deltas of a `body` as `publish` does: `count` lines, each with its line end."""
        packed = for_origin = pack_deltas(job.id, job.attempt, first_seq, count, body)
        if len(packed) > LARGEST_END:
            for_origin = pack_deltas(job.id, job.attempt, first_seq, 0, b"")
        self._add((until, job.id, packed, job.origin, for_origin))

    def call_scheduler(self) -> None:
        """Have the scheduler look for work now. One that misses the message looks within two seconds."""
        self._calls_scheduler = True
        self._begin()

    def _add(self, packed: _Packed) -> None:
        self._pending.append(packed)
        self._begin()

    def _begin(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    def announce(self, job: MovedJob) -> None:
        """Tell a job's readers of a state that Postgres has accepted: queued again, or ended without a worker."""
        if job.state.is_final:
            _ended(job.state.value, job.tier, OTHER).inc()
            rates.count(job.state.value)
        kind = "retrying" if job.state is State.QUEUED else job.state.value
        self.publish(Frame(job.id, job.attempt, 0, kind, ()), origin=job.origin)

    async def flush(self) -> None:
        """Wait until every frame has been sent, or dropped."""
        if self._task is not None:
            await self._task

    async def cancel(self, job_id: str) -> None:
        """Have the job's worker stop it. A worker that misses the message finds out at its next heartbeat."""
        with contextlib.suppress(*REDIS_UNAVAILABLE):
            await self._redis.publish(self._prefix + CANCEL_CHANNEL, job_id)

    async def _run(self) -> None:
        time = asyncio.get_running_loop().time
        try:
            while self._pending or self._calls_scheduler:
                if (seconds := self._free_at - time()) > 0:
                    await asyncio.sleep(seconds)
                batch, self._pending = self._pending, []
                await self._send(batch)
                self._free_at = time() + min(self._interval, len(batch) * _SECONDS_A_FRAME)
        finally:
            self._task = None

    async def _send(self, batch: Sequence[_Packed]) -> None:
        channels: dict[str, list[bytes]] = defaultdict(list)
        time = now()
        for until, job_id, for_subscribers, origin, for_origin in batch:
            if time > until:
                continue
            if origin is not None:
                channels[origin].append(for_origin)
            channels[job_channel(job_id, self._prefix)].append(for_subscribers)
        if self._calls_scheduler:
            channels[self._prefix + WORK_CHANNEL].append(b"work")
            self._calls_scheduler = False
        if not channels:
            return
        try:
            await self._redis.publish_all({channel: b"".join(frames) for channel, frames in channels.items()})
            self._redis_lost = False
        except REDIS_UNAVAILABLE as error:
            if not self._redis_lost:
                log.warning("Redis is unavailable, readers fall back to Postgres: %s", error)
            self._redis_lost = True
