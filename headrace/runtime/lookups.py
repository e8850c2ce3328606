"""Lookups of host names. A name server that does not answer delays only the callers that ask for its hosts.

Each host is looked up in a thread of its own, once for all callers that ask meanwhile. The event loop has few threads
for this, and a lookup keeps its thread until it ends, even if its callers have given up.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Sequence
from concurrent.futures import Future

# Lookups at one time, each with a thread: half as many again as the scheduler has webhooks in flight, as some outlast
# theirs. A container may limit the threads of its processes.
_MOST_LOOKUPS = 192

AddressInfo = tuple[
    socket.AddressFamily,
    socket.SocketKind,
    int,
    str,
    tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes],
]
"""What `socket.getaddrinfo` returns of an address: its family, type, protocol, canonical name and socket address."""


class TooManyLookupsError(OSError):
    """As many lookups are under way as there may be."""

    def __init__(self) -> None:
        """Set the message."""
        super().__init__("Too many other hosts are being looked up.")


class Lookups:
    """The lookups that are under way for one kind of caller."""

    def __init__(self, most: int = _MOST_LOOKUPS) -> None:
        """Allow `most` hosts to be looked up at one time."""
        self._most = most
        self._under_way: dict[tuple[str, int | None], Future[Sequence[AddressInfo]]] = {}

    async def find(self, host: str, port: int | None = None) -> Sequence[AddressInfo]:
        """Return the addresses of a host for TCP, in the order to try them. No answer is kept.

        Raises:
            TooManyLookupsError: Too many others are being looked up.
            OSError: The host has no address, or no name server answers.
            UnicodeError: It cannot be the name of a host.
        """
        with contextlib.suppress(socket.gaierror):
            return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        return await asyncio.wrap_future(self._join(host, port))

    def _join(self, host: str, port: int | None) -> Future[Sequence[AddressInfo]]:
        """Return the lookup of a host that is under way, or begin one."""
        lookup = self._under_way.get((host, port))
        if lookup is None:
            if len(self._under_way) >= self._most:
                raise TooManyLookupsError
            lookup = Future()
            lookup.set_running_or_notify_cancel()  # so a caller that gives up does not cancel it for others
            # The process does not wait for a daemon when it ends, as it does for an executor's threads.
            try:
                threading.Thread(target=_look_up, args=(host, port, lookup), name="lookup", daemon=True).start()
            except RuntimeError:
                raise TooManyLookupsError from None
            self._under_way[host, port] = lookup
            lookup.add_done_callback(lambda _: self._under_way.pop((host, port)))
        return lookup


def _look_up(host: str, port: int | None, lookup: Future[Sequence[AddressInfo]]) -> None:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except Exception as error:  # noqa: BLE001  (the callers that wait raise it)
        lookup.set_exception(error)
    else:
        lookup.set_result(found)
