"""A stream of a job that runs on without its reader: the reader may leave and come back."""

from __future__ import annotations

from api.http.errors import shutdown_error
from api.http.request import ApiRequest
from api.http.sse import LiveEvents, Write
from api.jobs.attendance import watching
from api.jobs.client_events import ClientEvents
from headrace.errors import AuthenticationError, HeadraceError
from headrace.events.follow import follow
from headrace.events.job_events import START, Cursor
from headrace.events.listener import ListenerClosedError
from headrace.formats.chat.support import Format
from headrace.keys.principal import Principal


async def attached(
    request: ApiRequest,
    principal: Principal,
    job_id: str,
    written: ClientEvents,
    write: Write,
    *,
    after: Cursor = START,
    format: Format,  # noqa: A002  (the word for it everywhere)
) -> None:
    """Write what a reader gets of a job, past `after` to its end. `format` is the job's."""
    async with watching(request, principal, job_id) as listener:
        database, live = request.state["database"], LiveEvents(request.state["client"], written.render)
        del request, principal  # a reader may wait for hours
        await write(written.begin())
        try:
            async for event in follow(listener, database, after=after, format=format, write=live):
                await write(written.render(event))
                del event
                if written.over:
                    return
        except ListenerClosedError:
            # Without an error the stream would look complete. A client that has left reads neither.
            await write([written.refuse(AuthenticationError() if listener.refused else shutdown_error())])
        except HeadraceError as error:
            await write([written.refuse(error)])
