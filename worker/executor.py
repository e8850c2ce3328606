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
from redis.asyncio import Redis
from sqlalchemy.exc import SQLAlchemyError

from headrace import live
from headrace.catalogue import Catalogue
from headrace.catalogue_file import CatalogueFile
from headrace.chores import going_on
from headrace.database import Database, is_away
from headrace.errors import (
    HeadraceError,
    JobCancelledError,
    JobExpiredError,
    UpstreamBusyError,
    UpstreamError,
    UpstreamRefusedError,
    UpstreamTimeoutError,
    UpstreamUnavailableError,
)
from headrace.follow import render_chunk
from headrace.group_commit import GroupCommit
from headrace.ids import new_id
from headrace.jobs import queries
from headrace.jobs.queries import ClaimedJob, FinishedJob
from headrace.jobs.state import State
from headrace.live import Frame, Publisher
from headrace.queue import TIERS, JobQueue
from headrace.routing import UsableRoute, usable_routes
from headrace.settings import Settings
from headrace.telemetry import bind
from headrace.usage.spent import NOTHING
from worker.attempt import Attempt, Stop
from worker.circuit import Circuits, Rules
from worker.deltas import DeltaWriter
from worker.demo import DemoUpstream
from worker.exchange import Exchange
from worker.limits import Limits
from worker.providers.client import ProviderClient, without_secret
from worker.router import Retry, next_attempt

log = logging.getLogger(__name__)

Result = TypeVar("Result")

_DATABASE_WAIT_SECONDS = 0.5
# How long a job that nobody waits for may hold a slot here because its provider's limits are used up.
_PATIENCE_SECONDS = 5.0
_CONTENT_FILTER = "content_filter"
# Between two looks for jobs that no message came for, and how many are taken at a time.
_LOOK_SECONDS = 0.5
_MOST_UNCLAIMED = 64
# While cancellations are not heard, they are looked for so often; and one that comes before its job is remembered so
# long.
_DEAF_SECONDS = 0.7
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
    ) -> None:
        self._settings = settings
        self._file = file
        self._catalogue = catalogue
        self._demo = demo
        self._database = database
        self._queue = queue
        self._publisher = publisher
        self._client = client
        self._name = f"{socket.gethostname()}:{os.getpid()}:{new_id('worker')[-8:]}"
        self._slots = asyncio.Semaphore(settings.worker_slots)
        self._line_slots = asyncio.Semaphore(line_slots)
        self._in_hand: dict[str, None] = {}
        """Jobs that came here and wait for a slot, in their order."""
        self._cancelled: dict[str, float] = {}
        """Jobs that somebody has cancelled, which may be on their way here, and when we heard of it."""
        self._circuits = circuits
        self._limits = limits
        self._deltas = DeltaWriter(database, interval_seconds=settings.segment_seconds)
        self._claims = GroupCommit(self._claim)
        self._ends = GroupCommit(self._finish)
        self._attempts: dict[str, Attempt] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._redis = redis
        self._tiers = tiers
        self._heard_at = 0.0
        self._draining = False
        self._deaf = False
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
            file = CatalogueFile(settings.config)
            database = Database.connect(settings.database_url)
            stack.push_async_callback(database.close)
            redis = live.connect(settings.redis_url)
            stack.push_async_callback(redis.aclose)
            queue = JobQueue(redis)
            stack.push_async_callback(queue.close)
            client = ProviderClient(connections=settings.worker_slots)
            stack.push_async_callback(client.close)
            circuits = Circuits(redis, rules=Rules(failures=settings.circuit_failures))
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
            )
            chores = [
                executor._deltas.run,
                executor._heartbeat,
                executor._hear_cancellations,
                executor._find_unclaimed,
                circuits.run,
                limits.run,
            ]
            async with going_on(*chores):
                try:
                    yield executor
                finally:
                    await executor._drain()

    async def take(self, job_ids: Sequence[str]) -> None:
        """Start jobs as slots come free; returns once each has one, or has been handed back.

        Jobs that wait here already are not taken twice.
        """
        self._heard_at = asyncio.get_running_loop().time()
        await self._take(job_ids)

    async def take_lines(self, job_ids: Sequence[str]) -> None:
        """Start lines of batches as `take` does."""
        self._heard_at = asyncio.get_running_loop().time()
        await self._take(job_ids, slots=self._line_slots)

    async def _take(self, job_ids: Sequence[str], *, slots: asyncio.Semaphore | None = None) -> None:
        fresh = [job_id for job_id in job_ids if job_id not in self._in_hand]
        self._in_hand.update(dict.fromkeys(fresh))
        if self._draining:
            await self._hand_back()
            return
        for job_id in fresh:
            await self._start(job_id, slots)

    async def _start(self, job_id: str, slots: asyncio.Semaphore | None) -> None:
        """Run a job as soon as there is a slot for it, one of these too; not if it was handed back meanwhile."""
        if slots is not None:
            await slots.acquire()
        await self._slots.acquire()
        if self._draining:
            self._slots.release()
            if slots is not None:
                slots.release()
            return
        self._in_hand.pop(job_id, None)
        task = asyncio.create_task(self._run(job_id))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if slots is not None:
            task.add_done_callback(lambda _: slots.release())

    async def reload(self) -> None:
        """Take up a changed configuration, if it is valid; attempts that are under way keep the routes they have."""
        if self._file.reload():
            self._catalogue = await self._demo.place(self._file.current)

    # -- one job ------------------------------------------------------------------------------------------------------

    async def _run(self, job_id: str) -> None:
        try:
            with bind(job=job_id):
                try:
                    job = await self._claims.submit(job_id)
                except SQLAlchemyError as error:
                    log.warning("could not claim, the scheduler will send it again: %s", error)
                    return
                if job is not None:
                    await self._run_attempt(job)
        finally:
            self._slots.release()

    async def _run_attempt(self, job: ClaimedJob) -> None:
        task = asyncio.current_task()
        assert task is not None
        attempt = Attempt(job, request=orjson.loads(job.request), task=task)
        self._attempts[job.id] = attempt
        if job.id in self._cancelled:
            attempt.interrupt(Stop.CANCELLED)
        if job.streamed or (job.background and job.batch_id is None):  # nobody watches those that are waited for whole
            self._publish(attempt, 0, "started")
        try:
            response = await self._answer(attempt)
        except (UpstreamBusyError, UpstreamUnavailableError) as error:
            if not job.background:
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
        except HeadraceError as error:
            await self._end(attempt, State.FAILED, error=error)
        except Exception:
            log.exception("an attempt broke")
            await self._end(attempt, State.FAILED, error=HeadraceError())
        else:
            await self._end(attempt, State.COMPLETED, response=response)
        finally:
            del self._attempts[job.id]

    async def _answer(self, attempt: Attempt) -> dict[str, Any]:
        """Return the provider's completion, its deltas published on the way.

        Raises:
            UpstreamError: The provider failed.
            TimeoutError: The job's deadline passed.
        """
        job, request = attempt.job, attempt.request
        attempt.routes = usable_routes(self._catalogue, request, seed=job.id)
        attempt.index = self._choose(attempt.routes, min(job.route, len(attempt.routes) - 1))
        route = attempt.routes[attempt.index].route
        name, provider = route.provider_name, route.provider
        exchange = Exchange(self._client, job, route, request, pass_on=partial(self._pass_on, attempt))
        patience = _PATIENCE_SECONDS if job.background else math.inf
        async with asyncio.timeout(job.seconds_left), contextlib.AsyncExitStack() as leave:
            paused = self._circuits.paused_seconds(route.name)
            if 0 < paused <= patience:
                await asyncio.sleep(paused)
            admission = await leave.enter_async_context(
                self._limits.admitted(name, provider, request, calls=exchange.calls, patience_seconds=patience)
            )
            await leave.enter_async_context(self._circuits.call(name, route.name))
            attempt.exchange = exchange
            deadline = asyncio.timeout(provider.timeout)
            try:
                async with deadline:
                    completion = await exchange.complete()
            except TimeoutError:
                if deadline.expired():
                    raise UpstreamTimeoutError from None
                raise
            finally:
                if provider.tokens_per_minute is not None:
                    admission.used(exchange.usage.total_tokens)
        if _is_withheld(completion):
            withheld = UpstreamRefusedError("The model's provider withheld its answer.", code=_CONTENT_FILTER)
            if self._next(attempt, withheld) is not None:
                raise withheld
        return completion

    def _choose(self, routes: Sequence[UsableRoute], index: int) -> int:
        """Return the route to try: the one at `index`, or the next of its kind if its provider is left alone."""
        condition = routes[index].route.condition
        for at in range(index, len(routes)):
            route = routes[at].route
            if (
                route.condition == condition
                and self._circuits.allows(route.provider_name)
                and self._circuits.allows(route.name)
            ):
                return at
        return index

    def _pass_on(self, attempt: Attempt, chunks: Sequence[dict[str, Any]]) -> None:
        lines = [render_chunk(chunk) for chunk in chunks]
        first_seq = attempt.seq + 1
        attempt.append(lines)
        self._deltas.touch(attempt)
        self._publish(attempt, first_seq, "delta", lines)

    def _publish(self, attempt: Attempt, first_seq: int, kind: str, lines: Sequence[bytes] = ()) -> None:
        job = attempt.job
        self._publisher.publish(Frame(job.id, job.attempt, first_seq, kind, lines), origin=job.origin)

    # -- how an attempt ends ------------------------------------------------------------------------------------------

    async def _fail(self, attempt: Attempt, error: UpstreamError) -> None:
        """Try again if that can help, and the client has not begun to read what would then come twice."""
        job = attempt.job
        log.info("attempt %d at %s failed: %s", job.attempt, attempt.provider, error)
        again = self._next(attempt, error)
        if again is None:
            await self._end(attempt, State.FAILED, error=error)
        else:
            await self._put_back(attempt, again, attempt.record("failed", error))

    def _next(self, attempt: Attempt, error: UpstreamError) -> Retry | None:
        job = attempt.job
        if attempt.seq and job.streamed and not job.background:
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

    async def _put_back(self, attempt: Attempt, again: Retry, record: str | None) -> None:
        job = attempt.job
        attempt.ending = True
        await self._deltas.settle(attempt)
        state = await self._patiently(
            lambda: queries.retry_job(
                self._database,
                job.id,
                job.attempt,
                delay_seconds=again.delay_seconds,
                route=again.route,
                retries=again.retries,
                record=record,
                cancelled=orjson.dumps(JobCancelledError().document()).decode(),
                spent=attempt.spent() if attempt.started else None,
            )
        )
        if state is State.CANCELLED:
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
        """Write the end, then tell whoever waits: in this order, so that nobody hears of what may yet be lost."""
        job = attempt.job
        attempt.ending = True
        await self._deltas.settle(attempt)
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
            delta_count=attempt.seq,
            seconds_since_first_token=attempt.seconds_since_first_token(),
            segment=attempt.segment(),
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
            self._publish(attempt, attempt.seq + 1, state.value, [body, charge.pack()])

    async def _patiently(self, write: Callable[[], Awaitable[Result]]) -> Result:
        """Return what a write returns, however long Postgres is away: what a provider sent is not thrown away.

        Raises:
            sqlalchemy.exc.SQLAlchemyError: Postgres is there and refuses it.
        """
        while True:
            try:
                return await write()
            except SQLAlchemyError as error:
                if not is_away(error):
                    raise
                log.warning("Postgres is away, an attempt's end waits for it: %s", error)
                await asyncio.sleep(_DATABASE_WAIT_SECONDS)

    async def _claim(self, job_ids: Sequence[str]) -> list[ClaimedJob | None]:
        jobs = await queries.claim_jobs(
            self._database, job_ids, worker=self._name, lease_seconds=self._settings.lease_seconds
        )
        claimed = {job.id: job for job in jobs}
        # Of an id that was sent twice, one task runs the job.
        return [claimed.pop(job_id, None) for job_id in job_ids]

    async def _finish(self, ended: Sequence[FinishedJob]) -> list[bool]:
        return await queries.finish_jobs(self._database, ended)

    # -- all jobs -----------------------------------------------------------------------------------------------------

    async def _heartbeat(self) -> None:
        """Extend every lease, and stop what is not ours any more or was cancelled while Redis was away."""
        while True:
            await asyncio.sleep(min(self._settings.heartbeat_seconds, _DEAF_SECONDS if self._deaf else math.inf))
            try:
                await self._beat()
            except SQLAlchemyError as error:
                log.warning("could not extend leases: %s", error)

    async def _beat(self) -> None:
        settings, database = self._settings, self._database
        held = [(attempt.job.id, attempt.job.attempt) for attempt in self._attempts.values()]
        if held:
            to_stop = await queries.extend_leases(
                database, held, lease_seconds=settings.lease_seconds, patience_seconds=settings.heartbeat_seconds
            )
            for job_id, number, lost in to_stop:
                attempt = self._attempts.get(job_id)
                if attempt is not None and attempt.job.attempt == number:
                    attempt.interrupt(Stop.LOST if lost else Stop.CANCELLED)
        if self._in_hand:
            await queries.keep_in_hand(database, list(self._in_hand))

    async def _hear_cancellations(self) -> None:
        loop = asyncio.get_running_loop()
        async for job_id in live.cancelled_jobs(self._redis):
            self._cancelled[job_id] = loop.time()
            if (attempt := self._attempts.get(job_id)) is not None:
                attempt.interrupt(Stop.CANCELLED)
            while (oldest := next(iter(self._cancelled))) and self._cancelled[oldest] < loop.time() - _DEAF_SECONDS:
                del self._cancelled[oldest]

    async def _find_unclaimed(self) -> None:
        """While there is nothing else to do, take what no message came for from Postgres.

        Redis may be away, or have lost its lists; or Celery's consumer may hang, as it has done after reconnections.
        """
        while not self._draining:
            await asyncio.sleep(_LOOK_SECONDS)
            self._deaf = away = not await live.answers(self._redis)
            quiet = asyncio.get_running_loop().time() - self._heard_at > self._settings.resend_seconds
            if self._slots.locked() or not (away or quiet):
                continue
            try:
                seconds = 0 if away else self._settings.resend_seconds
                found = await queries.find_unclaimed(
                    self._database, self._tiers, seconds=seconds, limit=_MOST_UNCLAIMED
                )
            except SQLAlchemyError as error:
                log.warning("could not look for jobs: %s", error)
                continue
            await self._take([job.id for job in found if job.tier != "batch"])
            await self._take([job.id for job in found if job.tier == "batch"], slots=self._line_slots)

    async def _drain(self) -> None:
        """Let running jobs finish for a while, then hand the rest back so that they start elsewhere at once."""
        self._draining = True
        await self._hand_back()
        if self._tasks and not self._hurried.is_set():
            log.info("draining %d jobs, for at most %g s", len(self._tasks), self._settings.drain_seconds)
            ended = asyncio.ensure_future(asyncio.wait(self._tasks))
            hurried = asyncio.ensure_future(self._hurried.wait())
            await asyncio.wait(
                [ended, hurried], timeout=self._settings.drain_seconds, return_when=asyncio.FIRST_COMPLETED
            )
            ended.cancel()
            hurried.cancel()
        until = time.monotonic() + self._settings.lease_seconds  # then they are somebody else's anyhow
        while self._tasks and time.monotonic() < until:
            for attempt in list(self._attempts.values()):
                attempt.insist()
                attempt.interrupt(Stop.DRAINED)  # one that was only claimed meanwhile too
            await asyncio.wait(self._tasks, timeout=_INSIST_SECONDS)
        if self._tasks:
            log.warning("%d jobs do not stop: their leases run out", len(self._tasks))

    async def _hand_back(self) -> None:
        """Send wake-ups for what has no slot here yet, so that it starts elsewhere."""
        job_ids = list(self._in_hand)
        self._in_hand.clear()
        if not job_ids:
            return
        try:
            for job in await queries.find_queued(self._database, job_ids):
                self._queue.wake([job.id], tier=job.tier)
        except SQLAlchemyError as error:
            log.warning("%d jobs wait for the scheduler to find them: %s", len(job_ids), error)

    def hurry(self) -> None:
        """Hand everything back now, when draining."""
        self._hurried.set()


def _is_withheld(completion: Mapping[str, Any]) -> bool:
    """Tell whether all that the model said was withheld by a content filter."""
    choices: list[dict[str, Any]] = completion.get("choices") or []
    return bool(choices) and all(choice.get("finish_reason") == _CONTENT_FILTER for choice in choices)
