"""The scheduler's batches in the process of a test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from headrace.catalogue.file import CatalogueFile
from headrace.events.publisher import Publisher
from headrace.jobs.sql.accept import mark_unsent
from headrace.providers.client import ProviderClient
from headrace.queue import JobQueue
from headrace.quotas.gate import Gate
from headrace.settings import Settings
from headrace.stores.database import Database
from headrace.stores.redis import connect_redis
from scheduler.batches.runner import BatchRunner
from scheduler.batches.submissions import Submissions

Launch = Callable[..., AbstractAsyncContextManager[BatchRunner]]
"""Makes the scheduler's batches; keywords are settings."""

CONNECTIONS = 4
"""Connections to each server of a batch API: for parcels and results, and as many for questions."""


@asynccontextmanager
async def batch_runner(settings: Settings, file: CatalogueFile, database: Database) -> AsyncIterator[BatchRunner]:
    """Give the scheduler's batches, and close what they use."""
    client, questions = ProviderClient(connections=CONNECTIONS), ProviderClient(connections=CONNECTIONS)
    async with connect_redis(settings.redis_url) as redis:
        queue = JobQueue(redis, lambda job_ids: mark_unsent(database, job_ids))
        publisher = Publisher(redis, interval_seconds=0.01)
        yield BatchRunner(
            settings,
            file,
            database,
            queue=queue,
            publisher=publisher,
            client=client,
            questions=questions,
            gate=Gate(redis, database, open_without_redis=True),
            submissions=Submissions(),
        )
        await publisher.flush()
        await queue.close()
    await client.close()
    await questions.close()
