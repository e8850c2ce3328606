"""Listening to a job until its client leaves or its key becomes invalid."""

from __future__ import annotations

from api.http.request import ApiRequest
from api.http.subscribers import Subscribers
from headrace.events.listener import Listener
from headrace.keys.principal import Principal


class Attendance:
    """A client that listens to a job, from `begin` to `end` or as a context.

    The listener is closed when the client leaves or the key becomes invalid; `refused` marks an invalid key. This keeps
    nothing else of the request, as a reader may wait for hours. A generator and the contexts of what this begins would
    take a kilobyte more for each reader.
    """

    __slots__ = ("_client", "_held", "_hub", "_key_id", "_subscribers", "listener")

    def __init__(
        self, request: ApiRequest, principal: Principal, listener: Listener, subscribers: Subscribers | None = None
    ) -> None:
        """Take the listener; with `subscribers` the client counts as one of its key's."""
        state = request.state
        self.listener = listener
        self._client, self._hub = state["client"], state["hub"]
        self._held = state["authenticator"].holding(principal, listener.refuse)
        self._subscribers, self._key_id = subscribers, principal.key_id

    async def begin(self) -> Listener:
        """Begin to listen."""
        if self._subscribers is not None:
            self._subscribers.add(self._key_id, 1)
        try:
            await self._hub.join(self.listener)
        except BaseException:
            await self._leave()
            raise
        self._client.notify(self.listener.close)
        self._held.begin()
        return self.listener

    async def end(self) -> None:
        """Stop listening."""
        self._held.end()
        self._client.notify(None)
        await self._leave()

    async def _leave(self) -> None:
        await self._hub.leave(self.listener)
        if self._subscribers is not None:
            self._subscribers.add(self._key_id, -1)

    async def __aenter__(self) -> Listener:
        return await self.begin()

    async def __aexit__(self, *_: object) -> None:
        await self.end()


def watching(request: ApiRequest, principal: Principal, job_id: str) -> Attendance:
    """Return the context in which a client listens to a job as one of its key's subscribers."""
    listener = request.state["hub"].listener(job_id, own=False)
    return Attendance(request, principal, listener, request.state["subscribers"])
