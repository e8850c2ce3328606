"""Runs jobs: claims them, calls the provider, passes its deltas on, and writes how each attempt ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import orjson
import sqlalchemy as sa
from redis.asyncio import Redis
from sqlalchemy.exc import SQLAlchemyError

from headrace.catalogue.file import CatalogueFile
from headrace.catalogue.models import Catalogue
from headrace.catalogue.routing import UsableRoute, usable_routes
from headrace.errors import (
    HeadraceError,
    JobCancelledError,
    JobExpiredError,
    ModelNotFoundError,
    UpstreamBusyError,
    UpstreamError,
    UpstreamRefusedError,
    UpstreamTimeoutError,
    UpstreamUnavailableError,
)
from headrace.events.follow import render_chunk
from headrace.events.publisher import Publisher
from headrace.events.wire import Frame
from headrace.ids import new_id
from headrace.jobs.records import ClaimedJob, FinishedJob
from headrace.jobs.sql.accept import mark_unsent
from headrace.jobs.sql.run import claim_jobs, finish_jobs, record_discarded, retry_job
from headrace.jobs.state import State
from headrace.providers.client import ProviderClient, without_secret
from headrace.providers.demo.server import DemoUpstream
from headrace.queue import TIERS, JobQueue
from headrace.runtime.chores import going_on
from headrace.runtime.clock import now
from headrace.runtime.fingerprints import Fingerprint
from headrace.runtime.offload import offloaded
from headrace.settings import Settings
from headrace.stores.database import Database
from headrace.stores.failures import is_unavailable
from headrace.stores.group_commit import GroupCommit
from headrace.stores.redis import connect_redis, redis_takes_writes
from headrace.telemetry.logs import bind
from headrace.usage.spent import NOTHING, SpentUsage
from worker.attempt import Attempt, Lease, Stop
from worker.circuit import Rules
from worker.deltas import Deltas, DeltaWriter
from worker.exchange import Exchange
from worker.intake import Intake, Slot, Slots, reserve_of
from worker.leases import Leases
from worker.paths import Circuits
from worker.retry import Retry, handover_delay, next_attempt
from worker.throttle import Limits

log = logging.getLogger(__name__)

Result = TypeVar("Result")

_DATABASE_WAIT_SECONDS = 0.5
# How long a job that nobody waits for may hold a slot here because its provider's limits are used up.
_PATIENCE_SECONDS = 5.0
_CONTENT_FILTER = "content_filter"
# Attempts of a job after which a worker that does not know its model fails it, rather than leave it to another worker.
_MOST_ATTEMPTS_WITHOUT_MODEL = 20
# Seconds between two looks for jobs that no wake-up came for.
_LOOK_SECONDS = 0.5
# Between two demands on an attempt to stop.
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
        queue: JobQueue,
        publisher: Publisher,
        client: ProviderClient,
        circuits: Circuits,
        limits: Limits,
        line_slots: int,
        redis: Redis,
        tiers: Sequence[str],
        name: str,
    ) -> None:
        self._settings = settings
        self._file = file
        self._catalogue = catalogue
        self._demo = demo
        self._database = database
        self._queue = queue
        self._publisher = publisher
        self._client = client
        self._name = name
        self._redis = redis
        self._intake = Intake(
            settings,
            database,
            tiers=tiers,
            slots=Slots(settings.worker_slots, line_slots=line_slots),
            run=self._run,
            send_back=lambda job_ids, tier: self.hand_back(job_ids, tier=tier),
            reachable=lambda: self.reachable.is_set(),  # noqa: PLW0108  (there are no leases yet)
        )
        self._leases = Leases(
            settings,
            database,
            redis,
            in_hand=self._intake.in_hand.keys(),
            on_postgres_lost=self._intake.hand_back_all,
        )
        self._circuits = circuits
        self._limits = limits
        self._deltas = DeltaWriter(database, interval_seconds=settings.segment_seconds)
        self._claims = GroupCommit(self._claim)
        self._ends = GroupCommit(self._finish)
        self._claimed: dict[str, int] = {}
        """The newest attempt here of each job, from the moment that its claim returns."""
        self._doubtful: dict[str, str] = {}
        """Jobs that a claim may have given this worker although Postgres did not answer, and the tier of each."""
        self._hurried = asyncio.Event()

    @classmethod
    @contextlib.asynccontextmanager
    async def running(
        cls, settings: Settings, *, line_slots: int, tiers: Sequence[str] = TIERS
    ) -> AsyncIterator[Executor]:
        """Give an executor of some tiers with its connections and housekeeping; leaving drains it.

        Lines of batches take up to `line_slots` of its slots.
        """
        async with contextlib.AsyncExitStack() as stack:
            demo = DemoUpstream()
            stack.push_async_callback(demo.close)
            file = CatalogueFile(settings.config, demo=settings.demo)
            database = Database.connect(settings.database_url, part="worker")
            stack.push_async_callback(database.close)
            redis = connect_redis(settings.redis_url)
            stack.push_async_callback(redis.aclose)
            queue = JobQueue(redis, partial(mark_unsent, database))
            stack.push_async_callback(queue.close)
            client = ProviderClient(connections=settings.worker_slots + reserve_of(settings.worker_slots))
            stack.push_async_callback(client.close)
            name = f"{socket.gethostname()}:{os.getpid()}:{new_id('worker')[-8:]}"
            circuits = Circuits(redis, worker=name, tiers=tiers, rules=Rules(failures=settings.circuit_failures))
            limits = Limits(redis, lease_seconds=settings.lease_seconds)
            stack.push_async_callback(limits.close)
            executor = cls(
                settings,
                file,
                await demo.place(file.current),
                demo=demo,
                database=database,
                queue=queue,
                publisher=Publisher(redis, interval_seconds=settings.publish_seconds),
                client=client,
                circuits=circuits,
                limits=limits,
                line_slots=line_slots,
                redis=redis,
                tiers=tiers,
                name=name,
            )
            chores = [
                executor._deltas.run,
                executor._leases.run,
                executor._leases.hear_cancellations,
                executor._find_unclaimed,
                executor._intake.share,
                Fingerprint(settings, file, database, part="worker").run,
                circuits.run,
                limits.run,
            ]
            async with going_on(*chores):
                try:
                    yield executor
                finally:
                    await executor._drain()

    @property
    def reachable(self) -> asyncio.Event:
        """Set while Postgres answers; while it does not, this worker takes no jobs."""
        return self._leases.reachable

    async def take(self, job_ids: Sequence[str], *, tier: str) -> None:
        """Start jobs as slots come free; returns once none of them waits here.

        Jobs that wait here already are not taken twice.
        """
        await self._intake.hear(job_ids, tier=tier)

    async def reload(self) -> None:
        """Take up a changed configuration, if it is valid; attempts that are under way keep the routes they have."""
        if self._file.reload():
            self._catalogue = await self._demo.place(self._file.current)

    # -- one job ------------------------------------------------------------------------------------------------------

    async def _run(self, job_id: str, tier: str, slot: Slot) -> None:
        with bind(job=job_id):
            try:
                claim = await self._claims.submit(job_id)
            except SQLAlchemyError as error:
                log.warning("could not claim a job: %s", error)
                if is_unavailable(error):
                    self._doubtful[job_id] = tier
                    self.hand_back([job_id], tier=tier)
                return
            if claim is not None:
                job, lease = claim
                slot.hold(job.account_id, background=job.background)
                await self._run_attempt(job, lease)

    async def _run_attempt(self, job: ClaimedJob, lease: Lease) -> None:
        task = asyncio.current_task()
        assert task is not None
        attempt = Attempt(
            job,
            request=orjson.loads(job.request),
            task=task,
            lease=lease,
            deltas=Deltas(job.id, job.attempt),
        )
        self._leases.add(attempt)
        if job.streamed or (job.background and job.batch_id is None):  # nobody watches those that are waited for whole
            self._publish(attempt, 0, "started")
        try:
            response = await self._answer(attempt)
        except (UpstreamBusyError, UpstreamUnavailableError) as error:
            if isinstance(error, UpstreamUnavailableError) and self._has_peer(attempt):
                await self._put_back(attempt, Retry(job.route, job.retries, handover_delay(job.attempt)), None)
            elif not job.background:
                await self._fail(attempt, error)
            else:  # nobody was asked: that is no attempt, and it leaves its slot to a job that need not wait
                await self._put_back(attempt, Retry(job.route, job.retries, error.retry_after or 0), None)
        except UpstreamError as error:
            await self._fail(attempt, without_secret(error, attempt.secret))
        except TimeoutError:
            await self._end(attempt, State.EXPIRED, error=JobExpiredError())
        except asyncio.CancelledError:
            if attempt.stop is None:
                raise
            await self._stopped(attempt)
        except ModelNotFoundError as error:
            await self._without_model(attempt, error)
        except HeadraceError as error:
            await self._end(attempt, State.FAILED, error=error)
        except Exception:
            log.exception("an attempt broke")
            await self._end(attempt, State.FAILED, error=HeadraceError())
        else:
            await self._end(attempt, State.COMPLETED, response=response)
        finally:
            self._leases.remove(attempt)
            if self._claimed.get(job.id) == job.attempt:
                del self._claimed[job.id]

    async def _answer(self, attempt: Attempt) -> dict[str, Any]:
        """Return the provider's completion, its deltas published on the way.

        Raises:
            UpstreamError: The provider failed.
            TimeoutError: The job's deadline passed.
        """
        job, request = attempt.job, attempt.request
        attempt.routes = await offloaded(len(job.request), usable_routes, self._catalogue, request, seed=job.id)
        attempt.index = self._choose(attempt.routes, min(job.route, len(attempt.routes) - 1), job.account_id)
        route = attempt.routes[attempt.index].route
        name, provider = route.provider_name, route.provider
        pass_on = partial(self._pass_on, job, attempt.lease, attempt.deltas)
        if job.retries and self._circuits.better_elsewhere(name, job.tier, account=job.account_id):
            raise UpstreamUnavailableError  # it has failed once: another worker's path may be fine
        exchange = Exchange(self._client, job, route, request, pass_on=pass_on)
        patience = _PATIENCE_SECONDS if job.background else math.inf
        async with asyncio.timeout(job.seconds_left), contextlib.AsyncExitStack() as leave:
            paused = self._circuits.paused_seconds(route.name)
            if 0 < paused <= patience:
                await asyncio.sleep(paused)
            admission = await leave.enter_async_context(
                self._limits.admitted(
                    name,
                    provider,
                    request,
                    account=job.account_id,
                    background=job.background,
                    calls=exchange.calls,
                    patience_seconds=patience,
                )
            )
            await leave.enter_async_context(self._circuits.call(name, route.name, account=job.account_id))
            attempt.exchange = exchange
            deadline = asyncio.timeout(provider.timeout)
            try:
                async with deadline:
                    completion = await exchange.complete()
            except TimeoutError:
                if deadline.expired():
                    raise UpstreamTimeoutError(detail=f"the call took longer than {provider.timeout:g} s") from None
                raise
            finally:
                if provider.tokens_per_minute is not None:
                    admission.used(exchange.usage.total_tokens)
        if _is_withheld(completion):
            withheld = UpstreamRefusedError("The model's provider withheld its answer.", code=_CONTENT_FILTER)
            if self._next(attempt, withheld) is not None:
                raise withheld
        return completion

    def _has_peer(self, attempt: Attempt) -> bool:
        """Tell whether another worker may call the provider that this one leaves alone: its path may be fine."""
        job, provider = attempt.job, attempt.provider
        return provider is not None and self._circuits.served_elsewhere(provider, job.tier, account=job.account_id)

    def _choose(self, routes: Sequence[UsableRoute], index: int, account: str) -> int:
        """Return the route to try: the one at `index`, or the next of its kind if its provider is left alone."""
        condition = routes[index].route.condition
        for at in range(index, len(routes)):
            route = routes[at].route
            if route.condition == condition and self._circuits.allows(route.provider_name, route.name, account=account):
                return at
        return index

    def _pass_on(self, job: ClaimedJob, lease: Lease, deltas: Deltas, chunks: Sequence[dict[str, Any]]) -> None:
        """Hold chunks for Postgres and publish them; not the attempt itself, which holds the exchange that calls."""
        lines = [render_chunk(chunk) for chunk in chunks]
        frame = Frame(job.id, job.attempt, deltas.seq + 1, "delta", lines)
        deltas.append(lines)
        self._deltas.touch(deltas)
        self._publisher.publish(frame, origin=job.origin, until=lease.until)

    def _publish(self, attempt: Attempt, first_seq: int, kind: str, lines: Sequence[bytes] = ()) -> None:
        """Tell readers of a move that Postgres has accepted."""
        job = attempt.job
        self._publisher.publish(Frame(job.id, job.attempt, first_seq, kind, lines), origin=job.origin)

    # -- how an attempt ends ------------------------------------------------------------------------------------------

    async def _fail(self, attempt: Attempt, error: UpstreamError) -> None:
        """Try again if that can help, and the client has not begun to read what would then come twice."""
        job = attempt.job
        log.info("attempt %d at %s failed: %s", job.attempt, attempt.provider, error.summary())
        again = self._next(attempt, error)
        if again is None:
            await self._end(attempt, State.FAILED, error=error)
        else:
            await self._put_back(attempt, again, attempt.record("failed", error))

    async def _without_model(self, attempt: Attempt, error: ModelNotFoundError) -> None:
        """Leave a job whose model this worker does not know to another worker: its configuration may have the model."""
        job = attempt.job
        if job.attempt < _MOST_ATTEMPTS_WITHOUT_MODEL and self._circuits.tier_served_elsewhere(job.tier):
            log.warning("this worker's configuration has no model %.100r: another worker may run the job", job.model)
            await self._put_back(attempt, Retry(job.route, job.retries, handover_delay(job.attempt)), None)
            return
        message = (
            f"{error} The configuration of the worker does not have it, or no longer, though the job was accepted."
        )
        await self._end(attempt, State.FAILED, error=ModelNotFoundError(message, param=error.param))

    def _next(self, attempt: Attempt, error: UpstreamError) -> Retry | None:
        job = attempt.job
        if attempt.deltas.seq and job.streamed and not job.background:
            return None
        return next_attempt(
            error,
            routes=[usable.route for usable in attempt.routes],
            route=attempt.index,
            retries=job.retries if attempt.index == job.route else 0,
            attempts_per_route=self._settings.attempts_per_route,
            seconds_left=job.seconds_left,
        )

    async def _stopped(self, attempt: Attempt) -> None:
        if attempt.stop is Stop.CANCELLED:
            await self._end(attempt, State.CANCELLED, error=JobCancelledError())
        elif attempt.stop is Stop.DRAINED:
            job = attempt.job
            await self._put_back(attempt, Retry(job.route, job.retries, 0), attempt.record("returned"))
        else:
            await self._discard(attempt, attempt.spent())

    async def _put_back(self, attempt: Attempt, again: Retry, record: str | None) -> None:
        job = attempt.job
        attempt.ending = True
        await self._deltas.settle(attempt.deltas)
        spent = attempt.spent() if attempt.started else None
        state = await self._patiently(
            lambda: retry_job(
                self._database,
                job.id,
                job.attempt,
                delay_seconds=again.delay_seconds,
                route=again.route,
                retries=again.retries,
                record=record,
                cancelled=orjson.dumps(JobCancelledError().document()).decode(),
                spent=spent,
            )
        )
        if state is None:
            await self._discard(attempt, spent)
        elif state is State.CANCELLED:
            self._publish(attempt, 0, state.value)
        elif state is State.QUEUED:
            self._publish(attempt, 0, "retrying")
            asyncio.get_running_loop().call_later(
                again.delay_seconds, lambda: self._queue.wake([job.id], tier=job.tier)
            )

    async def _end(
        self,
        attempt: Attempt,
        state: State,
        *,
        response: dict[str, Any] | None = None,
        error: HeadraceError | None = None,
    ) -> None:
        """Write the end, then publish it: in this order, so that no client learns of what may yet be lost."""
        job, deltas = attempt.job, attempt.deltas
        attempt.ending = True
        await self._deltas.settle(deltas)
        body = orjson.dumps(response if error is None else error.document())
        # A provider that failed before any text charges nothing.
        spent = attempt.spent() if attempt.started or attempt.stop is not None else None
        finished = FinishedJob(
            id=job.id,
            attempt=job.attempt,
            state=state,
            provider=attempt.provider,
            response=body.decode() if error is None else None,
            error=None if error is None else body.decode(),
            record=attempt.record(state.value, error),
            delta_count=deltas.seq,
            seconds_since_first_token=deltas.seconds_since_first(),
            segment=deltas.segment(),
            spent=spent,
        )
        try:
            ours = await self._patiently(lambda: self._ends.submit(finished))
        except SQLAlchemyError:
            log.exception("an end could not be written as it was")
            body = orjson.dumps(HeadraceError().document())
            broken = replace(finished, state=State.FAILED, response=None, error=body.decode(), segment=None)
            state = broken.state
            ours = await self._patiently(lambda: self._ends.submit(broken))
        if ours:
            charge = NOTHING if spent is None else spent.charge
            self._publish(attempt, deltas.seq + 1, state.value, [body, charge.pack()])
        else:
            await self._discard(attempt, spent)

    async def _discard(self, attempt: Attempt, spent: SpentUsage | None) -> None:
        """Write what an attempt spent that lost its job, as its provider is paid all the same."""
        attempt.ending = True
        job = attempt.job
        log.info("attempt %d lost its job", job.attempt)
        if spent is not None:
            await self._patiently(lambda: record_discarded(self._database, job.id, job.attempt, spent))

    async def _patiently(self, write: Callable[[], Awaitable[Result]]) -> Result:
        """Return what a write returns, however long Postgres is unavailable: no answer of a provider is thrown away.

        Raises:
            sqlalchemy.exc.SQLAlchemyError: Postgres is there and refuses it.
        """
        while True:
            try:
                return await write()
            except SQLAlchemyError as error:
                if not is_unavailable(error):
                    raise
                log.warning("Postgres is unavailable, an attempt's end waits for it: %s", error)
                self._leases.postgres_lost(error)
                await asyncio.sleep(_DATABASE_WAIT_SECONDS)

    async def _claim(self, job_ids: Sequence[str]) -> list[tuple[ClaimedJob, Lease] | None]:
        if not self.reachable.is_set():
            raise sa.exc.TimeoutError("Postgres is unavailable.")
        settings, asked = self._settings, now()
        try:
            jobs = await claim_jobs(
                self._database,
                job_ids,
                held=[job_id for job_id in job_ids if job_id in self._claimed],
                worker=self._name,
                lease_seconds=settings.lease_seconds,
                patience_seconds=settings.heartbeat_seconds,
            )
        except SQLAlchemyError as error:
            if is_unavailable(error):
                self._leases.postgres_lost(error)
            raise
        self._claimed.update((job.id, job.attempt) for job in jobs)
        claimed = {job.id: (job, Lease(asked + settings.lease_seconds)) for job in jobs}
        # Of an id that was sent twice, one task runs the job.
        return [claimed.pop(job_id, None) for job_id in job_ids]

    async def _finish(self, ended: Sequence[FinishedJob]) -> list[bool]:
        return await finish_jobs(self._database, ended)

    # -- all jobs -----------------------------------------------------------------------------------------------------

    async def _find_unclaimed(self) -> None:
        """Find what no wake-up came for, and what claims left in doubt; until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            self._leases.deaf = deaf = not await redis_takes_writes(self._redis)
            if self.reachable.is_set():
                self._settle_doubts()
                await self._intake.find_unclaimed(deaf=deaf)

    def _settle_doubts(self) -> None:
        """Claim again what a claim that got no answer may have given this worker. No other worker can."""
        doubtful, self._doubtful = self._doubtful, {}
        for job_id, tier in doubtful.items():
            self._intake.start(job_id, tier)

    async def _drain(self) -> None:
        """Let running jobs finish for a while, then hand the rest back so that they start elsewhere at once."""
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
        until = time.monotonic() + self._settings.lease_seconds  # then other workers take them anyhow
        while tasks and time.monotonic() < until:
            for attempt in self._leases.attempts:
                attempt.insist()
                attempt.interrupt(Stop.DRAINED)  # one that was only claimed meanwhile too
            await asyncio.wait(tasks, timeout=_INSIST_SECONDS)
        if tasks:
            log.warning("%d jobs do not stop: their leases run out", len(tasks))

    def hand_back(self, job_ids: Sequence[str], *, tier: str) -> None:
        """Send the wake-ups of jobs again, so that they start elsewhere."""
        self._queue.wake(job_ids, tier=tier)

    def hurry(self) -> None:
        """Hand everything back now, when draining."""
        self._hurried.set()


def _is_withheld(completion: Mapping[str, Any]) -> bool:
    """Tell whether all that the model said was withheld by a content filter."""
    choices: list[dict[str, Any]] = completion.get("choices") or []
    return bool(choices) and all(choice.get("finish_reason") == _CONTENT_FILTER for choice in choices)
