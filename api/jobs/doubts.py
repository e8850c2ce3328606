"""What an API process has to cancel, and tries again to cancel while Postgres is unavailable.

A statement whose answer is lost may have been done, and a network may still deliver it. A client that is answered 503
asks again, so what it asked for first must not run as well. A request that came with an Idempotency-Key is another
matter: its repetition finds what the first one made. The job of a client that left is cancelled the same way.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from fastapi import Request
from sqlalchemy.exc import SQLAlchemyError

from api.http.idempotency import has_key
from headrace.runtime.clock import now
from headrace.stores.failures import was_certainly_refused

log = logging.getLogger(__name__)

Result = TypeVar("Result")

# Seconds that a request waits for the first try to cancel, before it is answered.
_PATIENCE_SECONDS = 2.0
# Seconds between two tries, and for which a cancellation that was done is done again: a connection that was given up
# delivers nothing later than its `tcp_user_timeout` says, and a statement ends by its `statement_timeout`.
_AGAIN_SECONDS = 1.0
_CERTAIN_SECONDS = 30.0
# Seconds that a process which ends waits for what it has not cancelled yet.
_LAST_SECONDS = 5.0


@dataclass(slots=True)
class _Doubt(Generic[Result]):
    name: str
    cancel: Callable[[], Awaitable[Result]]
    until: float
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    result: Result | None = None


class Doubts:
    """What one API process has to cancel."""

    def __init__(self) -> None:
        self._doubts: dict[str, _Doubt[Any]] = {}

    @contextlib.asynccontextmanager
    async def answering(
        self, request: Request, name: str, cancel: Callable[[], Awaitable[object]]
    ) -> AsyncIterator[Callable[[], None]]:
        """Make something called `name` and answer for it; `cancel` undoes it if that fails.

        It fails by Postgres, or because the process ends. Gives what is to be called once it is made: from then on
        any failure leaves it without an answer.
        """
        is_made = False

        def made() -> None:
            nonlocal is_made
            is_made = True

        try:
            yield made
        except SQLAlchemyError as error:
            if not has_key(request) and (is_made or not was_certainly_refused(error)):
                log.warning("%s may have been accepted although its client is answered that it is not", name)
                await self.cancel(name, cancel, certain_seconds=_CERTAIN_SECONDS)
            raise
        except asyncio.CancelledError:
            if not has_key(request):
                self._doubts[name] = _Doubt(name, cancel, now() + _CERTAIN_SECONDS)
            raise

    async def cancel(
        self, name: str, cancel: Callable[[], Awaitable[Result]], *, certain_seconds: float = 0.0
    ) -> Result | None:
        """Cancel what is called `name`, and try again until it is done if Postgres is unavailable.

        For `certain_seconds` it is cancelled again after it was done. Returns what `cancel` returned, or None if it is
        not done after two seconds.
        """
        self._doubts[name] = doubt = _Doubt(name, cancel, now() + certain_seconds)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await self._try(doubt)
        return doubt.result

    async def run(self) -> None:
        """Cancel, again and again, until cancelled."""
        while True:
            await asyncio.sleep(_AGAIN_SECONDS)
            for doubt in list(self._doubts.values()):
                await self._try(doubt)

    async def finish(self) -> None:
        """Wait until `run` has cancelled everything once, for at most five seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_SECONDS):
                await asyncio.gather(*(doubt.cancelled.wait() for doubt in self._doubts.values()))
        for doubt in self._doubts.values():
            if not doubt.cancelled.is_set():
                log.warning("could not cancel %s before the process ends", doubt.name)

    async def _try(self, doubt: _Doubt[Any]) -> None:
        try:
            doubt.result = await doubt.cancel()
        except SQLAlchemyError as error:
            log.debug("could not cancel %s yet: %s", doubt.name, error)
            return
        doubt.cancelled.set()
        if now() >= doubt.until:
            self._doubts.pop(doubt.name, None)
