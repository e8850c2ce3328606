"""The scheduler's process. Several may run; one acts.

It looks for what was lost and wakes it again, runs batches and sends webhooks.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections import defaultdict
from collections.abc import Sequence
from functools import partial

import orjson
import uvloop
from sqlalchemy.exc import SQLAlchemyError

from headrace.catalogue.file import CatalogueFile
from headrace.dev.processes import raise_descriptor_limit
from headrace.errors import INTERRUPTED, HeadraceError, JobCancelledError, JobExpiredError, UpstreamError
from headrace.events.publisher import Publisher
from headrace.events.wire import Frame
from headrace.jobs.records import MovedJob
from headrace.jobs.sql.accept import mark_unsent
from headrace.jobs.sql.rescue import expire_jobs, rescue_jobs, resend_jobs
from headrace.jobs.state import State
from headrace.providers.client import ProviderClient
from headrace.queue import TIERS, JobQueue
from headrace.quotas.gate import Gate
from headrace.runtime.chores import Chore, going_on
from headrace.runtime.fingerprints import Fingerprint
from headrace.settings import Settings
from headrace.stores.database import Database
from headrace.stores.redis import connect_redis
from scheduler.batches.runner import BatchRunner
from scheduler.bookkeeping import Bookkeeper
from scheduler.leadership import leadership
from scheduler.retention import Retention
from scheduler.webhooks import WebhookSender

log = logging.getLogger(__name__)

# A rescued job waits so long for a client that has begun to read it to give it up.
_RESCUE_SECONDS = 0.5
# Descriptors: webhooks and calls to providers' batches, and connections to the stores.
_DESCRIPTORS = 1024
# After Postgres was away leases are looked at only when each worker has had time for this many heartbeats.
_GRACE_HEARTBEATS = 2.5
# To providers' own batch APIs.
_NATIVE_CONNECTIONS = 16


def _error(error: HeadraceError) -> str:
    return orjson.dumps(error.document()).decode()


class Sweeper:
    """One pass after another over jobs that nobody looks after.

    A lease that ran out while Postgres was away says nothing of its worker, which may still hold its call: so leases
    are looked at only some heartbeats after the first pass, and after one that failed.
    """

    def __init__(self, settings: Settings, database: Database, queue: JobQueue, publisher: Publisher) -> None:
        self._settings = settings
        self._database = database
        self._queue = queue
        self._publisher = publisher

    async def run(self) -> None:
        """Sweep again and again, until cancelled."""
        loop = asyncio.get_running_loop()
        grace = _GRACE_HEARTBEATS * self._settings.heartbeat_seconds
        rescue_from = loop.time() + grace
        while True:
            try:
                await self.sweep(rescue=loop.time() >= rescue_from)
            except SQLAlchemyError as error:
                log.warning("what is lost stays so until Postgres is back: %s", error)
                rescue_from = loop.time() + grace
            await asyncio.sleep(self._settings.sweep_seconds)

    async def sweep(self, *, rescue: bool = True) -> None:
        """Rescue, expire and send again, once.

        Raises:
            sqlalchemy.exc.SQLAlchemyError: Postgres is away.
        """
        rescued = await self._rescue() if rescue else []
        expired = await expire_jobs(self._database, error=_error(JobExpiredError()))
        lost = await self._find_lost()
        if rescued or expired or lost:
            log.info("rescued %d, expired %d, sent again %d", len(rescued), len(expired), len(lost))
        asyncio.get_running_loop().call_later(_RESCUE_SECONDS, self._wake, rescued)
        self._wake(lost)
        for job in (*rescued, *expired):
            kind = "retrying" if job.state is State.QUEUED else job.state.value
            self._publisher.publish(Frame(job.id, job.attempt, 0, kind, ()), origin=job.origin)

    async def _find_lost(self) -> list[MovedJob]:
        lost = []
        for tier in TIERS:
            backlog = await self._queue.backlog(tier)
            if backlog is not None:
                lost += await resend_jobs(self._database, tier, backlog, resend_seconds=self._settings.resend_seconds)
        return lost

    async def _rescue(self) -> list[MovedJob]:
        max_lost = self._settings.max_lost_attempts
        return await rescue_jobs(
            self._database,
            max_lost=max_lost,
            delay_seconds=_RESCUE_SECONDS,
            cancelled=_error(JobCancelledError()),
            poisonous=_error(
                HeadraceError(
                    f"The leases of {max_lost} attempts of this job expired, as their workers died, froze or lost "
                    "Postgres: it is not tried again.",
                    code="worker_lost",
                )
            ),
            interrupted=_error(UpstreamError(INTERRUPTED, code="worker_lost")),
        )

    def _wake(self, jobs: Sequence[MovedJob]) -> None:
        tiers: dict[str, list[str]] = defaultdict(list)
        for job in jobs:
            if job.state is State.QUEUED:
                tiers[job.tier].append(job.id)
        for tier, job_ids in tiers.items():
            self._queue.wake(job_ids, tier=tier)


async def _schedule(settings: Settings) -> None:
    async with contextlib.AsyncExitStack() as stack:
        database = Database.connect(settings.database_url, connections=4, part="scheduler")
        stack.push_async_callback(database.close)
        redis = connect_redis(settings.redis_url)
        stack.push_async_callback(redis.aclose)
        queue = JobQueue(redis, partial(mark_unsent, database))
        stack.push_async_callback(queue.close)
        publisher = Publisher(redis, interval_seconds=settings.publish_seconds)
        sweeper = Sweeper(settings, database, queue, publisher)
        file = CatalogueFile(settings.config, demo=settings.demo)
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, file.reload)
        client = ProviderClient(connections=_NATIVE_CONNECTIONS)
        stack.push_async_callback(client.close)
        gate = Gate(redis, database, open_when_away=settings.limits_without_redis == "open")
        bookkeeper = Bookkeeper(database, gate, metadata_keys=settings.usage_metadata_keys)
        batches = BatchRunner(settings, file, database, queue=queue, publisher=publisher, client=client, gate=gate)
        retention = Retention(settings, database)
        chores = [sweeper.run, batches.run, bookkeeper.run, retention.run]
        if settings.secret_key is not None:
            secret_key = settings.secret_key.get_secret_value()
            sender = WebhookSender(
                database,
                secret_key=secret_key,
                previous_keys=[key.get_secret_value() for key in settings.previous_secret_keys],
                allow_private=settings.webhook_allow_private,
            )
            stack.push_async_callback(sender.close)
            chores.append(sender.run)
        else:
            log.warning("HEADRACE_SECRET_KEY is not set: this scheduler sends no webhooks, pending ones wait")
        fingerprint = Fingerprint(settings, file, database, part="scheduler")
        async with going_on(fingerprint.run):
            await _lead(database, chores, again_seconds=settings.sweep_seconds)


async def _lead(database: Database, chores: Sequence[Chore], *, again_seconds: float) -> None:
    """Do the chores whenever this scheduler leads, until cancelled."""
    while True:
        try:
            async with leadership(database.relaxed) as keep:
                log.info("ready: this scheduler leads")
                async with going_on(*chores):
                    await keep()
        except (SQLAlchemyError, OSError) as error:
            log.warning("this scheduler does not lead, Postgres is unavailable: %s", error)
        await asyncio.sleep(again_seconds)


async def _until_told(settings: Settings) -> None:
    task = asyncio.create_task(_schedule(settings))
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await task


def main(settings: Settings) -> None:
    """Run the scheduler until it is told to stop."""
    raise_descriptor_limit(_DESCRIPTORS)
    uvloop.run(_until_told(settings))
