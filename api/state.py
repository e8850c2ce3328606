"""The resources of an API process: its lifespan opens them, and requests read them from `request.state`."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable
from functools import partial
from operator import attrgetter
from typing import NotRequired, TypedDict

from fastapi import FastAPI

from api.http.authentication import Authenticator
from api.http.body_memory import BodyMemory
from api.http.connection import Client
from api.http.request import ApiRequest
from api.http.subscribers import Subscribers
from api.jobs.cancellations import Cancellations
from api.jobs.waiting import WaitingJobs
from api.overview import Overview
from api.resources.health import StoresCheck
from api.watched_batches import WatchedBatches
from headrace.catalogue.file import CatalogueFile
from headrace.events.compare import compare_readers
from headrace.events.hub import Hub
from headrace.events.publisher import Publisher
from headrace.jobs.records import NewJob
from headrace.jobs.sql.accept import insert_jobs, mark_unsent
from headrace.keys.principal import Principal
from headrace.keys.queries import ensure_bootstrap_key
from headrace.queue import JobQueue
from headrace.quotas.gate import Gate
from headrace.runtime.chores import going_on
from headrace.runtime.fingerprints import Fingerprint
from headrace.runtime.process import rest_garbage_collector
from headrace.settings import Settings
from headrace.stores.database import Database
from headrace.stores.group_commit import GroupCommit
from headrace.stores.redis import connect_redis
from headrace.telemetry.health import loop_chores
from headrace.telemetry.rates import report


class ApiState(TypedDict):
    """What every request finds in `request.state`: the resources of its process, and what is noted of the request."""

    settings: Settings
    catalogue: CatalogueFile
    database: Database
    authenticator: Authenticator
    queue: JobQueue
    publisher: Publisher
    hub: Hub
    inserts: GroupCommit[NewJob, int]
    gate: Gate
    cancellations: Cancellations
    waiting: WaitingJobs
    body_memory: BodyMemory
    subscribers: Subscribers
    watched_batches: WatchedBatches
    stores_check: StoresCheck
    overview: Overview
    headless: NotRequired[ApiRequest]
    """A request with this state and no head, for code that runs after the client's request is freed."""

    client: NotRequired[Client]
    trace_context: NotRequired[str | None]
    account_id: NotRequired[str]
    """The account that the request reads or changes, once its key is known."""
    principal: NotRequired[Principal]
    body_units: NotRequired[int]
    """What the request has of the memory for large bodies."""


@contextlib.asynccontextmanager
async def open_state(settings: Settings) -> AsyncIterator[ApiState]:
    """Connect to the stores, and run the background tasks of the process inside the context."""
    async with contextlib.AsyncExitStack() as stack:
        catalogue = CatalogueFile(settings.config, demo=settings.demo)
        database = Database.connect(settings.database_url, part="api")
        stack.push_async_callback(database.close)
        if settings.bootstrap_key is not None:
            await ensure_bootstrap_key(database, settings.bootstrap_key.get_secret_value())
        redis = connect_redis(settings.redis_url, settings.redis_namespace)
        stack.push_async_callback(redis.aclose)
        queue = JobQueue(redis, partial(mark_unsent, database))
        stack.push_async_callback(queue.close)
        hub = Hub(redis, buffer_bytes=settings.subscriber_buffer_bytes, patience_seconds=settings.ping_seconds)
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, catalogue.reload)
        authenticator = Authenticator(database)
        cancellations = Cancellations()
        waiting = WaitingJobs(database, most=settings.account_waiting_jobs)
        fingerprint = Fingerprint(settings, catalogue, database, part="api")
        async with going_on(
            fingerprint.run,
            hub.run,
            hub.end_silences,
            partial(compare_readers, hub, database),
            authenticator.run,
            cancellations.run,
            waiting.run,
            partial(report, redis),
            *loop_chores(settings),
        ):
            state = ApiState(
                settings=settings,
                catalogue=catalogue,
                database=database,
                authenticator=authenticator,
                queue=queue,
                publisher=Publisher(redis, interval_seconds=settings.publish_seconds),
                hub=hub,
                inserts=GroupCommit(partial(insert_jobs, database), statement="accept", size=attrgetter("size")),
                cancellations=cancellations,
                waiting=waiting,
                body_memory=BodyMemory(settings.body_memory_bytes),
                subscribers=Subscribers(settings.subscribers_per_key),
                watched_batches=WatchedBatches(database),
                stores_check=StoresCheck(database, redis),
                overview=Overview(database, redis, catalogue),
                gate=Gate(redis, database, open_without_redis=settings.limits_without_redis == "open"),
            )
            state["headless"] = ApiRequest({"type": "http", "state": state})
            yield state
            await cancellations.finish()


def lifespan_of(settings: Settings) -> Callable[[FastAPI], contextlib.AbstractAsyncContextManager[ApiState]]:
    """Return the lifespan of an application. Its server finds the hub in `app.state` and ends it at shutdown."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[ApiState]:
        async with open_state(settings) as state:
            rest_garbage_collector()
            app.state.hub = state["hub"]
            yield state

    return lifespan
