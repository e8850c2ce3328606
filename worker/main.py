"""The worker's process: Celery's consumer, with the executor in its pool."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import AsyncIterator

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

    @contextlib.asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Keep the executor while tasks run."""
        async with Executor.running(self.app.conf["headrace_settings"]) as executor:
            WorkerPool.executor = executor
            rest_garbage_collector()
            yield


async def run(job_ids: list[str]) -> None:
    """Hand the jobs to the executor, as Celery's task: it is done once each has a slot."""
    await WorkerPool.executor.take(job_ids)


def main(settings: Settings) -> None:
    """Run a worker until it is told to stop."""
    warnings.filterwarnings("ignore", category=SecurityWarning)  # that it runs as root is its operator's choice
    app = create_celery(settings.redis_url)
    app.conf["headrace_settings"] = settings
    app.task(run, name=RUN_TASK)
    worker = app.Worker(
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
