"""The queue: Celery over Redis, named here and in `worker/` alone.

A message is a wake-up that carries job ids and nothing else: no prompt is ever in Redis. It may be lost or come twice,
as the row in Postgres decides who runs a job. It is sent once the row is committed; what a failed or lost send leaves
behind, the scheduler sends again.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from celery import Celery
from kombu.entity import Queue
from kombu.exceptions import OperationalError
from redis import Redis
from redis.exceptions import RedisError

log = logging.getLogger(__name__)

RUN_TASK = "headrace.run"
# In the order in which workers look at them; `service_tier` chooses.
TIERS = ("priority", "default", "flex")
# Enough to make a message cheap for each of its jobs, and little enough that one worker does not hoard a burst.
_JOBS_A_MESSAGE = 16


def queue_name(tier: str) -> str:
    """Return the Celery queue of a tier, which is also the key of its list in Redis."""
    return f"headrace.{tier}"


def create_celery(redis_url: str) -> Celery:
    """Return the Celery application. Every option is set on purpose; what is not here is Celery's default."""
    app = Celery("headrace", broker=redis_url)
    app.conf.update(
        task_queues=[
            Queue(queue_name(tier), routing_key=queue_name(tier))  # type: ignore[no-untyped-call]
            for tier in TIERS
        ],
        task_default_queue=queue_name("default"),
        task_ignore_result=True,  # state lives in Postgres
        result_backend=None,
        task_serializer="json",
        accept_content=["json"],
        task_acks_late=True,  # acknowledged when its jobs have slots, so a backlog stays in Redis
        task_reject_on_worker_lost=False,  # the lease decides, with a limit on attempts
        worker_prefetch_multiplier=1,
        worker_cancel_long_running_tasks_on_connection_loss=False,  # fenced writes make a duplicate harmless
        worker_hijack_root_logger=False,  # our own logging stays
        worker_redirect_stdouts=False,
        worker_enable_remote_control=False,  # one consumer less, and one way in less
        worker_send_task_events=False,
        task_send_sent_event=False,
        task_publish_retry=False,  # one try: the scheduler sends again what was lost
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_heartbeat=0,
        broker_transport_options={
            "queue_order_strategy": "priority",
            "visibility_timeout": 3600,  # a message waits unacknowledged only while every slot is taken
            "socket_timeout": 5,
            "socket_connect_timeout": 1,
            "socket_keepalive": True,
            "health_check_interval": 10,  # half-open connections are noticed in about 20 s
            "retry_on_timeout": False,
        },
    )
    return app


class JobQueue:
    """Wakes workers. What is waked while one message is on its way goes together into the next."""

    def __init__(self, redis_url: str) -> None:
        """Connect at the first send, not here."""
        self._celery = create_celery(redis_url)
        self._redis = Redis.from_url(redis_url, socket_timeout=2, socket_connect_timeout=1)
        # kombu blocks, and its connections are one thread's at a time.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="queue")
        self._pending: dict[str, list[str]] = defaultdict(list)
        self._task: asyncio.Task[None] | None = None

    def wake(self, job_ids: Iterable[str], *, tier: str) -> None:
        """Send a wake-up for committed jobs, soon; a failure is logged and left to the scheduler."""
        self._pending[tier].extend(job_ids)
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._pending:
                batch, self._pending = self._pending, defaultdict(list)
                await loop.run_in_executor(self._thread, self._send, batch)
        finally:
            self._task = None

    def _send(self, batch: dict[str, list[str]]) -> None:
        for tier, job_ids in batch.items():
            for first in range(0, len(job_ids), _JOBS_A_MESSAGE):
                self._send_message(tier, job_ids[first : first + _JOBS_A_MESSAGE])

    def _send_message(self, tier: str, job_ids: Sequence[str]) -> None:
        try:
            self._celery.send_task(
                RUN_TASK,
                args=[job_ids],
                queue=queue_name(tier),
                retry=False,
                ignore_result=True,
                argsrepr="",
                kwargsrepr="",
            )
        except (OperationalError, RedisError, OSError) as error:
            log.warning("could not wake a worker for %d jobs, the scheduler will: %s", len(job_ids), error)

    async def drained_tiers(self) -> list[str]:
        """Return the tiers whose queue is short, so that what is still queued was lost rather than waits its turn."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._drained_tiers)

    def _drained_tiers(self) -> list[str]:
        try:
            return [tier for tier in TIERS if self._redis.llen(queue_name(tier)) == 0]
        except (RedisError, OSError):
            return []

    async def close(self) -> None:
        """Send what is pending, then let go of the connections."""
        if self._task is not None:
            await self._task
        await asyncio.get_running_loop().run_in_executor(None, self._thread.shutdown)
        self._celery.close()
        self._redis.close()
