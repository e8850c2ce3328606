"""Listening to a job until its client leaves or its key becomes invalid."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from fastapi import Request

from headrace.events.listener import Listener
from headrace.keys.queries import Principal


async def close_when_gone(request: Request, listener: Listener) -> None:
    """Close the listener when the client disconnects. The body of the request has been read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    listener.close()


@contextlib.asynccontextmanager
async def watching(request: Request, principal: Principal, job_id: str) -> AsyncIterator[Listener]:
    """Listen to a job as one of a key's subscribers.

    The listener is closed when the client leaves or the key becomes invalid; `refused` marks an invalid key.
    """
    state = request.state
    with state.subscribers.watching(principal.key_id):
        async with state.hub.listen(job_id, own=False) as listener:
            leaving = asyncio.create_task(close_when_gone(request, listener))
            try:
                with state.authenticator.holding(principal, listener.refuse):
                    yield listener
            finally:
                leaving.cancel()
