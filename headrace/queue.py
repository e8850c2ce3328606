"""The queue: Celery over Redis, named here and in `worker/` alone.

A message is a wake-up that carries job ids alone: no prompt is ever in Redis. It may be lost or come twice, as the row
in Postgres decides who runs a job. A process sends it once the row is committed. If a send fails, or takes long, the
process notes that in the rows, and the scheduler's next sweep sends the wake-up. The scheduler also resends wake-ups
that are lost on their way, after a while.

Celery writes one message for each tier when a process starts, and later messages differ from it in their ids and jobs
alone. To have Celery write each of them would cost a thread, as kombu blocks, and ten times the work.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import uuid
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import orjson
from celery import Celery
from kombu.connection import Connection
from kombu.entity import Queue
from redis.asyncio import Redis
from sqlalchemy.exc import SQLAlchemyError

from headrace.jobs.records import Backlog
from headrace.stores.namespace import prefix_in, prefix_of
from headrace.stores.redis import REDIS_UNAVAILABLE
from headrace.stores.redis_url import broker_settings

log = logging.getLogger(__name__)

RUN_TASK = "headrace.run"
RUN_LINES_TASK = "headrace.run_lines"
LINES = "batch"
"""The tier of lines of batches."""
# In the order in which workers look at them. A request's `service_tier` chooses any but LINES.
TIERS = ("priority", "default", "flex", LINES)
BACKGROUND_TIERS = frozenset({"flex", LINES})
"""The tiers that start after the others, and that workers for batches serve."""
# Jobs in one message: enough to make it cheap for each, and few enough that one worker does not hoard a burst.
_JOBS_A_MESSAGE = 16
# Lines of batches in one message.
_LINES_A_MESSAGE = 64
# Messages at the head of a long queue that show which wake-ups were lost, and how many of them count as its end.
_BACKLOG_MESSAGES = 200
_LAST_MESSAGES = 10
# Seconds that a send may take before its jobs are noted as unsent: the scheduler then need not wait for its time-out.
_SLOW_SECONDS = 0.5


def queue_name(tier: str) -> str:
    """Return the Celery queue of a tier: the key of its list in Redis, behind the deployment's prefix."""
    return f"headrace.{tier}"


def tier_of(queue: str) -> str:
    """Return the tier of a Celery queue: the inverse of `queue_name`."""
    return queue.removeprefix(queue_name(""))


def create_celery(redis_url: str, namespace: str | None = None) -> Celery:
    """Return the Celery application. Every option is set on purpose; the others keep Celery's defaults.

    Raises:
        SettingError: `headrace.stores.redis_url` does not know such a URL.
    """
    app = Celery("headrace")
    broker = broker_settings(redis_url)
    app.conf.update(
        broker,
        worker_consumer="worker.consumer:Consumer",  # reads messages on the pool's event loop
        headrace_redis_url=redis_url,
        headrace_namespace=namespace,
        # Without acknowledgements: the lease in Postgres decides, and the scheduler resends lost wake-ups. So there are
        # no visibility time-outs, no list of unacknowledged messages, and three commands less for each message.
        task_queues=[Queue(queue_name(tier), routing_key=queue_name(tier), no_ack=True) for tier in TIERS],
        task_default_queue=queue_name("default"),
        task_create_missing_queues=False,  # a misspelt tier is an error, not a new queue
        task_ignore_result=True,  # state lives in Postgres
        result_backend=None,  # no client subscribes to results, whose reconnections have leaked memory
        task_serializer="json",  # never pickle: a client of Redis could run code here
        accept_content=["json"],
        task_acks_late=False,  # see no_ack above
        task_reject_on_worker_lost=False,  # the lease decides, with a limit on attempts
        worker_prefetch_multiplier=1,  # the pool takes as many messages as it has room for; other workers take the rest
        worker_enable_prefetch_count_reduction=False,  # nothing is unacknowledged after a reconnect
        worker_cancel_long_running_tasks_on_connection_loss=True,  # none acknowledges late; without it Celery warns
        worker_detect_quorum_queues=False,  # a question for RabbitMQ
        worker_soft_shutdown_timeout=0,  # the executor drains by itself, with leases
        worker_hijack_root_logger=False,  # our own logging stays
        worker_redirect_stdouts=False,
        worker_enable_remote_control=False,  # no list of revoked tasks that grows, and a smaller attack surface
        worker_send_task_events=False,  # no monitor reads them
        task_send_sent_event=False,
        broker_connection_retry=True,  # however long Redis is unavailable
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_channel_error_retry=True,  # READONLY, from a master that has become a replica, passes
        broker_pool_limit=1,  # the worker only connects: `worker/consumer.py` reads
        broker_heartbeat=0,  # only AMQP has heartbeats
        broker_transport_options={
            "socket_timeout": 5,  # without one kombu waits for ever on a dead connection while it connects
            "socket_connect_timeout": 1,
            "socket_keepalive": True,
            "global_keyprefix": prefix_of(namespace),
            "retry_on_timeout": False,  # kombu's own loop connects anew
            **broker["broker_transport_options"],
        },
    )
    return app


class _Message:
    """The message of a tier as Celery writes it, in which the id and the jobs are replaced."""

    def __init__(self, app: Celery, tier: str) -> None:
        self.key = queue_name(tier)
        self.jobs = _LINES_A_MESSAGE if tier == LINES else _JOBS_A_MESSAGE
        task = RUN_LINES_TASK if tier == LINES else RUN_TASK
        with Connection("memory://") as connection:
            blank = app.send_task(task, args=[[]], queue=self.key, connection=connection, argsrepr="", kwargsrepr="")
            message = connection.default_channel._get(self.key)  # noqa: SLF001  (what kombu would put into Redis)
        self._id = str(blank.id)
        self._body = str(message["body"])
        self._embed: list[object] = orjson.loads(base64.b64decode(self._body))[1:]
        self._text = orjson.dumps(message).decode()

    def render(self, job_ids: Sequence[str]) -> str:
        """Return the message that wakes a worker for these jobs."""
        body = base64.b64encode(orjson.dumps([[job_ids], *self._embed])).decode()
        return self._text.replace(self._id, str(uuid.uuid4())).replace(self._body, body)


def read_message(message: bytes | str) -> tuple[str, list[Any]]:
    """Return the task and the arguments of a message in Celery's second protocol.

    Raises:
        ValueError, LookupError, TypeError: It is no such message.
    """
    read = orjson.loads(message)
    arguments, *_ = orjson.loads(base64.b64decode(read["body"]))
    return str(read["headers"]["task"]), list(arguments)


def _read(message: bytes | str) -> list[str]:
    """Return the jobs of a message; an empty list for a message that Headrace did not write."""
    try:
        _, [job_ids] = read_message(message)
        return [str(job_id) for job_id in job_ids]
    except (ValueError, LookupError, TypeError):
        return []


class JobQueue:
    """Wakes workers. Wake-ups that come while a send is under way go together into the next."""

    def __init__(self, redis: Redis, unsent: Callable[[Sequence[str]], Awaitable[None]]) -> None:
        """Use a client that gives up soon when Redis is unavailable; `unsent` notes jobs whose wake-up may be lost."""
        app = create_celery("redis://")  # it never connects: `_Message` uses a connection in memory
        self._messages = {tier: _Message(app, tier) for tier in TIERS}
        app.close()
        self._redis = redis
        self._prefix = prefix_in(redis)
        self._unsent = unsent
        self._pending: dict[str, list[str]] = defaultdict(list)
        self._task: asyncio.Task[None] | None = None
        self._redis_lost = False
        self._notes: set[asyncio.Task[None]] = set()

    def wake(self, job_ids: Iterable[str], *, tier: str) -> None:
        """Send a wake-up for committed jobs, soon; a failure is logged and left to the scheduler."""
        self._pending[tier].extend(job_ids)
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        try:
            while self._pending:
                batch, self._pending = self._pending, defaultdict(list)
                await self._send(batch)
        finally:
            self._task = None

    async def _send(self, batch: dict[str, list[str]]) -> None:
        delay = 0 if self._redis_lost else _SLOW_SECONDS
        slow = asyncio.get_running_loop().call_later(delay, self._note_unsent, batch)
        try:
            for tier, job_ids in batch.items():
                message = self._messages[tier]
                slices = [job_ids[at : at + message.jobs] for at in range(0, len(job_ids), message.jobs)]
                # On the left, as kombu does: workers take from the right.
                await self._redis.lpush(self._prefix + message.key, *map(message.render, slices))
        except REDIS_UNAVAILABLE as error:
            count = sum(map(len, batch.values()))
            log.warning("could not wake a worker for %d jobs, the scheduler will: %s", count, error)
            self._redis_lost = True
            self._note_unsent(batch)
        else:
            self._redis_lost = False
        finally:
            slow.cancel()

    def _note_unsent(self, batch: dict[str, list[str]]) -> None:
        """Have the scheduler send these at its next sweep. A second wake-up does no harm."""
        task = asyncio.create_task(self._write_unsent([job_id for ids in batch.values() for job_id in ids]))
        self._notes.add(task)
        task.add_done_callback(self._notes.discard)

    async def _write_unsent(self, job_ids: Sequence[str]) -> None:
        try:
            await self._unsent(job_ids)
        except SQLAlchemyError as error:
            log.warning("%d jobs wait for the scheduler to find them: %s", len(job_ids), error)

    async def backlog(self, tier: str) -> Backlog | None:
        """Return the wake-ups at the head of a tier's queue, or None while Redis is unavailable."""
        try:
            found = await self._redis.lrange(self._prefix + queue_name(tier), -_BACKLOG_MESSAGES, -1)
        except REDIS_UNAVAILABLE:
            return None
        messages = found[::-1]  # workers take from the right
        return Backlog(
            job_ids=[job_id for message in messages for job_id in _read(message)],
            last_ids=[job_id for message in messages[-_LAST_MESSAGES:] for job_id in _read(message)],
            whole=len(messages) < _BACKLOG_MESSAGES,
        )

    async def close(self) -> None:
        """Send the pending wake-ups."""
        if self._task is not None:
            await self._task
        await asyncio.gather(*self._notes)
