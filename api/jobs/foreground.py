"""A request whose client waits for its job: whole or streamed, until the client leaves."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from decimal import Decimal
from typing import Any, TypeVar

from fastapi import Request
from sqlalchemy.exc import SQLAlchemyError
from starlette.background import BackgroundTask
from starlette.responses import Response

from api.http.errors import leaving_error
from api.http.idempotency import has_key
from api.http.sse import EventStream
from api.jobs.accept import Submission, accept, answering
from api.jobs.cancel import abandon, is_ended_by_cancelling
from api.jobs.chunks import Chunks, error_event
from api.jobs.watch import close_when_gone
from headrace.errors import AuthenticationError, HeadraceError, OutcomeUnknownError, restore_error
from headrace.events.follow import Deltas, Ended, Event, Silence, follow
from headrace.events.listener import Listener, ListenerClosedError
from headrace.jobs.sql.erase import erase_unstored
from headrace.keys.queries import Principal
from headrace.quotas.queries import Spent
from headrace.usage.queries import render_cost

Result = TypeVar("Result")

# Nobody reads it: the client is gone.
_NOBODY = Response(status_code=499)


class Foreground:
    """A completion whose client waits: if it goes away, or its key does, so does the job, upstream too.

    One that came with an Idempotency-Key runs on: its client comes back for it.
    """

    def __init__(self, request: Request, principal: Principal, submission: Submission) -> None:
        self.request = request
        self.principal = principal
        self.submission = submission
        self.job_id = submission.job.id
        self.headers = submission.headers
        self.keyed = has_key(request)
        self._listener: Listener | None = None

    async def whole(self) -> Response:
        """Return the completion once it is there."""
        async with self._listening() as (_, events):
            try:
                async for event in events:
                    if isinstance(event, Ended):
                        await self._settle(event)
                        if event.response is None:
                            raise self._failed(event.error)
                        if event.charge.cost is not None:
                            self.headers["x-headrace-cost"] = render_cost(event.charge.cost)
                        answer = Response(event.response, 200, self.headers, "application/json")
                        answer.background = BackgroundTask(self._forget)
                        return answer
            except ListenerClosedError:
                return await self._let_go()
        raise AssertionError("a job's events end with its end")

    async def stream(self) -> Response:
        """Return the stream, once there is a first delta, an error with its own status, or it has taken too long."""
        stack = contextlib.AsyncExitStack()
        try:
            listener, events = await stack.enter_async_context(self._listening())
            listener.patience_seconds = self.request.state.settings.header_wait_seconds
            first = await self._first(events)
        except ListenerClosedError:
            await stack.aclose()
            return await self._let_go()
        except BaseException:
            await stack.aclose()
            await self._settle()
            raise
        listener.patience_seconds = self.request.state.settings.ping_seconds
        return EventStream(self._chunks(stack, first, events), self.headers)

    async def _chunks(
        self, stack: contextlib.AsyncExitStack, first: Event, events: AsyncIterator[Event]
    ) -> AsyncGenerator[list[bytes], None]:
        async with stack:
            ended = False
            chunks = Chunks(self.job_id, self.created, include_usage=self.submission.includes_usage)
            try:
                event = first
                while not ended:
                    rendered = chunks.render(event)
                    ended = chunks.over
                    if isinstance(event, Ended):
                        await self._settle(event)
                    yield rendered
                    event = event if ended else await anext(events)
                ended = not chunks.broken
                await self._forget()
            except ListenerClosedError:
                if self._listener is not None and self._listener.refused:
                    yield [error_event(AuthenticationError())]
                elif self.request.state.hub.ending.is_set():
                    yield [error_event(leaving_error())]
            finally:
                if not ended:
                    await self._abandon()

    async def _first(self, events: AsyncIterator[Event]) -> Event:
        """Return the first event that a client sees something of, or the first silence, or raise what it ends with."""
        async for event in events:
            if isinstance(event, Ended) and event.response is None:
                raise self._failed(event.error)
            if isinstance(event, Deltas | Ended | Silence):
                return event
        raise AssertionError("a job's events end with its end")

    def _failed(self, document: bytes | None) -> HeadraceError:
        """Return the error that the job ended with; its answer says of the job and its limits what any other does."""
        error = restore_error(document)
        error.headers = {**self.headers, **error.headers}
        return error

    async def _let_go(self) -> Response:
        """Answer a client that left, or whose request ends before its job: the job ends too.

        Raises:
            AuthenticationError: Its key is valid no longer.
            UnavailableError: This process ends; another one takes the request.
            OutcomeUnknownError: This process ends, and the job may still run or have run.
        """
        assert self._listener is not None
        if self.request.state.hub.ending.is_set() and not self._listener.refused:
            if self.keyed or await self._shielded(is_ended_by_cancelling):
                raise leaving_error()
            raise OutcomeUnknownError
        await self._abandon()
        if self._listener.refused:
            raise AuthenticationError
        return _NOBODY

    @contextlib.asynccontextmanager
    async def _listening(self) -> AsyncIterator[tuple[Listener, AsyncGenerator[Event, None]]]:
        """Submit the job and follow it, until the client goes away."""
        state = self.request.state
        async with state.hub.listen(self.job_id, own=not self.keyed, waits=True) as listener:
            self._listener = listener
            async with answering(self.request, self.submission.job):
                self.created = await accept(self.request, self.submission)
            leaving = asyncio.create_task(close_when_gone(self.request, listener))
            try:
                async with aclosing(follow(listener, state.database, replay=self.keyed)) as events:
                    with state.authenticator.holding(self.principal, listener.refuse):
                        yield listener, events
            finally:
                leaving.cancel()

    async def _settle(self, end: Ended | None = None) -> None:
        """Let go of what the job held back, before its client may ask again."""
        spent = None
        if end is not None and end.cursor.attempt == 1:  # else those before may have used something too
            spent = Spent(self.job_id, end.charge.tokens, end.charge.cost or Decimal())
        await self.request.state.gate.settle_ended(self.submission.scopes, self.job_id, spent)

    async def _forget(self) -> None:
        """Erase what is not to be stored, once its client has it; one that may come back for it has some minutes."""
        if not self.submission.job.stored and not self.keyed:
            with contextlib.suppress(SQLAlchemyError):  # the scheduler does it later
                await erase_unstored(self.request.state.database, job_id=self.job_id)

    async def _abandon(self) -> None:
        if not self.keyed:
            await self._shielded(abandon)

    async def _shielded(self, cancel: Callable[[Request, str, str], Coroutine[Any, Any, Result]]) -> Result:
        # In a task of its own: the end of the request must not stop what it asks for.
        account_id = self.principal.account_id
        return await asyncio.shield(asyncio.create_task(cancel(self.request, self.job_id, account_id)))
