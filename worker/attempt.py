"""One attempt of one job, in memory: which route it takes, what it has spent, and how it is stopped."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

import orjson

from headrace.catalogue.models import Route
from headrace.catalogue.routing import UsableRoute
from headrace.errors import HeadraceError
from headrace.events.wire import Frame
from headrace.formats.translation import Translation
from headrace.jobs.records import ClaimedJob
from headrace.usage.spent import SpentUsage, spent_on
from worker.deltas import Deltas
from worker.exchange import Exchange
from worker.spans import AttemptSpans


class Stop(Enum):
    """Why an attempt is stopped from outside."""

    CANCELLED = auto()
    """The client cancelled the job: it ends."""
    LOST = auto()
    """The lease expired, and the job has another attempt or has ended: only the usage of this one is written."""
    DRAINED = auto()
    """This worker is shutting down: the job goes back to the queue."""
    YIELDED = auto()
    """The job waits for its provider, and another needs its slot: it goes back to the queue."""


@dataclass(slots=True)
class Lease:
    """Until when a job is this worker's, as far as the worker knows, by `headrace.runtime.clock`."""

    until: float


@dataclass(eq=False, slots=True, weakref_slot=True)
class Attempt:
    """State of a job's attempt, from the claim to the write that ends it.

    Nothing that an attempt holds refers back to it, so its memory is free as soon as it has ended, without the
    garbage collector.
    """

    job: ClaimedJob
    document: dict[str, Any]
    """The client's request in the job's format."""
    translation: Translation
    task: asyncio.Task[None]
    lease: Lease
    deltas: Deltas
    routes: Sequence[UsableRoute] = ()
    index: int = 0
    began: float = field(default_factory=time.monotonic)
    exchange: Exchange | None = None
    throttled_seconds: float = 0.0
    """How long the attempt waited for its provider's limits."""
    called_at: float | None = None
    """When the call to the provider began, by `time.monotonic`."""
    call_seconds: float = 0.0
    """How long the call took."""
    stop: Stop | None = None
    ending: bool = False
    spans: AttemptSpans | None = None
    """Its spans, if it is traced."""

    @property
    def request(self) -> dict[str, Any]:
        """The chat request that the client's request means."""
        return self.translation.chat

    @property
    def route(self) -> Route | None:
        """The route of this attempt, once it is chosen."""
        return self.routes[self.index].route if self.routes else None

    @property
    def provider(self) -> str | None:
        """The name of the provider of the route, once it is chosen."""
        return None if self.route is None else self.route.provider_name

    @property
    def secret(self) -> str | None:
        """The provider's key that was sent, which no client may see."""
        return None if self.exchange is None else self.exchange.secret

    @property
    def waits(self) -> bool:
        """Whether it has its route and has not called the provider yet."""
        return bool(self.routes) and self.called_at is None and self.stop is None and not self.ending

    @property
    def started(self) -> bool:
        """Whether the model has answered with any text yet."""
        return self.exchange is not None and self.exchange.started

    def interrupt(self, reason: Stop) -> None:
        """Stop the call upstream. An attempt whose end is being written goes on: the fence decides."""
        if self.stop is None and not self.ending:
            self.stop = reason
            self.task.cancel()

    def insist(self) -> None:
        """Stop the call upstream again, if a library has swallowed the cancellation."""
        if self.stop is not None and not self.ending:
            self.task.cancel()

    def begin_end(self) -> None:
        """Note that its end is being written, which nothing interrupts any more."""
        self.ending = True
        if self.spans is not None:
            self.spans.ending()

    def frame(self, first_seq: int, kind: str, lines: Sequence[bytes] = ()) -> Frame:
        """Return a frame that tells readers that this attempt's job has moved."""
        return Frame(self.job.id, self.job.attempt, first_seq, kind, lines)

    def spent(self) -> SpentUsage | None:
        """Return the usage and charge of the attempt up to now; None before it calls a provider."""
        if self.route is None or self.exchange is None:
            return None
        return spent_on(self.route, self.exchange.usage, self.request, answered=self.exchange.model)

    def record(self, status: str, error: HeadraceError | None = None) -> str:
        """Return the entry of this attempt in the job's list of attempts, as JSON."""
        route = self.route
        told = None if error is None else error.body()
        if told is not None and error is not None and error.detail is not None:
            told["message"] += f" ({error.detail})"
        return orjson.dumps(
            {
                "attempt": self.job.attempt,
                "status": status,
                "provider": None if route is None else route.provider_name,
                "model": None if route is None else route.model,
                "seconds": round(time.monotonic() - self.began, 3),
                "error": told,
                "dropped_params": self.routes[self.index].dropped if self.routes else [],
            }
        ).decode()
