"""The scheduler's process: it keeps the chores of the one scheduler that leads, and ends when a signal stops it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from functools import partial

import uvloop

from headrace.catalogue.file import CatalogueFile
from headrace.events.publisher import Publisher
from headrace.events.subscription import hear_work
from headrace.jobs.sql.accept import mark_unsent
from headrace.providers.client import ProviderClient
from headrace.queue import JobQueue
from headrace.quotas.gate import Gate
from headrace.runtime.chores import Chore, going_on
from headrace.runtime.fingerprints import Fingerprint
from headrace.runtime.presence import announce_leader
from headrace.runtime.process import raise_descriptor_limit
from headrace.settings import Settings
from headrace.stores.database import Database
from headrace.stores.redis import connect_redis
from headrace.telemetry.health import HEALTH, loop_chores
from headrace.telemetry.rates import report
from scheduler.batches.runner import BatchRunner
from scheduler.batches.submissions import Submissions
from scheduler.bookkeeping import Bookkeeper
from scheduler.gauges import QueueGauges
from scheduler.leadership import lead
from scheduler.lookout import Lookout
from scheduler.retention import Retention
from scheduler.sweep import Sweeper
from scheduler.webhooks import WebhookSender

log = logging.getLogger(__name__)

# Descriptors: webhooks and calls to providers' batches, and connections to the stores.
_DESCRIPTORS = 1024
# Connections to each server of a batch API: for parcels and results, and as many for questions, which no slow download
# may hold up. Each download may hold 16 MiB of results.
_NATIVE_CONNECTIONS = 8


async def _schedule(settings: Settings, submissions: Submissions) -> None:
    """Connect the stores, and do every chore while this scheduler leads, until cancelled."""
    async with contextlib.AsyncExitStack() as stack:
        database = Database.connect(settings.database_url, connections=4, part="scheduler")
        stack.push_async_callback(database.close)
        redis = connect_redis(settings.redis_url, settings.redis_namespace)
        stack.push_async_callback(redis.aclose)
        queue = JobQueue(redis, partial(mark_unsent, database))
        stack.push_async_callback(queue.close)
        publisher = Publisher(redis, interval_seconds=settings.publish_seconds)
        client = ProviderClient(connections=_NATIVE_CONNECTIONS)
        stack.push_async_callback(client.close)
        questions = ProviderClient(connections=_NATIVE_CONNECTIONS)
        stack.push_async_callback(questions.close)
        gate = Gate(redis, database, open_without_redis=settings.limits_without_redis == "open")
        file = CatalogueFile(settings.config, demo=settings.demo)
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, file.reload)

        batches = BatchRunner(
            settings,
            file,
            database,
            queue=queue,
            publisher=publisher,
            client=client,
            questions=questions,
            gate=gate,
            submissions=submissions,
        )
        bookkeeper = Bookkeeper(database, gate, metadata_keys=settings.usage_metadata_keys)
        lookout = Lookout(database)
        chores: list[Chore] = [
            lookout.run,
            partial(hear_work, redis, lookout.call),
            partial(Sweeper(settings, database, queue, publisher).run, lookout.jobs),
            partial(batches.run, lookout.batches),
            partial(bookkeeper.run, usage=lookout.usage, jobs=lookout.jobs),
            Retention(settings, database).run,
            *([QueueGauges(database).run] if settings.metrics_port else []),
            partial(announce_leader, redis),
        ]
        sender = _webhook_sender(settings, database)
        if sender is not None:
            stack.push_async_callback(sender.close)
            chores.append(partial(sender.run, lookout.webhooks))
        else:
            log.warning("HEADRACE_SECRET_KEY is not set: this scheduler sends no webhooks, pending ones wait")
        fingerprint = Fingerprint(settings, file, database, part="scheduler")
        async with going_on(fingerprint.run, partial(report, redis), *loop_chores(settings)):
            await lead(database.relaxed, chores, again_seconds=settings.sweep_seconds)


def _webhook_sender(settings: Settings, database: Database) -> WebhookSender | None:
    if settings.secret_key is None:
        return None
    return WebhookSender(
        database,
        secret_key=settings.secret_key.get_secret_value(),
        previous_keys=[key.get_secret_value() for key in settings.previous_secret_keys],
        allow_private=settings.webhook_allow_private,
    )


async def run_until_signal(settings: Settings) -> None:
    """Run the scheduler until SIGINT or SIGTERM, which this sets handlers for.

    It leads until the parcels that it hands over have arrived, for `drain_seconds` at most or until a second signal.
    """
    submissions = Submissions()
    task = asyncio.create_task(_schedule(settings, submissions))
    draining: asyncio.Task[None] | None = None

    def end() -> None:
        nonlocal draining
        if draining is not None:
            draining.cancel()
            return
        HEALTH.draining = True
        draining = asyncio.create_task(submissions.drain(settings.drain_seconds))
        draining.add_done_callback(lambda _: task.cancel())

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, end)
    with contextlib.suppress(asyncio.CancelledError):
        await task


def main(settings: Settings) -> None:
    """Run the scheduler until SIGINT or SIGTERM."""
    raise_descriptor_limit(_DESCRIPTORS)
    uvloop.run(run_until_signal(settings))
