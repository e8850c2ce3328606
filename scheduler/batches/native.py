"""Batches that a provider runs by its own batch API, at its own price; the results look as if a worker had run them.

The lines become jobs as any others do, but a parcel holds their claims from the start, until the batch's deadline. The
provider's result of a line ends its job. A line without a result, or with a failure that a retry may fix, goes to the
workers. Once a parcel is given up, workers also run what is in no parcel yet; the other parcels go on. Shortly before
the deadline, and when the batch is cancelled, the provider is asked to cancel its parcels and return what it has run.

A parcel's row has its state, so that after the death of a scheduler the next one goes on: before it submits a parcel
again, it asks the provider whether the parcel has arrived.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import orjson

from headrace.batches.parcels import (
    NativeParcel,
    list_parcels,
    mark_cancelled,
    move_parcel,
    open_parcel,
    run_here,
)
from headrace.batches.results import CANCELLED_ERROR
from headrace.batches.state import BatchState
from headrace.catalogue.models import Catalogue, Provider, Route
from headrace.catalogue.routing import CONDITIONS
from headrace.errors import ModelNotFoundError, UpstreamError, UpstreamKeyError
from headrace.formats.chat.normaliser import Normaliser
from headrace.formats.chat.tool_calls import call_ids
from headrace.formats.chat.usage import estimate_usage, parse_usage
from headrace.formats.registry import CLIENT_FORMATS
from headrace.jobs.records import FinishedJob, HeldLine
from headrace.jobs.sql.lines import read_held, release_lines
from headrace.jobs.sql.run import finish_jobs
from headrace.jobs.state import State
from headrace.providers.batch_apis.apis import BATCH_APIS, BatchApi
from headrace.providers.batch_apis.parcel import NativeResult
from headrace.providers.client import ProviderClient
from headrace.queue import LINES, JobQueue
from headrace.stores.connections import Row
from headrace.stores.database import Database
from headrace.telemetry import rates
from headrace.telemetry.metrics import ATTEMPTS, JOBS_ENDED, PARCELS, known_model, known_route
from headrace.usage.measures import count_spent
from headrace.usage.spent import spent_on
from scheduler.batches.allowance import Purse
from scheduler.batches.feed import Feeder
from scheduler.batches.submissions import Submissions

log = logging.getLogger(__name__)

# Retryable failures in a row after which workers run the lines of a parcel that its provider may not have.
_MOST_FAILURES = 5
# Seconds between two questions, at most, while parcels are cancelled: a client or the workers wait for what is left.
_STOPPING_POLL_SECONDS = 5.0
# Seconds after a failed question until the next one, at most, while parcels are cancelled: an outage may last minutes.
_STOPPING_RETRY_SECONDS = 60.0
# Seconds of silence after which a question about a parcel has failed: a provider answers it at once, or is unavailable.
# A batch asks about its parcels one after the other, and has to notice its deadline in between.
_ANSWER_SECONDS = 30.0
# Seconds until the next try to release lines that another statement has locked.
_LOCKED_SECONDS = 0.1
# Results whose jobs end in one statement, and their bytes; a single result may have more.
_RESULTS_AT_ONCE = 100
_RESULT_BYTES_AT_ONCE = 16 * 1024 * 1024


class NativeBatch:
    """One round of one batch's work with its provider."""

    def __init__(
        self,
        database: Database,
        queue: JobQueue,
        client: ProviderClient,
        catalogue: Catalogue,
        batch: Row,
        *,
        questions: ProviderClient,
        purse: Purse,
        poll_seconds: float,
        returned: Callable[[int], None],
        submissions: Submissions,
        turn: str | None,
        wants_turn: Callable[[str], None],
    ) -> None:
        """Call `returned` with the number of lines that are going to leave their parcel, or have left it.

        Questions about parcels have a client of their own, so that none waits for an upload or a download to end.
        Lines are handed over to the provider of the `turn` alone. Call `wants_turn` with another that is to get lines.
        """
        self._database = database
        self._queue = queue
        self._client = client
        self._questions = questions
        self._catalogue = catalogue
        self._batch = batch
        self._purse = purse
        self._poll_seconds = poll_seconds
        self._returned = returned
        self._submissions = submissions
        self._turn = turn
        self._wants_turn = wants_turn
        self._is_stopping = batch.ends_soon or batch.state == BatchState.CANCELLING
        # It ends when a parcel is given up, which the batch's row in this round does not show.
        self._is_native = batch.native_route is not None

    async def go_on(self) -> None:
        """Hand lines to the provider, and look at the parcels that are due."""
        if self._batch.ends_soon and self._is_native:
            log.info("workers run what a provider has not run of this batch, which ends soon")
            await self._run_here()
        parcels = await list_parcels(
            self._database, self._batch.id, seconds=self._seconds, retry_seconds=self._retry_seconds
        )
        for parcel in parcels:
            await self._serve(parcel)
        if self._has_more and all(parcel.state == "submitted" for parcel in parcels):
            opened = await open_parcel(self._database, self._batch.id)
            if opened is not None:
                await self._serve(opened)

    @property
    def _seconds(self) -> float:
        """Seconds between two questions about a parcel."""
        return min(self._poll_seconds, _STOPPING_POLL_SECONDS) if self._is_stopping else self._poll_seconds

    @property
    def _retry_seconds(self) -> float:
        """Seconds between a failed question and the next one."""
        return min(self._poll_seconds, _STOPPING_RETRY_SECONDS) if self._is_stopping else self._poll_seconds

    @property
    def _has_more(self) -> bool:
        """Whether the batch has more lines for its provider."""
        return self._is_native and not self._is_stopping and self._batch.fed < self._batch.total

    async def _serve(self, parcel: NativeParcel) -> None:
        route = self._route(parcel.route)
        if route is None:
            why = "the route is not in the configuration any more"
            await self._give_up(parcel, why if parcel.route else "the parcel's route is not known")
        elif parcel.state == "filling" and (self._is_stopping or not self._is_native):
            await self._close(parcel.id)
        elif parcel.due:
            serve = self._look if parcel.state == "submitted" else self._hand_over
            await serve(BATCH_APIS[route.provider.kind], route, parcel)

    def _route(self, name: str | None) -> Route | None:
        try:
            routes = self._catalogue.routes(self._batch.model or "")
        except ModelNotFoundError:
            return None
        return next((route for route in routes if route.name == name and route.native_batch), None)

    # -- to the provider -------------------------------------------------------------------------------------------

    async def _hand_over(self, api: BatchApi, route: Route, parcel: NativeParcel) -> None:
        if route.provider_name != self._turn and not self._is_stopping:  # else nothing is handed over
            self._wants_turn(route.provider_name)
            return
        if self._submissions.draining:
            return
        with self._submissions.one():
            if parcel.state != "filling" or await self._fill(api, parcel):
                await self._submit(api, route, parcel)

    async def _submit(self, api: BatchApi, route: Route, parcel: NativeParcel) -> None:
        try:
            remote_id = None
            if parcel.state == "submitting":  # an earlier try may have reached the provider
                remote_id = await api.find(self._questions, _asked(route), parcel.id)
            if remote_id is None and self._is_stopping:
                await self._close(parcel.id)
                return
            if remote_id is None:
                await move_parcel(self._database, parcel.id, "submitting", failures=parcel.failures)
                async with aclosing(self._lines(parcel.id)) as lines:
                    submitted = await api.submit(self._client, route, lines, parcel_id=parcel.id)
                remote_id = submitted.remote_id
                if submitted.left_behind:
                    await self._release(parcel.id, submitted.left_behind)
        except UpstreamError as error:
            await self._failed(parcel, error)
            return
        log.info("handed a parcel to %s: %s", route.provider_name, remote_id)
        PARCELS.labels(route.provider_name, "submitted").inc()
        await move_parcel(self._database, parcel.id, "submitted", remote_id=remote_id, seconds=self._poll_seconds)

    async def _fill(self, api: BatchApi, parcel: NativeParcel) -> bool:
        """Put as many lines into a parcel as budgets pay for. Returns whether the parcel has any line."""
        most = min(api.MOST_LINES, self._batch.total - self._batch.fed)
        lines = await self._purse.take(self._database, self._catalogue, self._batch, most)
        feeder = Feeder(self._database, self._queue, self._batch)
        try:
            await feeder.feed(lines, parcel=parcel.id)
        finally:
            await feeder.close()
        return bool(await read_held(self._database, self._batch.id, parcel.id, limit=1))

    async def _lines(self, parcel_id: str) -> AsyncGenerator[tuple[str, dict[str, Any]], None]:
        after = 0
        while held := await read_held(self._database, self._batch.id, parcel_id, after=after):
            for line in held:
                yield line.id, _chat(line)[1]
            after = held[-1].line

    def _is_hopeless(self, parcel: NativeParcel, error: UpstreamError) -> bool:
        """Return whether a parcel is given up after a failed call.

        To run again what a provider has costs twice as much, so the scheduler waits for it until the batch ends soon:
        for a provider that is unavailable, and for a key that is not valid at the moment.
        """
        if parcel.remote_id is None or self._is_stopping:
            return not error.retryable or parcel.failures + 1 >= _MOST_FAILURES
        return not error.retryable and not isinstance(error, UpstreamKeyError)

    async def _failed(self, parcel: NativeParcel, error: UpstreamError) -> None:
        if self._is_hopeless(parcel, error):
            await self._give_up(parcel, error.message, logged=error.summary())
            return
        log.warning("a provider's batch API failed, trying again: %s", error.summary())
        PARCELS.labels(parcel.provider, "retried").inc()
        await move_parcel(
            self._database,
            parcel.id,
            "submitted" if parcel.remote_id else "submitting",
            failures=parcel.failures + 1,
            error=error.message,
            seconds=self._retry_seconds,
        )

    async def _give_up(self, parcel: NativeParcel, why: str, *, logged: str | None = None) -> None:
        """Let workers run the lines of a parcel, and those that are in no parcel yet. Other parcels go on.

        `why` is stored with the parcel. The log has `logged` instead, where `why` is a provider's own text.
        """
        log.warning("workers run what a provider was to run of this batch: %s", logged or why)
        # `_run_here` comes first: if the scheduler dies in between, the parcel is served, and given up, again.
        await self._run_here()
        PARCELS.labels(parcel.provider, "given_up").inc()
        await self._close(parcel.id, error=why)

    async def _run_here(self) -> None:
        await run_here(self._database, self._batch.id)
        self._is_native = False

    # -- from the provider -----------------------------------------------------------------------------------------

    async def _look(self, api: BatchApi, route: Route, parcel: NativeParcel) -> None:
        assert parcel.remote_id is not None
        if self._is_stopping and not parcel.cancelled:
            await self._cancel(api, route, parcel, parcel.remote_id)
        try:
            status = await api.poll(self._questions, _asked(route), parcel.remote_id)
            if status.state == "ended":
                async with aclosing(api.results(self._client, route.provider, status)) as results:
                    await self._take(route, api, parcel, results)
        except UpstreamError as error:
            if self._is_hopeless(parcel, error) and not self._is_stopping:
                await self._cancel(api, route, parcel, parcel.remote_id)
            await self._failed(parcel, error)
            return
        if status.state == "running":
            await move_parcel(self._database, parcel.id, "submitted", seconds=self._seconds)
        elif status.error is not None:
            await self._give_up(parcel, status.error.message, logged=status.error.summary())
        else:
            PARCELS.labels(route.provider_name, "ended").inc()
            await self._close(parcel.id)

    async def _cancel(self, api: BatchApi, route: Route, parcel: NativeParcel, remote_id: str) -> None:
        """Ask the provider to cancel its batch. If it does not, the next look asks again: a poll tells how it goes."""
        try:
            await api.cancel(self._questions, _asked(route), remote_id)
        except UpstreamError as error:
            log.warning("a provider did not cancel its batch: %s", error.summary())
            return
        await mark_cancelled(self._database, parcel.id)

    async def _take(
        self, route: Route, api: BatchApi, parcel: NativeParcel, results: AsyncIterator[NativeResult]
    ) -> None:
        taken: dict[str, NativeResult] = {}
        size = 0
        async for result in results:
            if not _for_workers(result):
                taken[result.job_id] = result
                size += result.size
            if len(taken) >= _RESULTS_AT_ONCE or size >= _RESULT_BYTES_AT_ONCE:
                await self._finish(route, api, parcel, taken)
                taken, size = {}, 0
        await self._finish(route, api, parcel, taken)

    async def _finish(self, route: Route, api: BatchApi, parcel: NativeParcel, taken: dict[str, NativeResult]) -> None:
        after, job_ids = 0, list(taken)
        while job_ids and (
            held := await read_held(self._database, self._batch.id, parcel.id, after=after, job_ids=job_ids)
        ):
            jobs = [_ended(route, api, line, taken[line.id]) for line in held]
            self._returned(len(jobs))
            for job, ours in zip(jobs, await finish_jobs(self._database, jobs), strict=True):
                if ours:
                    self._count(route, job)
            after = held[-1].line

    def _count(self, route: Route, job: FinishedJob) -> None:
        """Count a line that the provider ended, as the worker counts the jobs that it ends."""
        model = known_model(self._batch.model, self._catalogue.models)
        called = known_route(route.name, self._catalogue.written_routes)
        ATTEMPTS.labels(route.provider_name, model, job.state.value, called).inc()
        JOBS_ENDED.labels(job.state.value, LINES, model).inc()
        rates.count(job.state.value)
        if job.spent is not None:
            count_spent(model, job.spent)

    async def _close(self, parcel_id: str, *, error: str | None = None) -> None:
        """Let workers run the lines that a parcel still holds, and mark it as done."""
        await self._release(parcel_id)
        await move_parcel(self._database, parcel_id, "done", error=error)

    async def _release(self, parcel_id: str, job_ids: list[str] | None = None) -> None:
        woken = False
        while True:
            moved = await release_lines(
                self._database, self._batch.id, parcel_id, job_ids=job_ids, error=CANCELLED_ERROR
            )
            if not moved:
                if not await read_held(self._database, self._batch.id, parcel_id, job_ids=job_ids, limit=1):
                    return
                await asyncio.sleep(_LOCKED_SECONDS)
            self._returned(len(moved))
            queued = [job.id for job in moved if job.state is State.QUEUED]
            if queued and not woken:
                # The first lines get a wake-up here. The scheduler resends those of the others, a part at a time.
                self._queue.wake(queued, tier=LINES)
                woken = True


def _asked(route: Route) -> Provider:
    """Return a route's provider with the time that it has for a question, which is no completion."""
    provider = route.provider
    return provider.model_copy(update={"read_timeout": min(provider.read_timeout, _ANSWER_SECONDS)})


def _for_workers(result: NativeResult) -> bool:
    """Return whether a worker may succeed where a provider's batch failed. It gets the line when the parcel closes."""
    return result.retryable or (result.error is not None and result.error.code in CONDITIONS)


def _chat(line: HeldLine) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the request of a line as it came, and the chat request that it means."""
    document: dict[str, Any] = orjson.loads(line.request)
    return document, CLIENT_FORMATS[line.format].translate(document).chat


def _ended(route: Route, api: BatchApi, line: HeldLine, result: NativeResult) -> FinishedJob:
    completion, error = result.completion, result.error
    answer, spent = None, None
    if completion is not None:
        document, request = _chat(line)
        if taken := call_ids(request):  # which the reader of the results does not know
            completion = Normaliser(taken=taken).completion(completion)
        completion = completion | {"model": completion.get("model") or route.model}
        renderer = CLIENT_FORMATS[line.format].renderer(line, document, from_chat=route.format == "chat")
        answer = renderer.whole(completion)
        tokens = parse_usage(completion.get("usage")) or estimate_usage(request, "")
        spent = spent_on(route, tokens, request, answered=completion["model"], factor=api.PRICE_FACTOR)
    state = State.COMPLETED if error is None else State.FAILED
    record = {
        "attempt": line.attempt,
        "status": state.value,
        "provider": route.provider_name,
        "model": route.model,
        "error": None if error is None else error.body(),
    }
    return FinishedJob(
        id=line.id,
        attempt=line.attempt,
        state=state,
        provider=route.provider_name,
        response=None if answer is None else orjson.dumps(answer).decode(),
        error=None if error is None else error.stored(),
        delta_count=0,
        seconds_since_first_token=None,
        segment=None,
        spent=spent,
        record=orjson.dumps(record).decode(),
    )
