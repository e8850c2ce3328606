"""The parts of a worker, wired together: jobs come in, attempts run, and draining hands back the jobs that are left."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Sequence
from functools import partial

from headrace import __version__
from headrace.catalogue.file import CatalogueFile
from headrace.catalogue.models import Catalogue
from headrace.events.publisher import Publisher
from headrace.ids import new_id
from headrace.jobs.sql.accept import mark_unsent
from headrace.providers.client import ProviderClient
from headrace.providers.demo.server import DemoUpstream
from headrace.queue import BACKGROUND_TIERS, LINES, TIERS, JobQueue
from headrace.runtime.chores import Chore, going_on, until_tick, wait_for
from headrace.runtime.fingerprints import Fingerprint
from headrace.runtime.machine import machine_id
from headrace.runtime.presence import About, View
from headrace.settings import Settings
from headrace.stores.database import Database
from headrace.stores.namespace import NamespacedRedis
from headrace.stores.redis import connect_redis, redis_takes_writes
from headrace.telemetry.health import HEALTH, loop_chores
from headrace.telemetry.metrics import WORKER_SLOTS, WORKER_SLOTS_TAKEN
from headrace.telemetry.rates import report
from worker.attempt import Stop
from worker.availability import Availability
from worker.circuit import Rules
from worker.circuits import Circuits
from worker.claims import Claims
from worker.crowds import Crowds
from worker.deltas import DeltaWriter
from worker.ending import Endings
from worker.intake import Intake
from worker.leases import Leases
from worker.line_pace import LinePace
from worker.measures import Measures
from worker.outcome import Outcomes
from worker.run import Runner
from worker.slots import Slots, reserve_of
from worker.throttle import Throttle
from worker.yielding import find_waiting

log = logging.getLogger(__name__)

# Seconds between two looks for jobs that no wake-up came for: while wake-ups or claims are lost, and otherwise.
_LOOK_SECONDS = 0.5
_RARE_LOOK_SECONDS = 4.0
# Seconds between two demands on an attempt to stop.
_INSIST_SECONDS = 0.5


class Executor:
    """The jobs of one worker process: at most `worker_slots` at a time, all on one event loop."""

    def __init__(
        self,
        settings: Settings,
        file: CatalogueFile,
        catalogue: Catalogue,
        *,
        demo: DemoUpstream,
        database: Database,
        redis: NamespacedRedis,
        queue: JobQueue,
        client: ProviderClient,
        line_slots: int,
        tiers: Sequence[str],
    ) -> None:
        """Wire the parts over connections that `running` opens."""
        self._settings = settings
        self._tiers = tiers
        self._file = file
        self._demo = demo
        self._redis = redis
        self._queue = queue
        self._hurried = asyncio.Event()
        self._store_lost = asyncio.Event()
        """Set when Redis or Postgres becomes unavailable, so that the next look for jobs comes soon."""
        name = f"{socket.gethostname()}:{os.getpid()}:{new_id('worker')[-8:]}"
        publisher = self._publisher = Publisher(redis, interval_seconds=settings.publish_seconds)
        self._deltas = DeltaWriter(database, interval_seconds=settings.segment_seconds)
        self._throttle = Throttle(
            redis,
            lease_seconds=settings.lease_seconds,
            measured=lambda route: route in file.current.written_routes,
        )
        crowds = Crowds()
        self._circuits = Circuits(
            redis,
            worker=name,
            tiers=tiers,
            rules=Rules(failures=settings.circuit_failures),
            about=self._describe,
            on_redis_lost=self._store_lost.set,
            limits=self._throttle.adaptive_limits,
            on_views=self._pace_lines,
        )
        self._availability = Availability()
        self._availability.on_lost(self._store_lost.set)
        self._leases = Leases(settings, database, redis, self._availability)
        self._claims = Claims(settings, database, self._availability, worker=name, send_back=self.hand_back)
        measures = Measures(file)
        endings = Endings(database, self._availability, queue, publisher, self._deltas, measures=measures)
        self._runner = Runner(
            catalogue,
            database=database,
            availability=self._availability,
            client=client,
            circuits=self._circuits,
            throttle=self._throttle,
            crowds=crowds,
            claims=self._claims,
            leases=self._leases,
            deltas=self._deltas,
            publisher=publisher,
            outcomes=Outcomes(endings, self._circuits, attempts_per_route=settings.attempts_per_route),
            measures=measures,
        )
        self._machine = machine_id()
        self._pace = LinePace()
        slots = self._slots = Slots(settings.worker_slots, line_slots=line_slots, pace=self._pace)
        WORKER_SLOTS.set(settings.worker_slots)
        WORKER_SLOTS_TAKEN.set_function(lambda: slots.taken)
        self._started_at = time.time()
        self._intake = Intake(
            settings,
            database,
            self._availability,
            tiers=tiers,
            slots=slots,
            crowds=crowds,
            run=self._runner.run,
            send_back=self.hand_back,
            waiting=lambda: find_waiting(self._leases.attempts, slots.running),
        )

    @classmethod
    @contextlib.asynccontextmanager
    async def running(
        cls, settings: Settings, *, line_slots: int, tiers: Sequence[str] = TIERS
    ) -> AsyncIterator[Executor]:
        """Give an executor of some tiers with its connections and its chores; leaving drains it.

        Lines of batches take up to `line_slots` of its slots.
        """
        async with contextlib.AsyncExitStack() as stack:
            demo = DemoUpstream()
            stack.push_async_callback(demo.close)
            file = CatalogueFile(settings.config, demo=settings.demo)
            database = Database.connect(settings.database_url, part="worker")
            stack.push_async_callback(database.close)
            redis = connect_redis(settings.redis_url, settings.redis_namespace)
            stack.push_async_callback(redis.aclose)
            queue = JobQueue(redis, partial(mark_unsent, database))
            stack.push_async_callback(queue.close)
            client = ProviderClient(connections=settings.worker_slots + reserve_of(settings.worker_slots))
            stack.push_async_callback(client.close)
            executor = cls(
                settings,
                file,
                await demo.place(file.current),
                demo=demo,
                database=database,
                redis=redis,
                queue=queue,
                client=client,
                line_slots=line_slots,
                tiers=tiers,
            )
            stack.push_async_callback(executor._throttle.close)
            async with going_on(*executor._chores(), Fingerprint(settings, file, database, part="worker").run):
                try:
                    yield executor
                finally:
                    await executor._drain()

    def _chores(self) -> list[Chore]:
        return [
            self._deltas.run,
            partial(self._leases.run, partial(self._claims.mark, self._intake.in_hand)),
            partial(self._leases.hear_cancellations, self._circuits.look if LINES in self._tiers else None),
            self._find_unclaimed,
            self._intake.share,
            self._circuits.run,
            self._throttle.run,
            partial(report, self._redis),
            *loop_chores(self._settings),
        ]

    def _describe(self) -> About:
        """Return what this worker reports about its process and its slots."""
        return About(
            host=socket.gethostname(),
            pid=os.getpid(),
            version=__version__,
            started_at=self._started_at,
            slots=self._settings.worker_slots,
            running=self._slots.taken,
            draining=self._intake.closed,
            machine=self._machine,
            cut_off=not self.reachable.is_set(),
        )

    def _pace_lines(self, views: Sequence[View]) -> None:
        """Set the pace of lines by how many calls others on this machine make for requests."""
        beside = [
            view
            for view in views
            if view.about is not None and view.about.machine == self._machine and not {*view.tiers} <= BACKGROUND_TIERS
        ]
        self._pace.hear(sum(calls.calls for view in beside for calls in view.calls.values()))

    @property
    def reachable(self) -> asyncio.Event:
        """Set while Postgres answers; while it does not, this worker takes no jobs."""
        return self._availability.reachable

    async def take(self, job_ids: Sequence[str], *, tier: str) -> None:
        """Start jobs as slots come free; returns once none of them waits here.

        Jobs that wait here already are not taken twice.
        """
        await self._intake.take(job_ids, tier=tier)

    def hand_back(self, job_ids: Sequence[str], tier: str) -> None:
        """Send the wake-ups of jobs again, so that they start at another worker."""
        self._queue.wake(job_ids, tier=tier)

    async def reload(self) -> None:
        """Take up a changed configuration, if it is valid; attempts that are under way keep the routes they have."""
        if self._file.reload():
            self._runner.catalogue = await self._demo.place(self._file.current)

    def hurry(self) -> None:
        """Drain no longer: hand back all jobs that still run."""
        self._hurried.set()

    async def _find_unclaimed(self) -> None:
        """Start jobs that no wake-up came for, and jobs whose claims got no answer; until cancelled."""
        while True:
            await self._until_next_look()
            # A worker tells its news to Redis in any case. Only if Redis does not take them, the worker asks why.
            without_redis = self._circuits.redis_lost and not await redis_takes_writes(self._redis)
            self._leases.without_redis = without_redis
            if self.reachable.is_set():
                if self._claims.in_doubt:
                    for job_id, tier in (await self._claims.find_doubtful()).items():
                        self._intake.start_again(job_id, tier)
                await self._intake.find_unclaimed(without_redis=without_redis)

    async def _until_next_look(self) -> None:
        if self._leases.without_redis or self._claims.in_doubt or not self.reachable.is_set():
            await asyncio.sleep(_LOOK_SECONDS)
        else:
            await wait_for(self._store_lost, until_tick(_RARE_LOOK_SECONDS))
        self._store_lost.clear()

    async def _drain(self) -> None:
        """Let running jobs finish for a while, then hand the rest back so that they start elsewhere at once."""
        HEALTH.draining = True
        self._intake.close()
        tasks = self._intake.tasks
        if tasks and not self._hurried.is_set():
            log.info("draining %d jobs, for at most %g s", len(tasks), self._settings.drain_seconds)
            ended = asyncio.ensure_future(asyncio.wait(tasks))
            hurried = asyncio.ensure_future(self._hurried.wait())
            await asyncio.wait(
                [ended, hurried], timeout=self._settings.drain_seconds, return_when=asyncio.FIRST_COMPLETED
            )
            ended.cancel()
            hurried.cancel()
        until = time.monotonic() + self._settings.lease_seconds  # other workers take them then in any case
        while tasks and time.monotonic() < until:
            for attempt in self._leases.attempts:
                attempt.insist()
                attempt.interrupt(Stop.DRAINED)  # also an attempt whose job was only claimed meanwhile
            await asyncio.wait(tasks, timeout=_INSIST_SECONDS)
        if tasks:
            log.warning("%d jobs do not stop: their leases run out", len(tasks))
        await self._publisher.flush()
