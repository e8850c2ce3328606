"""A request whose client waits for its job: whole or streamed, until the client leaves."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from decimal import Decimal
from functools import partial
from typing import Any, TypeVar

from sqlalchemy.exc import SQLAlchemyError
from starlette.background import BackgroundTask
from starlette.responses import Response

from api.http.errors import shutdown_error
from api.http.idempotency import has_key
from api.http.later import Later
from api.http.request import ApiRequest
from api.http.sse import EventStream, LiveEvents, Write
from api.jobs.accept import Submission, accept, answering
from api.jobs.attendance import Attendance
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
from headrace.events.follow import follow
from headrace.events.job_events import Deltas, Ended, Event, Silence
from headrace.events.listener import ListenerClosedError
from headrace.jobs.sql.erase import erase_unstored
from headrace.jobs.sql.read import read_positions
from headrace.keys.principal import Principal
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

    __slots__ = (
        "_account_id", "_attendance", "_format", "_listener", "_scopes", "_stored", "_streamed", "_submission",
        "headers", "job_id", "keyed", "request",
    )  # fmt: skip

    def __init__(self, request: ApiRequest, principal: Principal, submission: Submission) -> None:
        self.request = request
        self._submission: Submission | None = submission
        """The job, until it is accepted."""
        job, self._scopes, self._account_id = submission.job, submission.scopes, principal.account_id
        self.job_id, self._format, self._streamed, self._stored = job.id, job.format, job.streamed, job.stored
        self.headers = submission.headers
        self.keyed = has_key(request)
        self._listener = request.state["hub"].listener(self.job_id, own=not self.keyed, waits=True)
        self._attendance = Attendance(request, principal, self._listener)

    def answer(self) -> Response:
        """Return a `Later` that answers with the whole completion or with its stream."""
        return Later(self._answer)

    async def _answer(self) -> Response:
        try:
            return await (self._stream() if self._streamed else self._whole())
        finally:
            self.request.state["body_memory"].give_back(self.request)  # if the job was not accepted

    async def _whole(self) -> Response:
        """Return the completion when the job has ended."""
        async with self._attendance:
            await self._accept()
            try:
                async for event in self._follow():
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
        settings, client = self.request.state["settings"], self.request.state["client"]
        await self._attendance.begin()
        try:
            written = (await self._accept())()
            events = self._follow(LiveEvents(client, written.render))
            self._listener.patience_seconds = settings.header_wait_seconds
            event, rendered = await self._first(written, events)
        except ListenerClosedError:
            await self._attendance.end()
            return await self._end_early()
        except BaseException:
            await self._attendance.end()
            await self._settle()
            raise
        self._listener.patience_seconds = settings.ping_seconds
        return EventStream(partial(self._tell, written, events, event, rendered), self.headers, give_up=self._give_up)

    async def _tell(
        self,
        written: ClientEvents,
        events: AsyncIterator[Event],
        event: Event,
        rendered: list[bytes],
        write: Write,
    ) -> None:
        """Write the stream: the first event, as it is rendered, and all others."""
        ended = False
        try:
            while not ended:
                ended = written.over
                if isinstance(event, Ended):
                    await self._settle(event)
                await write(rendered)
                del event, rendered  # they may be large, and the next event may come much later
                if not ended:
                    event = await anext(events)
                    rendered = written.render(event)
            ended = not written.broken
            await self._forget()
        except ListenerClosedError:
            if self._listener.refused:
                await write([written.refuse(AuthenticationError())])
            elif self.request.state["hub"].ending.is_set():
                await write([written.refuse(shutdown_error())])
        except HeadraceError as error:  # its content was deleted, for instance
            await write([written.refuse(error)])
        finally:
            if ended:
                await self._attendance.end()
            else:
                await self._give_up()

    async def _give_up(self) -> None:
        """End a stream before its job's end."""
        try:
            await self._abandon()
        finally:
            await self._attendance.end()

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
        if not await read_positions(self.request.state["database"], [self.job_id]):
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
        if self.request.state["hub"].ending.is_set() and not self._listener.refused:
            if self.keyed or await self._shielded(is_ended_by_cancelling):
                raise shutdown_error()
            raise OutcomeUnknownError
        await self._abandon()
        if self._listener.refused:
            raise AuthenticationError
        return _UNREAD

    async def _accept(self) -> Callable[[], ClientEvents]:
        """Accept the job, and keep of it and of its request what its end needs. Returns what makes a stream of it."""
        submission, self._submission = self._submission, None
        assert submission is not None
        async with answering(self.request, submission.job):
            created = await accept(self.request, submission)
        self.request = self.request.state["headless"]
        return partial(submission.events, created)

    def _follow(self, write: LiveEvents | None = None) -> AsyncIterator[Event]:
        """Return the events of the job, from its beginning."""
        database = self.request.state["database"]
        return follow(self._listener, database, replay=self.keyed, format=self._format, write=write)

    async def _settle(self, end: Ended | None = None) -> None:
        """Replace the job's reservation by what it used, before its client sends the next request."""
        spent = None
        if end is not None and end.cursor.attempt == 1:  # earlier attempts may have used tokens too
            spent = Spent(self.job_id, end.charge.tokens, end.charge.cost or Decimal())
        await self.request.state["gate"].settle_ended(self._scopes, self.job_id, spent)

    async def _forget(self) -> None:
        """Erase a job that is not to be stored, once its client has the answer.

        A client with an Idempotency-Key may come back for it, so the scheduler erases its job some minutes later.
        """
        if not self._stored and not self.keyed:
            with contextlib.suppress(SQLAlchemyError):  # the scheduler does it later
                await erase_unstored(self.request.state["database"], job_id=self.job_id)

    async def _abandon(self) -> None:
        if not self.keyed:
            await self._shielded(abandon)

    async def _shielded(self, cancel: Callable[[ApiRequest, str, str], Coroutine[Any, Any, Result]]) -> Result:
        # In a task of its own, because the end of the request must not stop the cancellation.
        return await asyncio.shield(asyncio.create_task(cancel(self.request, self.job_id, self._account_id)))
