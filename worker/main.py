"""The worker's process: Celery's consumer, with the executor in its pool.

A worker that serves background tiers alone runs with a lower priority on its machine. A worker that serves foreground
tiers too leaves some of its slots to them. Either leaves a backlog in Redis for the worker that is free first.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
import warnings
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from celery import Celery
from celery.exceptions import SecurityWarning
from celery.signals import setup_logging
from celery.worker import state
from celery.worker.consumer import consumer

from headrace.queue import BACKGROUND_TIERS, RUN_LINES_TASK, RUN_TASK, create_celery, queue_name, tier_of
from headrace.runtime.process import lower_priority, raise_descriptor_limit, rest_garbage_collector
from headrace.settings import Settings
from worker.executor import Executor
from worker.pool import AsyncioPool

log = logging.getLogger(__name__)

# Messages in hand whose jobs wait for a slot. Few, so that a backlog stays in Redis for another worker.
_WAITING_MESSAGES = 4
_NICENESS = 10
# File descriptors for each slot, as a job may have several calls and connections are kept, and for all else.
_SLOT_DESCRIPTORS = 4
_OTHER_DESCRIPTORS = 128


class WorkerPool(AsyncioPool):
    """The pool whose lifespan is an executor's."""

    executor: Executor
    loop: asyncio.AbstractEventLoop | None = None

    @contextlib.asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Keep the executor while tasks run."""
        conf = self.app.conf
        async with Executor.running(
            conf["headrace_settings"], line_slots=conf["headrace_line_slots"], tiers=conf["headrace_tiers"]
        ) as executor:
            WorkerPool.executor = executor
            WorkerPool.loop = asyncio.get_running_loop()
            rest_garbage_collector()
            yield

    def takes(self) -> bool:
        """Return whether the executor takes jobs: not while Postgres is unavailable to it."""
        return self.executor.reachable.is_set()

    def hand_back(self, queue: str, args: list[Any]) -> None:
        """Leave the jobs of a message to another worker."""
        [job_ids] = args
        self.executor.hand_back(job_ids, tier_of(queue))

    @classmethod
    def hurry(cls) -> None:
        """Have the executor hand back the jobs that still run."""
        if cls.loop is not None:
            cls.loop.call_soon_threadsafe(cls.executor.hurry)

    @classmethod
    def reload(cls, *_: object) -> None:
        """Have the executor read its configuration again, as the handler of a signal."""
        if cls.loop is not None:
            asyncio.run_coroutine_threadsafe(cls.executor.reload(), cls.loop)


async def run(job_ids: list[str], *, queue: str) -> None:
    """Hand the jobs of a message to the executor, as Celery's task: it is done once each has a slot."""
    await WorkerPool.executor.take(job_ids, tier=tier_of(queue))


async def run_lines(job_ids: list[str], *, queue: str) -> None:
    """Hand lines of batches to the executor, as a task of another name, of which many may wait."""
    await run(job_ids, queue=queue)


def _keep_logging(**_: Any) -> None:
    """Keep Celery from giving its loggers handlers of their own: it does so unless this signal has a receiver."""


def _warn_of_redis(record: logging.LogRecord) -> bool:
    """Make Celery's error about a Redis that is unavailable a warning, without the delay, so that a repeat is one."""
    if record.msg == consumer.CONNECTION_ERROR and isinstance(record.args, tuple):
        record.levelno, record.levelname = logging.WARNING, "WARNING"
        record.msg, record.args = "cannot connect to Redis at %s: %s", record.args[:2]
    return log.isEnabledFor(record.levelno)


def _stopping() -> Callable[[int, Any], None]:
    """Return a handler that has the first signal drain the worker, and the second hurry it.

    Celery's handler prints lines that are not in the log's format.
    """
    told = False

    def handle(number: int, _frame: Any) -> None:
        nonlocal told
        if told:
            WorkerPool.hurry()
        else:
            told = True
            state.should_stop = int(number == signal.SIGINT)  # the exit code, as Celery has it

    return handle


def _worker_class(app: Celery, tiers: Sequence[str]) -> Any:
    class Worker(app.Worker):  # type: ignore[misc]  # Celery has no types
        def install_platform_tweaks(self, worker: Any) -> None:
            super().install_platform_tweaks(worker)
            signal.signal(signal.SIGHUP, WorkerPool.reload)  # Celery would start the process anew
            handle = _stopping()
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, handle)

        def on_consumer_ready(self, consumer: Any) -> None:
            super().on_consumer_ready(consumer)
            log.info("ready: this worker is connected to Redis and serves %s", ", ".join(tiers))

    return Worker


def main(settings: Settings, tiers: Sequence[str]) -> None:
    """Run a worker that serves these tiers, until a signal stops it."""
    slots = settings.worker_slots
    raise_descriptor_limit(slots * _SLOT_DESCRIPTORS + _OTHER_DESCRIPTORS)
    if set(tiers) <= BACKGROUND_TIERS:
        lower_priority(_NICENESS)
    else:
        # The feed's window bounds how many lines wait here; no other job waits behind them.
        WorkerPool.unbounded_tasks = frozenset({RUN_LINES_TASK})
        slots = max(1, slots * 3 // 4)
    warnings.filterwarnings("ignore", category=SecurityWarning)  # to run it as root is its operator's choice
    logging.getLogger(consumer.__name__).addFilter(_warn_of_redis)
    setup_logging.connect(_keep_logging)
    app = create_celery(settings.redis_url, settings.redis_namespace)
    app.conf["headrace_settings"] = settings
    app.conf["headrace_line_slots"] = slots
    app.conf["headrace_tiers"] = tiers
    app.task(run, name=RUN_TASK)
    app.task(run_lines, name=RUN_LINES_TASK)
    worker = _worker_class(app, tiers)(
        pool_cls=WorkerPool,
        concurrency=_WAITING_MESSAGES,
        loglevel=settings.log_level,
        queues=[queue_name(tier) for tier in tiers],
        without_gossip=True,  # workers share what they know over Redis: worker/peers.py
        without_mingle=True,
        without_heartbeat=True,
        quiet=True,
    )
    worker.start()
    sys.exit(worker.exitcode)
