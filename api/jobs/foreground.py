"""A request whose client waits for its job: whole or streamed, until the client leaves."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from decimal import Decimal
from typing import Any, TypeVar

from fastapi import Request
from sqlalchemy.exc import SQLAlchemyError
from starlette.background import BackgroundTask
from starlette.responses import Response

from api.http.errors import shutdown_error
from api.http.idempotency import has_key
from api.http.later import Later, without_head
from api.http.sse import EventStream, LiveEvents
from api.jobs.accept import Submission, accept, answering
from api.jobs.cancel import abandon, is_ended_by_cancelling
from api.jobs.client_events import ClientEvents
from headrace.errors import (
    AuthenticationError,
    HeadraceError,
    NotFoundError,
    OutcomeUnknownError,
    UnavailableError,
    restore_error,
)
from headrace.events.follow import Deltas, Ended, Event, Silence, follow
from headrace.events.listener import Listener, ListenerClosedError
from headrace.formats.registry import CLIENT_FORMATS
from headrace.jobs.sql.erase import erase_unstored
from headrace.jobs.sql.read import read_positions
from headrace.keys.queries import Principal
from headrace.quotas.queries import Spent
from headrace.usage.queries import render_cost

log = logging.getLogger(__name__)

Result = TypeVar("Result")

# The answer to a client that has left, which does not read it.
_UNREAD = Response(status_code=499)


class Foreground:
    """A completion whose client waits. If the client leaves or its key becomes invalid, the job is cancelled.

    The job of a request with an Idempotency-Key keeps running: its client comes back for the answer.
    """

    def __init__(self, request: Request, principal: Principal, submission: Submission) -> None:
        self.request = request
        self.principal = principal
        self.submission = submission
        self.job_id = submission.job.id
        self.headers = submission.headers
        self.keyed = has_key(request)
        self._listener: Listener | None = None

    def answer(self) -> Response:
        """Return the answer to a request for the whole completion or for its stream: both come later."""
        return Later(self._answer)

    async def _answer(self) -> Response:
        try:
            return await (self._stream() if self.submission.job.streamed else self._whole())
        finally:
            self.request.state.room.give_back(self.request)  # if the job was not accepted

    async def _whole(self) -> Response:
        """Return the completion when the job has ended."""
        async with self._listening() as (_, _, events):
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
                return await self._end_early()
            except NotFoundError:
                await self._check_known()
                raise
        raise AssertionError("a job's events end with its end")

    async def _stream(self) -> Response:
        """Return the stream after the first delta or `header_wait_seconds`. An earlier error gets its own status."""
        stack = contextlib.AsyncExitStack()
        try:
            listener, written, events = await stack.enter_async_context(self._listening())
            listener.patience_seconds = self.request.state.settings.header_wait_seconds
            assert written is not None
            first = await self._first(written, events)
        except ListenerClosedError:
            await stack.aclose()
            return await self._end_early()
        except BaseException:
            await stack.aclose()
            await self._settle()
            raise
        listener.patience_seconds = self.request.state.settings.ping_seconds
        return EventStream(self._events(stack, written, first, events), self.headers)

    async def _events(
        self,
        stack: contextlib.AsyncExitStack,
        written: ClientEvents,
        first: tuple[Event, list[bytes]],
        events: AsyncIterator[Event],
    ) -> AsyncGenerator[list[bytes], None]:
        async with stack:
            ended = False
            try:
                event, rendered = first
                while not ended:
                    ended = written.over
                    if isinstance(event, Ended):
                        await self._settle(event)
                    yield rendered
                    if not ended:
                        event = await anext(events)
                        rendered = written.render(event)
                ended = not written.broken
                await self._forget()
            except ListenerClosedError:
                if self._listener is not None and self._listener.refused:
                    yield [written.refuse(AuthenticationError())]
                elif self.request.state.hub.ending.is_set():
                    yield [written.refuse(shutdown_error())]
            finally:
                if not ended:
                    await self._abandon()

    async def _first(self, written: ClientEvents, events: AsyncIterator[Event]) -> tuple[Event, list[bytes]]:
        """Return the first event that a client sees, or the first silence, and what the client gets up to it.

        Raises the error of a job that fails.
        """
        rendered: list[bytes] = []
        async for event in events:
            if isinstance(event, Ended) and event.response is None:
                raise self._failed(event.error)
            rendered += written.render(event)
            if isinstance(event, Deltas | Ended | Silence):
                return event, rendered
        raise AssertionError("a job's events end with its end")

    async def _check_known(self) -> None:
        """Check that Postgres has a row of the job, whose content a client may have deleted meanwhile.

        Raises:
            UnavailableError: Postgres crashed before the job was on disk. The client does not know of it yet, and sends
                its request again.
        """
        if not await read_positions(self.request.state.database, [self.job_id]):
            log.warning("Postgres lost %s before it was on disk: its client gets an error", self.job_id)
            await self._settle()
            raise UnavailableError

    def _failed(self, document: bytes | None) -> HeadraceError:
        """Return the error that the job ended with, with the headers that every answer has for its job and limits."""
        error = restore_error(document)
        error.headers = {**self.headers, **error.headers}
        return error

    async def _end_early(self) -> Response:
        """Answer a request that ends before its job, and cancel the job.

        Raises:
            AuthenticationError: The key has become invalid.
            UnavailableError: This process shuts down, and another one takes the request.
            OutcomeUnknownError: This process shuts down, and the job may still run or have run.
        """
        assert self._listener is not None
        if self.request.state.hub.ending.is_set() and not self._listener.refused:
            if self.keyed or await self._shielded(is_ended_by_cancelling):
                raise shutdown_error()
            raise OutcomeUnknownError
        await self._abandon()
        if self._listener.refused:
            raise AuthenticationError
        return _UNREAD

    @contextlib.asynccontextmanager
    async def _listening(self) -> AsyncIterator[tuple[Listener, ClientEvents | None, AsyncGenerator[Event, None]]]:
        """Accept the job and follow it until the client leaves; a stream also gets what renders its events."""
        state, keeps_log = self.request.state, CLIENT_FORMATS[self.submission.job.format].KEEPS_LOG
        async with state.hub.listen(self.job_id, own=not self.keyed, waits=True) as listener:
            self._listener = listener
            async with answering(self.request, self.submission.job):
                created = await accept(self.request, self.submission)
            self.request = without_head(self.request)
            written = self.submission.events(created) if self.submission.job.streamed else None
            write = None if written is None else LiveEvents(state.client, written.render)
            state.client.notify(listener.close)
            followed = follow(listener, state.database, replay=self.keyed, keeps_log=keeps_log, write=write)
            try:
                async with aclosing(followed) as events:
                    with state.authenticator.holding(self.principal, listener.refuse):
                        yield listener, written, events
            finally:
                state.client.notify(None)

    async def _settle(self, end: Ended | None = None) -> None:
        """Replace the job's reservation by what it used, before its client sends the next request."""
        spent = None
        if end is not None and end.cursor.attempt == 1:  # earlier attempts may have used tokens too
            spent = Spent(self.job_id, end.charge.tokens, end.charge.cost or Decimal())
        await self.request.state.gate.settle_ended(self.submission.scopes, self.job_id, spent)

    async def _forget(self) -> None:
        """Erase a job that is not to be stored, once its client has the answer.

        A client with an Idempotency-Key may come back for it, so the scheduler erases its job some minutes later.
        """
        if not self.submission.job.stored and not self.keyed:
            with contextlib.suppress(SQLAlchemyError):  # the scheduler does it later
                await erase_unstored(self.request.state.database, job_id=self.job_id)

    async def _abandon(self) -> None:
        if not self.keyed:
            await self._shielded(abandon)

    async def _shielded(self, cancel: Callable[[Request, str, str], Coroutine[Any, Any, Result]]) -> Result:
        # In a task of its own, because the end of the request must not stop the cancellation.
        account_id = self.principal.account_id
        return await asyncio.shield(asyncio.create_task(cancel(self.request, self.job_id, account_id)))
