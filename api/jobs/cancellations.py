"""Cancelling jobs whose clients got no answer, with retries while Postgres is unavailable.

If the answer to a statement is lost, Postgres may have executed it, or may still get it. The client gets a 503 and
sends its request again, so the first job must not run as well: if it may have run, the client learns that its outcome
is unknown. A request with an Idempotency-Key is different: its repetition finds the first job. The job of a client that
left is cancelled the same way.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from api.http.idempotency import has_key
from api.http.request import ApiRequest
from headrace.errors import OutcomeUnknownError
from headrace.runtime.chores import next_tick
from headrace.runtime.clock import now
from headrace.runtime.flag import Flag
from headrace.stores.failures import was_certainly_refused
from headrace.telemetry.context import bind, bound

log = logging.getLogger(__name__)

Result = TypeVar("Result")

# Seconds that a request waits for the first try to cancel, before it is answered.
_PATIENCE_SECONDS = 2.0
# Seconds between two tries, and seconds for which a successful cancellation is repeated: an abandoned connection
# delivers nothing after its `tcp_user_timeout`, and a statement ends by its `statement_timeout`.
_AGAIN_SECONDS = 1.0
_REPEAT_SECONDS = 30.0
# Seconds that a process which shuts down waits for its cancellations.
_LAST_SECONDS = 5.0


@dataclass(slots=True)
class _Cancellation(Generic[Result]):
    name: str
    cancel: Callable[[], Awaitable[Result]]
    until: float
    fields: Mapping[str, str | int] = field(default_factory=bound)
    """What the log's lines about it have: those of its request."""
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    result: Result | None = None


class Cancellations:
    """The jobs and batches that one API process has to cancel."""

    def __init__(self) -> None:
        self._pending: dict[str, _Cancellation[Any]] = {}
        self._has_pending = Flag()

    @contextlib.asynccontextmanager
    async def answering(
        self, request: ApiRequest, name: str, cancel: Callable[[], Awaitable[bool]]
    ) -> AsyncIterator[Callable[[], None]]:
        """Create a job or batch inside the context, and `cancel` it if its client gets an error instead of it.

        The error comes from Postgres, or from the shutdown of the process. The context yields a function that the
        caller calls once the job exists: after that, every error leaves a job whose client has no answer. `name` is its
        id, and `cancel` returns whether it certainly never runs.

        Raises:
            OutcomeUnknownError: Postgres failed, and the job may run or have run.
        """
        is_made = False

        def made() -> None:
            nonlocal is_made
            is_made = True

        try:
            yield made
        except SQLAlchemyError as error:
            if not has_key(request) and (is_made or not was_certainly_refused(error)):
                log.warning("%s may have been accepted although its client gets an error: %s", name, error)
                if not await self.cancel(name, cancel, repeat_seconds=_REPEAT_SECONDS):
                    raise OutcomeUnknownError from error
            raise
        except asyncio.CancelledError:
            if not has_key(request):
                self._add(_Cancellation(name, cancel, now() + _REPEAT_SECONDS))
            raise

    async def cancel(
        self, name: str, cancel: Callable[[], Awaitable[Result]], *, repeat_seconds: float = 0.0
    ) -> Result | None:
        """Cancel the job or batch `name`, and retry while Postgres is unavailable.

        A successful cancellation is repeated for `repeat_seconds`. Returns the result of `cancel`, or None if it has
        not succeeded within two seconds.
        """
        self._add(cancellation := _Cancellation(name, cancel, now() + repeat_seconds))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await self._try(cancellation)
        return cancellation.result

    async def run(self) -> None:
        """Retry cancellations until this task is cancelled."""
        while True:
            await self._has_pending.wait()
            await next_tick(_AGAIN_SECONDS)
            for cancellation in list(self._pending.values()):
                await self._try(cancellation)
            if not self._pending:
                self._has_pending.clear()

    async def finish(self) -> None:
        """Wait until `run` has cancelled every job once, for at most five seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_SECONDS):
                await asyncio.gather(*(cancellation.cancelled.wait() for cancellation in self._pending.values()))
        for cancellation in self._pending.values():
            if not cancellation.cancelled.is_set():
                with bind(**cancellation.fields):
                    log.warning("could not cancel %s before the process ends", cancellation.name)

    def _add(self, cancellation: _Cancellation[Any]) -> None:
        self._pending[cancellation.name] = cancellation
        self._has_pending.set()

    async def _try(self, cancellation: _Cancellation[Any]) -> None:
        try:
            cancellation.result = await cancellation.cancel()
        except SQLAlchemyError as error:
            log.debug("could not cancel %s yet: %s", cancellation.name, error)
            return
        cancellation.cancelled.set()
        if now() >= cancellation.until:
            self._pending.pop(cancellation.name, None)
