"""Server-sent events of the API, passed on to the browser as they come."""

from __future__ import annotations

import contextlib

from fastapi import Request
from starlette.responses import Response

from console.client import Api, pieces_of
from console.streams import PassedOn

_HEADERS = {"cache-control": "no-cache, no-transform", "x-accel-buffering": "no"}


async def pass_events(request: Request, api: Api, path: str) -> Response:
    """Return the events at a path of the API, after the one that the browser had last.

    Raises as `Api.get` does. Where the API goes away in the middle, the stream ends, and the browser asks again.
    """
    last = request.headers.get("last-event-id")
    async with contextlib.AsyncExitStack() as stack:
        answer = await stack.enter_async_context(api.stream(path, headers={"last-event-id": last} if last else None))
        if answer.status_code == 204:
            return Response(status_code=204)
        return PassedOn(pieces_of(answer), stack.pop_all(), headers=_HEADERS, media_type="text/event-stream")
