"""Connections to providers, kept alive between calls."""

from __future__ import annotations

import asyncio
import ssl
from collections import defaultdict, deque
from dataclasses import dataclass, field

import aiohappyeyeballs

from headrace.providers.connection import Connection, Origin
from headrace.providers.faults import ConnectionFailedError, ConnectionLostError, SilenceError
from headrace.runtime.lookups import Lookups

# Seconds that one address of a name has before the next one is tried beside it: RFC 8305, section 5.
_NEXT_ADDRESS_SECONDS = 0.25


@dataclass(slots=True)
class _Share:
    """One server's share of a pool: its connections, and the calls that wait for one."""

    free: int
    """How many more connections may be in use."""
    line: deque[asyncio.Future[None]] = field(default_factory=deque)
    idle: list[Connection] = field(default_factory=list)


class Pool:
    """Gives each call a connection of its own, an idle one if there is one. Calls beyond the limit wait in line.

    Each server has a limit and a line of its own, so a call never waits for those to another server.
    """

    def __init__(self, limit: int, tls: ssl.SSLContext) -> None:
        """Allow `limit` connections to each server in use, in the running loop; idle ones do not count."""
        self._loop = asyncio.get_running_loop()
        self._tls = tls
        self._lookups = Lookups()
        self._shares: defaultdict[Origin, _Share] = defaultdict(lambda: _Share(limit))
        self._open: set[Connection] = set()
        self._emptied: asyncio.Future[None] | None = None

    async def take(self, origin: Origin, *, connect_timeout: float, patience: float) -> Connection:
        """Return a connection, which the caller gives back. A new one is made within `connect_timeout` seconds.

        Raises:
            SilenceError: No connection was free for `patience` seconds.
            ConnectionFailedError: There is no connection.
            TimeoutError: The server did not take the connection in time.
        """
        share = self._shares[origin]
        if share.free:
            share.free -= 1
        else:
            await self._wait_in_line(share, patience)
        idle = share.idle
        for at in reversed(range(len(idle))):
            if idle[at].ready:
                return idle.pop(at)
        try:
            async with asyncio.timeout(connect_timeout):
                return await self._connect(origin)
        except BaseException:
            _free_one(share)
            raise

    def give_back(self, connection: Connection) -> None:
        """Keep a connection for the next call, or close it if its answer is not complete and its reader wants more."""
        share = self._shares[connection.origin]
        if connection.rest():
            if self._emptied is None:
                share.idle.append(connection)
            else:
                connection.abort()
        _free_one(share)

    async def close(self) -> None:
        """Close every connection, and wait until they are."""
        if self._emptied is None:
            self._emptied = self._loop.create_future()
        for connection in tuple(self._open):
            connection.abort()
        if self._open:
            await self._emptied

    async def _wait_in_line(self, share: _Share, patience: float) -> None:
        place = self._loop.create_future()
        share.line.append(place)
        timer = self._loop.call_later(patience, _refuse, place, patience)
        try:
            await place
        except BaseException:
            if place.done() and not place.cancelled() and place.exception() is None:
                _free_one(share)  # it was this caller's turn when it was cancelled
            elif place in share.line:
                share.line.remove(place)
            raise
        finally:
            timer.cancel()

    async def _connect(self, origin: Origin) -> Connection:
        host, port, loop = origin.host, origin.port, self._loop
        tls = self._tls if origin.tls else None
        name = host if origin.tls else None
        opened = None
        try:
            addresses = await self._lookups.find(host, port)
            opened = await aiohappyeyeballs.start_connection(
                addresses, happy_eyeballs_delay=_NEXT_ADDRESS_SECONDS, interleave=1, loop=loop
            )
            _, connection = await loop.create_connection(
                lambda: Connection(origin, loop, self._forget), sock=opened, ssl=tls, server_hostname=name
            )
        except BaseException as error:
            if opened is not None:
                opened.close()
            if isinstance(error, OSError | UnicodeError) and not isinstance(error, TimeoutError):
                raise ConnectionFailedError(f"no connection: {error}") from error
            raise
        if connection.closed:
            raise ConnectionLostError("the connection closed as soon as it was there")
        self._open.add(connection)
        return connection

    def _forget(self, connection: Connection) -> None:
        """Drop a connection that has ended."""
        self._open.discard(connection)
        idle = self._shares[connection.origin].idle
        if connection in idle:
            idle.remove(connection)
        if self._emptied is not None and not self._open and not self._emptied.done():
            self._emptied.set_result(None)


def _free_one(share: _Share) -> None:
    """Give the place of a connection to the next call in line, or keep it for a later one."""
    while share.line:
        place = share.line.popleft()
        if not place.done():
            place.set_result(None)
            return
    share.free += 1


def _refuse(place: asyncio.Future[None], patience: float) -> None:
    if not place.done():
        place.set_exception(SilenceError(patience))
