"""One connection to Redis on which commands need not wait for one another.

redis-py takes a connection from its pool for each command, checks it, waits for two time-outs and parses the answer in
a stream of asyncio's, which costs five times as much CPU as all the rest of a command's round trip. It still opens the
connection here, with all that a URL may ask for; then this module reads and writes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Self, cast

import hiredis
from redis.asyncio.connection import AbstractConnection, ConnectionPool, DefaultParser
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, ReadOnlyError
from redis.exceptions import TimeoutError as RedisTimeoutError

from headrace.runtime.chores import last_tick_within
from headrace.runtime.clock import LATE_SECONDS, is_late

OnPush = Callable[[Any], None]

# What the parser returns when an answer is not whole yet.
_PARTIAL = object()


class RedisPipe(asyncio.Protocol):
    """A connection whose answers come in the order of its commands. Once closed, it stays closed."""

    def __init__(self, connection: AbstractConnection, *, patience_seconds: float, on_push: OnPush) -> None:
        """Take over a connection that is open. It is closed when an answer takes longer than `patience_seconds`."""
        self.ended: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        """Done when the connection is closed, with the reason."""
        self._on_push = on_push
        self._patience = patience_seconds
        self._loop = asyncio.get_running_loop()
        self._parser = hiredis.Reader(
            protocolError=InvalidResponse, replyError=DefaultParser.parse_error, notEnoughData=_PARTIAL
        )
        self._asked: deque[tuple[asyncio.Future[Any] | None, float]] = deque()
        """Commands without an answer, and by when each is due; None for one whose answer does not matter."""
        # Watches over the commands while some have no answer.
        self._timer: asyncio.TimerHandle | None = None
        taken = cast("Any", connection)
        self._writer: asyncio.StreamWriter = taken._writer  # noqa: SLF001  (it closes its transport when it is freed)
        self._transport = self._writer.transport
        self._transport.set_protocol(self)
        taken._reader = taken._writer = None  # noqa: SLF001  (what redis-py closes no longer)

    @classmethod
    async def open(cls, pool: ConnectionPool, *, patience_seconds: float, on_push: OnPush | None = None) -> Self:
        """Open a connection as the pool would. `on_push` gets what Redis sends unasked, such as messages of channels.

        Raises:
            redis.exceptions.RedisError: Redis is unavailable.
        """
        connection: AbstractConnection = pool.make_connection()
        await connection.connect()
        return cls(connection, patience_seconds=patience_seconds, on_push=on_push or _ignore)

    @property
    def closed(self) -> bool:
        """Whether the connection is closed."""
        return self.ended.done()

    async def ask(self, *command: Any) -> Any:
        """Send a command, and return its answer as Redis sent it.

        Raises:
            redis.exceptions.ResponseError: Redis refused the command.
            redis.exceptions.ConnectionError: The connection broke. The command may have taken effect.
            redis.exceptions.TimeoutError: No answer came in time. The command may have taken effect.
        """
        return await self.ask_all((command,))

    async def ask_all(self, commands: Sequence[tuple[Any, ...]]) -> Any:
        """Send commands in one write, and return the answer to the last one; it raises what `ask` does."""
        if self.closed:
            raise RedisConnectionError("The connection to Redis is closed.")
        packed = b"".join(map(_pack, commands))
        answer: asyncio.Future[Any] = self._loop.create_future()
        due = self._loop.time() + self._patience
        self._asked.extend([(None, due)] * (len(commands) - 1))
        self._asked.append((answer, due))
        self._transport.write(packed)
        if self._timer is None:
            self._timer = self._loop.call_later(last_tick_within(self._patience), self._watch)
        return await answer

    def tell(self, *command: Any) -> None:
        """Send a command that Redis answers with pushes, if the connection is open."""
        if not self.closed:
            self._transport.write(_pack(command))

    def close(self) -> None:
        """Close the connection, and fail the commands that have no answer yet."""
        self._end(RedisConnectionError("The connection to Redis is closed."))

    # -- what the transport calls -------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Give each command whose answer is whole its answer."""
        self._parser.feed(data)
        try:
            while (answer := self._parser.gets()) is not _PARTIAL:
                if self._asked and not isinstance(answer, hiredis.PushNotification):
                    self._answer(answer)
                elif isinstance(answer, Exception):
                    self._end(answer)
                else:
                    self._on_push(answer)
        except InvalidResponse as error:
            self._end(error)

    def connection_lost(self, error: Exception | None) -> None:
        """Fail the commands that have no answer yet."""
        self._end(RedisConnectionError(f"Redis closed the connection: {error or 'it ended'}"))

    def _answer(self, answer: Any) -> None:
        waiting, _ = self._asked.popleft()
        if waiting is not None and not waiting.done():  # else its caller was cancelled
            if isinstance(answer, Exception):
                waiting.set_exception(answer)
            else:
                waiting.set_result(answer)
        if isinstance(answer, ReadOnlyError):  # the master has become a replica: a new connection finds the other
            self._end(answer)

    def _watch(self) -> None:
        """Close the connection if the oldest command is overdue, or look again when it is due.

        The first look is early, with the chores of an idle process: most commands have their answers by then.
        """
        timer, self._timer = self._timer, None
        if timer is None or not self._asked or self.closed:
            return
        _, due = self._asked[0]
        if due > self._loop.time():
            self._timer = self._loop.call_at(due, self._watch)
        elif is_late(timer):
            self._timer = self._loop.call_later(LATE_SECONDS, self._watch)
        else:
            self._end(RedisTimeoutError(f"Redis did not answer within {self._patience:g} s."))

    def _end(self, error: Exception) -> None:
        if not self.closed:
            self.ended.set_result(error)
        self._transport.abort()
        asked, self._asked = self._asked, deque()
        for waiting, _ in asked:
            if waiting is not None and not waiting.done():
                waiting.set_exception(error)


def _ignore(_pushed: Any) -> None: ...


def _pack(command: tuple[Any, ...]) -> bytes:
    """Return a command as Redis reads it. Its name may be of two words, which are two arguments to Redis."""
    packed: bytes = hiredis.pack_command((*command[0].split(), *command[1:]))
    return packed
