"""Listening to a job until its client leaves or its key becomes invalid."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from fastapi import Request

from headrace.events.listener import Listener
from headrace.keys.queries import Principal


async def close_when_gone(request: Request, listener: Listener) -> None:
    """Close the listener when the client goes away; the request's body has been read by then."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    listener.close()


@contextlib.asynccontextmanager
async def watching(request: Request, principal: Principal, job_id: str) -> AsyncIterator[Listener]:
    """Listen to a job as one of a key's subscribers, until its client goes away or the key is valid no longer.

    The listener is closed then; `refused` tells that it is because of the key.
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
