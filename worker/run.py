"""One attempt, from its claim to its end: the worker chooses a route, calls the provider and passes its deltas on."""

from __future__ import annotations

import asyncio
import math
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import orjson

from headrace.catalogue.models import Catalogue, Route
from headrace.catalogue.routing import UsableRoute, usable_routes
from headrace.errors import UpstreamRefusedError, UpstreamTimeoutError, UpstreamUnavailableError
from headrace.events.publisher import Publisher
from headrace.formats.registry import CLIENT_FORMATS
from headrace.jobs.records import ClaimedJob, Segment
from headrace.jobs.sql.read import read_log
from headrace.providers.client import ProviderClient
from headrace.runtime.offload import offloaded
from headrace.stores.database import Database
from headrace.telemetry.context import bind, note
from headrace.telemetry.traceparent import trace_id
from worker.attempt import Attempt, Lease
from worker.availability import Availability
from worker.circuits import Circuits
from worker.claims import Claims
from worker.crowds import Crowds
from worker.deltas import Deltas, DeltaWriter
from worker.exchange import Exchange
from worker.leases import Leases
from worker.measures import Measures
from worker.outcome import Outcomes
from worker.slots import Slot
from worker.spans import AttemptSpans
from worker.throttle import Throttle

# Seconds that a background job may keep its slot here while its provider's limits are used up.
_PATIENCE_SECONDS = 5.0
# Attempts without a failed call after which a job that has failed is called for here, and no longer left to another
# worker: that one may not take it. Attempts that found no room at the provider count too: a job does not count the two
# kinds separately.
_MOST_HANDOVERS = 10
_CONTENT_FILTER = "content_filter"


class Runner:
    """Runs one attempt at a time for each slot."""

    def __init__(
        self,
        catalogue: Catalogue,
        *,
        database: Database,
        availability: Availability,
        client: ProviderClient,
        circuits: Circuits,
        throttle: Throttle,
        crowds: Crowds,
        claims: Claims,
        leases: Leases,
        deltas: DeltaWriter,
        publisher: Publisher,
        outcomes: Outcomes,
        measures: Measures,
    ) -> None:
        self.catalogue = catalogue
        """The models whose routes the next attempts take."""
        self._database = database
        self._availability = availability
        self._client = client
        self._circuits = circuits
        self._throttle = throttle
        self._crowds = crowds
        self._claims = claims
        self._leases = leases
        self._deltas = deltas
        self._publisher = publisher
        self._outcomes = outcomes
        self._measures = measures

    async def run(self, job_id: str, tier: str, slot: Slot) -> None:
        """Claim a job and make one attempt at it, unless another worker has the job or it has ended."""
        with bind(job=job_id):
            claim = await self._claims.claim(job_id, tier)
            if claim is not None:
                job, lease = claim
                note(attempt=job.attempt, account=job.account_id)
                if job.trace_context is not None:
                    note(trace=trace_id(job.trace_context))
                slot.hold(job.account_id, background=job.background)
                try:
                    await self._attempt(job, lease)
                finally:
                    self._claims.release(job)

    async def _attempt(self, job: ClaimedJob, lease: Lease) -> None:
        task = asyncio.current_task()
        assert task is not None
        document = orjson.loads(job.take_request())
        # A log that outlives its attempt is read from Postgres alone, so readers never have a line that it lacks. The
        # log of a foreground stream ends with its attempt, if the rescue of its job finds that it has begun.
        late = CLIENT_FORMATS[job.format].KEEPS_LOG and (job.background or job.streamed)
        on_saved = partial(self._publish_saved, job, lease) if late else None
        attempt = Attempt(
            job,
            document=document,
            translation=CLIENT_FORMATS[job.format].translate(document),
            task=task,
            lease=lease,
            deltas=Deltas(job.id, job.attempt, on_saved=on_saved, once=job.streamed),
            spans=AttemptSpans.of(job),
        )
        self._leases.add(attempt)
        self._measures.claimed(job)
        if job.streamed or (job.background and job.batch_id is None):  # other clients wait for the whole answer alone
            self._publisher.publish(attempt.frame(0, "started"), origin=job.origin)
        try:
            response = await self._answer(attempt)
        except asyncio.CancelledError:
            if attempt.stop is None:
                raise
            await self._outcomes.stopped(attempt)
            self._measures.stopped(attempt)
        except Exception as error:  # noqa: BLE001  (`failed` logs an error that it does not expect)
            await self._outcomes.failed(attempt, error)
            self._measures.failed(attempt, error)
        else:
            await self._outcomes.answered(attempt, response)
            self._measures.answered(attempt)
        finally:
            self._leases.remove(attempt)
            if attempt.spans is not None:
                attempt.spans.close()

    async def _answer(self, attempt: Attempt) -> dict[str, Any]:
        """Return the answer that the job stores, once its deltas have been passed on.

        Raises:
            UpstreamError: The provider failed, or may not be called now.
            ModelNotFoundError: This worker's configuration does not have the model.
            TimeoutError: The job's deadline passed.
        """
        job = attempt.job
        route = await self._choose_route(attempt)
        if job.retries and self._is_better_elsewhere(job, route):
            raise UpstreamUnavailableError  # the job has failed here once: another worker's path may be fine
        log = await self._read_log(attempt)
        # The exchange refers to what the attempt holds, not to the attempt, which holds the exchange.
        pass_on = partial(self._pass_on, job, attempt.lease, attempt.deltas)
        client = CLIENT_FORMATS[job.format]
        relay = client.relay(job, attempt.document, log=log) if route.format == job.format else None
        renderer = relay or client.renderer(job, attempt.document, log=log, from_chat=route.format == "chat")
        exchange = Exchange(self._client, job, route, attempt.request, renderer=renderer, relay=relay, pass_on=pass_on)
        # By the clock itself: the time of the event loop may be behind, so that a timer from then on rings early.
        async with asyncio.timeout_at(time.monotonic() + job.seconds_left) as deadline:
            completion = await self._call(attempt, route, exchange, deadline)
        if _is_withheld(completion):
            withheld = UpstreamRefusedError("The model's provider withheld its answer.", code=_CONTENT_FILTER)
            if self._outcomes.next_attempt(attempt, withheld) is not None:
                raise withheld
        return exchange.answer

    def _is_better_elsewhere(self, job: ClaimedJob, route: Route) -> bool:
        """Return whether a job that has failed is left to another worker."""
        return job.attempt - job.retries <= _MOST_HANDOVERS and self._circuits.better_elsewhere(
            route.provider_name, job.tier, account=job.account_id
        )

    async def _choose_route(self, attempt: Attempt) -> Route:
        """Return the first route, from the job's on, whose provider may be called; the job's if none may be."""
        job = attempt.job
        routes = partial(usable_routes, self.catalogue, attempt.translation, format=job.format, seed=job.id)
        attempt.routes = await offloaded(job.size, routes)
        attempt.index = self._first_open(attempt.routes, min(job.route, len(attempt.routes) - 1), job.account_id)
        return attempt.routes[attempt.index].route

    def _first_open(self, routes: Sequence[UsableRoute], index: int, account: str) -> int:
        """Return `index`, or where the provider there may not be called the next route for the same condition."""
        condition = routes[index].route.condition
        for at in range(index, len(routes)):
            route = routes[at].route
            if route.condition == condition and self._circuits.allows(route.provider_name, route.name, account=account):
                return at
        return index

    async def _call(
        self, attempt: Attempt, route: Route, exchange: Exchange, deadline: asyncio.Timeout
    ) -> dict[str, Any]:
        """Call the provider as soon as its limits have room, and return its completion; `deadline` is the job's."""
        job, name, provider = attempt.job, route.provider_name, route.provider
        patience = _PATIENCE_SECONDS if job.background else math.inf
        paused = self._circuits.pauses.seconds(route.name)
        if 0 < paused <= patience:
            await asyncio.sleep(paused)
        permitted = self._throttle.permit(
            name,
            provider,
            attempt.request,
            route=route.name,
            account=job.account_id,
            background=job.background,
            calls=exchange.at_once,
            more=exchange.calls - exchange.at_once,
            patience_seconds=patience,
            crowd=None if job.batch_id is None else self._crowds.of((job.account_id, job.model)),
        )
        asked = time.monotonic()
        async with permitted as permit, self._circuits.call(name, route.name, account=job.account_id) as call:
            attempt.exchange = exchange
            attempt.deltas.on_first = call.answered if call.probes else None
            attempt.called_at = time.monotonic()
            attempt.throttled_seconds = attempt.called_at - asked
            if attempt.spans is not None:
                attempt.spans.call(route, attempt.request, exchange)
            seconds = provider.timeout
            if exchange.calls > 1:
                exchange.at_once = int(min(exchange.at_once, permit.calls))
                seconds *= math.ceil(exchange.calls / exchange.at_once)
            timeout = _sooner(attempt.called_at + seconds, deadline)
            try:
                async with timeout:
                    return await exchange.complete()
            except TimeoutError:
                if timeout.expired():
                    raise UpstreamTimeoutError(detail=f"the call took longer than {seconds:g} s") from None
                raise
            finally:
                attempt.call_seconds = time.monotonic() - attempt.called_at
                first_at = attempt.deltas.first_at
                seconds_to_first = None if first_at is None else first_at - attempt.called_at
                if seconds_to_first is not None:
                    permit.began(seconds_to_first)
                if attempt.spans is not None:
                    attempt.spans.called(exchange, sys.exception(), seconds_to_first=seconds_to_first)
                if provider.tokens_per_minute is not None or exchange.calls > 1:
                    permit.used(exchange.usage.total_tokens, calls=exchange.made)

    async def _read_log(self, attempt: Attempt) -> Sequence[bytes]:
        """Return the lines of the job's earlier attempts that its readers keep, and number this one's after them."""
        job = attempt.job
        if job.attempt == 1 or not CLIENT_FORMATS[job.format].KEEPS_LOG:
            return ()
        log = await self._availability.until_available(lambda: read_log(self._database, job.id))
        lines = [line for _, _, lines in log.segments for line in lines]
        attempt.deltas.resume(len(lines))
        return lines

    def _pass_on(self, job: ClaimedJob, lease: Lease, deltas: Deltas, lines: Sequence[bytes]) -> None:
        """Hold lines for Postgres and publish them, as long as the lease is valid."""
        first_seq = deltas.seq + 1
        body = deltas.append(lines)
        self._deltas.touch(deltas)
        if deltas.on_saved is None:
            self._publisher.publish_deltas(job, first_seq, len(lines), body, until=lease.until)

    def _publish_saved(self, job: ClaimedJob, lease: Lease, segment: Segment) -> None:
        """Publish lines that Postgres has, as long as the lease is valid."""
        count, body = segment.last_seq - segment.first_seq + 1, segment.chunks.encode() + b"\n"
        self._publisher.publish_deltas(job, segment.first_seq, count, body, until=lease.until)


def _sooner(end: float, deadline: asyncio.Timeout) -> asyncio.Timeout:
    """Return the timeout of a call that may last until `end`. Of it and the deadline, only the sooner keeps a timer."""
    due = deadline.when()
    if due is not None and due <= end:
        return asyncio.timeout(None)
    deadline.reschedule(None)
    return asyncio.timeout_at(end)


def _is_withheld(completion: Mapping[str, Any]) -> bool:
    """Return whether a content filter withheld every choice of an answer."""
    choices: list[dict[str, Any]] = completion.get("choices") or []
    return bool(choices) and all(choice.get("finish_reason") == _CONTENT_FILTER for choice in choices)
