"""One attempt of one job, in memory: what has come from the provider so far and how much of it is kept."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

import orjson

from headrace.catalogue import Route
from headrace.errors import HeadraceError
from headrace.jobs.queries import ClaimedJob, Segment
from headrace.routing import UsableRoute
from headrace.usage.spent import SpentUsage, spent_on
from worker.exchange import Exchange


class Stop(Enum):
    """Why an attempt is stopped from outside."""

    CANCELLED = auto()
    """Someone asked for it: the job ends."""
    LOST = auto()
    """The lease is another's or the job is over: nothing may be written any more."""
    DRAINED = auto()
    """This worker is shutting down: the job goes back to the queue."""


@dataclass(eq=False, slots=True)
class Attempt:
    """State of a job's attempt, from the claim to the write that ends it."""

    job: ClaimedJob
    request: dict[str, Any]
    task: asyncio.Task[None]
    routes: Sequence[UsableRoute] = ()
    index: int = 0
    began: float = field(default_factory=time.monotonic)
    exchange: Exchange | None = None
    seq: int = 0
    stop: Stop | None = None
    ending: bool = False
    _saved: int = 0
    _unsaved: list[bytes] = field(default_factory=list)
    _first_token: float | None = None

    @property
    def route(self) -> Route | None:
        """The route that is tried, once it is known."""
        return self.routes[self.index].route if self.routes else None

    @property
    def provider(self) -> str | None:
        """Who was asked, or is about to be."""
        return None if self.route is None else self.route.provider_name

    @property
    def secret(self) -> str | None:
        """The provider's key that was sent, to be kept out of what is told."""
        return None if self.exchange is None else self.exchange.secret

    @property
    def started(self) -> bool:
        """Whether the model has said anything yet."""
        return self.exchange is not None and self.exchange.started

    def interrupt(self, reason: Stop) -> None:
        """Stop the call upstream. An attempt whose end is being written goes on: the fence decides."""
        if self.stop is None and not self.ending:
            self.stop = reason
            self.task.cancel()

    def insist(self) -> None:
        """Stop the call upstream again, if something has swallowed that it was stopped."""
        if self.stop is not None and not self.ending:
            self.task.cancel()

    def append(self, chunks: list[bytes]) -> None:
        """Count deltas, which are to be kept from here on."""
        if self._first_token is None:
            self._first_token = time.monotonic()
        self._unsaved += chunks
        self.seq += len(chunks)

    def segment(self) -> Segment | None:
        """Return the deltas that are not kept yet, or None if all are."""
        if not self._unsaved:
            return None
        return Segment(self.job.id, self.job.attempt, self._saved + 1, self.seq, b"\n".join(self._unsaved).decode())

    def saved(self, last_seq: int) -> None:
        """Note that Postgres has the deltas up to this one."""
        del self._unsaved[: last_seq - self._saved]
        self._saved = last_seq

    @property
    def kept(self) -> bool:
        """Tell whether Postgres has any delta of this attempt."""
        return self._saved > 0

    def seconds_since_first_token(self) -> float | None:
        """Return how long ago the first delta came, in seconds."""
        return None if self._first_token is None else time.monotonic() - self._first_token

    def spent(self) -> SpentUsage | None:
        """Return what the attempt has used up to now; None if nobody was asked."""
        if self.route is None or self.exchange is None:
            return None
        return spent_on(self.route, self.exchange.usage, self.request, answered=self.exchange.model)

    def record(self, status: str, error: HeadraceError | None = None) -> str:
        """Return what the job's attempts say of this one, as JSON."""
        route = self.route
        return orjson.dumps(
            {
                "attempt": self.job.attempt,
                "status": status,
                "provider": None if route is None else route.provider_name,
                "model": None if route is None else route.model,
                "seconds": round(time.monotonic() - self.began, 3),
                "error": None if error is None else error.body(),
                "dropped_params": self.routes[self.index].dropped if self.routes else [],
            }
        ).decode()
