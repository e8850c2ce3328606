"""Server-sent events of the API, passed on to the browser as they come."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from fastapi import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from console.client import Api, pieces_of

_HEADERS = {"cache-control": "no-cache, no-transform", "x-accel-buffering": "no"}


class _Events(StreamingResponse):
    """The events of an open answer of the API, which is closed in any case."""

    def __init__(self, pieces: AsyncIterator[bytes], held: contextlib.AsyncExitStack) -> None:
        super().__init__(pieces, headers=_HEADERS, media_type="text/event-stream")
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._held:
            await super().__call__(scope, receive, send)


async def pass_events(request: Request, api: Api, path: str) -> Response:
    """Return the events at a path of the API, after the one that the browser had last.

    Raises as `Api.get` does. Where the API goes away in the middle, the stream ends, and the browser asks again.
    """
    last = request.headers.get("last-event-id")
    async with contextlib.AsyncExitStack() as stack:
        answer = await stack.enter_async_context(
            api.stream("GET", path, headers={"last-event-id": last} if last else None)
        )
        if answer.status_code == 204:
            return Response(status_code=204)
        return _Events(pieces_of(answer), stack.pop_all())
