"""The scheduler's process. Several may run; one acts.

It looks for what was lost and wakes it again, runs batches and sends webhooks.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections import defaultdict
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import Any

import orjson
import sqlalchemy as sa
import uvloop
from sqlalchemy.ext.asyncio import AsyncConnection

from headrace import live
from headrace.catalogue_file import CatalogueFile
from headrace.database import Database
from headrace.errors import INTERRUPTED, HeadraceError, JobCancelledError, JobExpiredError, UpstreamError
from headrace.jobs import queries
from headrace.jobs.queries import MovedJob
from headrace.jobs.state import State
from headrace.live import Frame, Publisher
from headrace.queue import JobQueue
from headrace.quotas.gate import Gate
from headrace.settings import Settings
from worker.batches.runner import BatchRunner
from worker.bookkeeper import Bookkeeper
from worker.providers.client import ProviderClient
from worker.retention import Retention
from worker.webhooks import WebhookSender

log = logging.getLogger(__name__)

# A rescued job waits so long for a client that has begun to read it to give it up.
_RESCUE_SECONDS = 0.5
# Any constant will do, as long as nothing else in the database takes the same advisory lock.
_LOCK = 0x73776565
# To providers' own batch APIs.
_NATIVE_CONNECTIONS = 16


def _error(error: HeadraceError) -> str:
    return orjson.dumps(error.document()).decode()


class Sweeper:
    """One pass after another over jobs that nobody looks after."""

    def __init__(self, settings: Settings, database: Database, queue: JobQueue, publisher: Publisher) -> None:
        self._settings = settings
        self._database = database
        self._queue = queue
        self._publisher = publisher

    async def sweep(self) -> None:
        """Rescue, expire and send again, once.

        Raises:
            sqlalchemy.exc.SQLAlchemyError: Postgres is away.
        """
        max_lost = self._settings.max_lost_attempts
        rescued = await queries.rescue_jobs(
            self._database,
            max_lost=max_lost,
            delay_seconds=_RESCUE_SECONDS,
            cancelled=_error(JobCancelledError()),
            poisonous=_error(
                HeadraceError(
                    f"{max_lost} workers died while they ran this job: it is not tried again.", code="worker_lost"
                )
            ),
            interrupted=_error(UpstreamError(INTERRUPTED, code="worker_lost")),
        )
        expired = await queries.expire_jobs(self._database, error=_error(JobExpiredError()))
        lost = await queries.resend_jobs(
            self._database,
            tiers=await self._queue.drained_tiers(),
            resend_seconds=self._settings.resend_seconds,
        )
        if rescued or expired or lost:
            log.info("rescued %d, expired %d, sent again %d", len(rescued), len(expired), len(lost))
        asyncio.get_running_loop().call_later(_RESCUE_SECONDS, self._wake, rescued)
        self._wake(lost)
        for job in (*rescued, *expired):
            kind = "retrying" if job.state is State.QUEUED else job.state.value
            self._publisher.publish(Frame(job.id, job.attempt, 0, kind, ()), origin=job.origin)

    def _wake(self, jobs: Sequence[MovedJob]) -> None:
        tiers: dict[str, list[str]] = defaultdict(list)
        for job in jobs:
            if job.state is State.QUEUED:
                tiers[job.tier].append(job.id)
        for tier, job_ids in tiers.items():
            self._queue.wake(job_ids, tier=tier)


@contextlib.asynccontextmanager
async def _leadership(database: Database) -> AsyncIterator[AsyncConnection | None]:
    """Give the connection that holds the lock, or None if another scheduler has it; it goes with the connection."""
    async with database.relaxed.engine.connect() as connection:
        leads = (await connection.execute(sa.select(sa.func.pg_try_advisory_lock(_LOCK)))).scalar_one()
        try:
            yield connection if leads else None
        finally:
            await connection.invalidate()


@contextlib.asynccontextmanager
async def _beside(*work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Do some other work meanwhile, and stop it at the end."""
    tasks = [asyncio.create_task(chore) for chore in work]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _schedule(settings: Settings) -> None:
    async with contextlib.AsyncExitStack() as stack:
        database = Database.connect(settings.database_url, connections=4)
        stack.push_async_callback(database.close)
        redis = live.connect(settings.redis_url)
        stack.push_async_callback(redis.aclose)
        queue = JobQueue(redis)
        stack.push_async_callback(queue.close)
        publisher = Publisher(redis, interval_seconds=settings.publish_seconds)
        sweeper = Sweeper(settings, database, queue, publisher)
        file = CatalogueFile(settings.config)
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, file.reload)
        client = ProviderClient(connections=_NATIVE_CONNECTIONS)
        stack.push_async_callback(client.close)
        bookkeeper = Bookkeeper(
            database, Gate(redis, database, open_when_away=True), metadata_keys=settings.usage_metadata_keys
        )
        batches = BatchRunner(settings, file, database, queue=queue, publisher=publisher, client=client)
        retention = Retention(settings, database)
        chores = [batches.run, bookkeeper.run, retention.run]
        if settings.secret_key is not None:
            secret_key = settings.secret_key.get_secret_value()
            sender = WebhookSender(database, secret_key=secret_key, allow_private=settings.webhook_allow_private)
            stack.push_async_callback(sender.close)
            chores.append(sender.run)
        while True:
            try:
                async with _leadership(database) as connection:
                    if connection is not None:
                        async with _beside(*(chore() for chore in chores)):
                            while True:
                                await connection.execute(sa.select(1))  # the lock is ours for as long as this answers
                                await sweeper.sweep()
                                await asyncio.sleep(settings.sweep_seconds)
            except (sa.exc.SQLAlchemyError, OSError) as error:
                log.warning("Postgres is away: %s", error)
            await asyncio.sleep(settings.sweep_seconds)


async def _until_told(settings: Settings) -> None:
    task = asyncio.create_task(_schedule(settings))
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await task


def main(settings: Settings) -> None:
    """Run the scheduler until it is told to stop."""
    uvloop.run(_until_told(settings))
