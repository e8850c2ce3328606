"""The worker's process: Celery's consumer, with the executor in its pool."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import warnings
from collections.abc import AsyncIterator
from typing import Any

from celery import Celery
from celery.exceptions import SecurityWarning

from headrace.processes import rest_garbage_collector
from headrace.queue import RUN_TASK, TIERS, create_celery, queue_name
from headrace.settings import Settings
from worker.executor import Executor
from worker.pool import AsyncioPool

# Messages in hand whose jobs wait for a slot. Few, so that a backlog stays in Redis for whoever is free.
_WAITING_MESSAGES = 4


class WorkerPool(AsyncioPool):
    """The pool whose lifespan is an executor's."""

    executor: Executor
    loop: asyncio.AbstractEventLoop | None = None

    @contextlib.asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Keep the executor while tasks run."""
        async with Executor.running(self.app.conf["headrace_settings"]) as executor:
            WorkerPool.executor = executor
            WorkerPool.loop = asyncio.get_running_loop()
            rest_garbage_collector()
            yield

    @classmethod
    def reload(cls, *_: object) -> None:
        """Have the executor read its configuration again, as the handler of a signal."""
        if cls.loop is not None:
            asyncio.run_coroutine_threadsafe(cls.executor.reload(), cls.loop)


async def run(job_ids: list[str]) -> None:
    """Hand the jobs to the executor, as Celery's task: it is done once each has a slot."""
    await WorkerPool.executor.take(job_ids)


def _worker_class(app: Celery) -> Any:
    class Worker(app.Worker):  # type: ignore[misc]  # Celery has no types
        def install_platform_tweaks(self, worker: Any) -> None:
            super().install_platform_tweaks(worker)
            signal.signal(signal.SIGHUP, WorkerPool.reload)  # Celery would start the process anew

    return Worker


def main(settings: Settings) -> None:
    """Run a worker until it is told to stop."""
    warnings.filterwarnings("ignore", category=SecurityWarning)  # that it runs as root is its operator's choice
    app = create_celery(settings.redis_url)
    app.conf["headrace_settings"] = settings
    app.task(run, name=RUN_TASK)
    worker = _worker_class(app)(
        pool_cls=WorkerPool,
        concurrency=_WAITING_MESSAGES,
        loglevel=settings.log_level,
        queues=[queue_name(tier) for tier in TIERS],
        without_gossip=True,  # workers need not know of one another
        without_mingle=True,
        without_heartbeat=True,
        quiet=True,
    )
    worker.start()
    sys.exit(worker.exitcode)
