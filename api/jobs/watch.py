"""Listening to a job until its client leaves or its key becomes invalid."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from fastapi import Request

from headrace.events.listener import Listener
from headrace.keys.queries import Principal


@contextlib.asynccontextmanager
async def watching(request: Request, principal: Principal, job_id: str) -> AsyncIterator[Listener]:
    """Listen to a job as one of a key's subscribers.

    The listener is closed when the client leaves or the key becomes invalid; `refused` marks an invalid key.
    """
    state = request.state
    client, authenticator = state.client, state.authenticator
    with state.subscribers.watching(principal.key_id):
        async with state.hub.listen(job_id, own=False) as listener:
            held = authenticator.holding(principal, listener.refuse)
            del request, principal, state  # a reader may wait for hours, and needs nothing else of its request
            client.notify(listener.close)
            try:
                with held:
                    yield listener
            finally:
                client.notify(None)
