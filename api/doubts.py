"""What a client was told is not accepted, though Postgres may have it: it is cancelled until that is certain.

A statement whose answer is lost may have been done, and it may be done yet, as long as a network may still deliver it.
A client that is answered 503 asks again, so what it asked for first must not run as well. A request that came with an
Idempotency-Key is another matter: its repetition finds what the first one made.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

from fastapi import Request
from sqlalchemy.exc import SQLAlchemyError

from api.idempotency import has_key
from headrace.clock import now
from headrace.database import was_certainly_refused

log = logging.getLogger(__name__)

Cancel = Callable[[], Awaitable[object]]

# Seconds that a request waits for a first try to cancel, before it is answered.
_PATIENCE_SECONDS = 2.0
# Seconds between two tries, and for which a cancellation that was done is done again: a connection that was given up
# delivers nothing later than its `tcp_user_timeout` says, and a statement ends by its `statement_timeout`.
_AGAIN_SECONDS = 1.0
_CERTAIN_SECONDS = 30.0


@dataclass(slots=True)
class _Doubt:
    name: str
    cancel: Cancel
    until: float = field(default_factory=lambda: now() + _CERTAIN_SECONDS)


class Doubts:
    """What one API process has to cancel."""

    def __init__(self) -> None:
        self._doubts: dict[str, _Doubt] = {}

    @contextlib.asynccontextmanager
    async def answering(self, request: Request, name: str, cancel: Cancel) -> AsyncIterator[Callable[[], None]]:
        """Make something called `name` and answer for it; `cancel` undoes it if Postgres fails meanwhile.

        Gives what is to be called once it is made: from then on any failure leaves it without an answer.
        """
        is_made = False

        def made() -> None:
            nonlocal is_made
            is_made = True

        try:
            yield made
        except SQLAlchemyError as error:
            if not has_key(request) and (is_made or not was_certainly_refused(error)):
                log.warning("%s may have been accepted although its client is told that it is not", name)
                self._doubts[name] = doubt = _Doubt(name, cancel)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_PATIENCE_SECONDS):
                        await self._try(doubt)
            raise

    async def run(self) -> None:
        """Cancel, again and again, until cancelled."""
        while True:
            await asyncio.sleep(_AGAIN_SECONDS)
            for doubt in list(self._doubts.values()):
                await self._try(doubt)

    async def _try(self, doubt: _Doubt) -> None:
        try:
            await doubt.cancel()
        except SQLAlchemyError as error:
            log.debug("could not cancel %s yet: %s", doubt.name, error)
            return
        if now() >= doubt.until:
            del self._doubts[doubt.name]
