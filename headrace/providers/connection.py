"""One HTTP/1.1 connection to a provider (RFC 9112). A request leaves in one write, and callbacks read its answer.

A connection has one exchange at a time. httptools (llhttp) parses the answer, as lenient as most clients are.
"""

from __future__ import annotations

import asyncio
import contextvars
import socket
from collections.abc import AsyncIterable, Callable
from typing import NamedTuple, cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from headrace.providers.faults import ConnectionFailedError, ConnectionLostError, SilenceError
from headrace.runtime.clock import LATE_SECONDS, is_late

LARGEST_HEAD = 64 * 1024
"""Bytes that an answer may have in a row without a byte of its body: its head, its trailers, chunks' extensions."""
_KEEPALIVE_SECONDS = 60.0
"""Seconds that an idle connection is kept."""
_DRAIN_SECONDS = 5.0
"""Seconds that an answer may take to end after its reader has enough."""
_MOST_UNREAD = 128 * 1024
"""Bytes of a body that wait for their reader before the connection stops reading."""
_LARGEST_JOIN = 64 * 1024
"""Bytes of a body that are copied to leave with the head."""
# Seconds. uvloop's timers are rounded to milliseconds, so they may fire this much early.
_TIMER_STEP = 0.001
_SUCCESS = 200
# Headers of an answer that succeeds which are read.
_READ = (b"content-type", b"content-encoding", b"content-length", b"transfer-encoding")
_REDIRECTION = 300


class Origin(NamedTuple):
    """A server: connections to the same one serve the same calls."""

    tls: bool
    host: str
    port: int


class Connection(asyncio.Protocol):
    """A connection, and the answer that it reads.

    `begin` and `upload` send a request and return with the answer's head. `pass_on` and `more` read its body. All of
    them raise SilenceError and ConnectionFailedError.
    """

    def __init__(self, origin: Origin, loop: asyncio.AbstractEventLoop, gone: Callable[[Connection], None]) -> None:
        """Prepare for the loop's transport, and call `gone` once the connection has ended."""
        # CPython shares the keys of at most 29 attributes: with one more, each connection takes 1.5 KB more.
        self.origin = origin
        self._loop = loop
        self._gone = gone
        self._transport: asyncio.Transport
        self.closed = False
        """Whether the connection has ended, or is about to."""
        self.complete = True
        """Whether the whole answer has come."""
        self.enough = False
        """Whether the answer's reader needs no more of it."""
        self.status = 0
        """The answer's status, or 0 until its head has come."""
        self.headers: dict[bytes, bytes] = {}
        """The answer's first header of each name, in lower case; of one that succeeds, those that are read."""
        self._in_use = False
        self._sent = True
        self._keeps = True
        self._interim = False
        self._bare = 0
        self._unread = 0
        self._reading = True
        self._full = False
        self._arrived: list[bytes] = []
        self._named: dict[bytes, bytes] = {}
        self._take: Callable[[bytes], object] | None = None
        self._context: contextvars.Context | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._error: Exception | None = None
        # One timer serves every silence and the idle time: it fires no later than the next of them, and looks then.
        self._timer: asyncio.TimerHandle | None = None
        self._heard_at = 0.0
        self._patience = _KEEPALIVE_SECONDS
        # The parser's callbacks. The two that are called for every header and every piece are functions in C.
        self.on_header = self._named.setdefault
        self.on_body = self._arrived.append
        self._parser = HttpResponseParser(self)
        self._parser.set_dangerous_leniencies(
            lenient_headers=True, lenient_optional_cr_before_lf=True, lenient_spaces_after_chunk_size=True
        )

    # -- requests -----------------------------------------------------------------------------------------------------

    async def begin(self, head: bytes, body: bytes, *, patience: float, since: float) -> None:
        """Send a request, and wait for the head of its answer until `patience` seconds after `since`."""
        self._start(patience, since)
        if len(body) <= _LARGEST_JOIN:
            self._transport.write(head + body)
        else:
            self._transport.writelines((head, body))
        while not self.status:
            await self._wait()

    async def upload(self, head: bytes, pieces: AsyncIterable[bytes], *, patience: float, since: float) -> None:
        """Send a request while its body is read, and wait for the head of its answer.

        The provider is not silent while it takes the body. An error that it answers early ends the sending.
        """
        self._start(patience, since)
        self._sent = False
        self._transport.write(head)
        async for piece in pieces:
            if self._error is not None or self.closed or self.status >= _REDIRECTION:
                break
            self._heard_at = self._loop.time()
            self._transport.write(piece)
            while self._full and self.status < _REDIRECTION:
                await self._wait()
        else:
            self._sent = True
        self._heard_at = self._loop.time()
        while not self.status:
            await self._wait()

    def _start(self, patience: float, since: float) -> None:
        self._in_use = True
        self.complete = self._interim = self.enough = False
        self.status = self._bare = self._unread = 0
        self._named.clear()
        self._patience, self._heard_at = patience, since

    # -- answers ------------------------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether the connection can have another exchange."""
        return self.complete and not self.closed

    @property
    def ended(self) -> bool:
        """Whether the whole answer has come and been read."""
        return self.complete and not self._arrived

    async def pass_on(self, take: Callable[[bytes], object], *, patience: float) -> bool:
        """Call `take` with bytes of the body as they arrive, until it returns something true or the body has ended.

        It is called where bytes arrive, in the context of this coroutine. What it raises, this raises. Returns whether
        the body was read to its end.
        """
        if self._arrived and take(self._pop()):
            self.enough = True
            return False
        if not self.complete:
            self._patience, self._heard_at = patience, self._loop.time()
            self._take, self._context = take, contextvars.copy_context()
            try:
                while self._passing():
                    await self._wait()
                return not self.enough
            finally:
                self._take = self._context = None
        return True

    def _passing(self) -> bool:
        return self._take is not None and not self.complete

    async def more(self, *, patience: float) -> bytes:
        """Return bytes of the body that have arrived, after waiting for some; none at its end."""
        self._patience, self._heard_at = patience, self._loop.time()
        while not self._arrived and not self.complete:
            await self._wait()
        return self._pop()

    def _pop(self) -> bytes:
        arrived = self._arrived
        piece = arrived[0] if len(arrived) == 1 else b"".join(arrived)
        arrived.clear()
        self._unread = 0
        if not self._reading:
            self._reading = True
            self._transport.resume_reading()
        return piece

    # -- the end ------------------------------------------------------------------------------------------------------

    def rest(self) -> bool:
        """End the exchange, and return whether the connection will be ready for another one; it is closed if not.

        It is ready once the answer ends, if its reader had enough before: few streams end in one piece with their last
        event.
        """
        self._in_use = False
        self._error = None
        self._arrived.clear()
        self._bare = 0
        reusable = self._sent and self._keeps and not self.closed and (self.complete or self.enough)
        if not reusable or self._transport.get_write_buffer_size():
            self.abort()
            return False
        if not self._reading:
            self._reading = True
            self._transport.resume_reading()
        self._patience, self._heard_at = _KEEPALIVE_SECONDS if self.complete else _DRAIN_SECONDS, self._loop.time()
        self._watch()
        return True

    def _drain(self, data: bytes) -> bool:
        """Parse bytes that no reader waits for, and return whether they are the rest of the last answer."""
        if self.complete:
            return False
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade):
            return False
        self._arrived.clear()
        self._bare += len(data)
        if self.ended:
            self._patience = _KEEPALIVE_SECONDS
        return self._bare <= LARGEST_HEAD

    def abort(self) -> None:
        """Close the connection at once."""
        if not self.closed:
            self.closed = True
            self._transport.abort()

    # -- waiting ------------------------------------------------------------------------------------------------------

    async def _wait(self) -> None:
        """Wait until bytes have arrived, or more can be sent."""
        if self._error is None:
            if self.closed:
                raise ConnectionLostError("the connection is closed")
            self._watch()
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        # An error that lay in the future would have a traceback that holds the future: a cycle.
        error, self._error = self._error, None
        if error is not None:
            try:
                raise error
            finally:
                del error

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _fail(self, error: Exception) -> None:
        self._take = None
        if self._error is None:
            self._error = error
        self._wake()

    def _watch(self) -> None:
        due, timer = self._heard_at + self._patience, self._timer
        if timer is None or timer.when() > due:
            if timer is not None:
                timer.cancel()
            self._timer = self._loop.call_at(due, self._look)

    def _look(self) -> None:
        """End the exchange or the idle connection if it is time to; else set the timer anew."""
        timer, self._timer = self._timer, None
        if timer is not None and is_late(timer):
            self._timer = self._loop.call_later(LATE_SECONDS, self._look)
            return
        if self._in_use and self._waiter is None:
            return  # the provider waits for us
        if self._heard_at + self._patience > self._loop.time() + _TIMER_STEP:
            self._watch()
            return
        if self._in_use:
            self._fail(SilenceError(self._patience))
        self.abort()

    # -- the loop's callbacks -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast("asyncio.Transport", transport)
        if (raw := transport.get_extra_info("socket")) is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def data_received(self, data: bytes) -> None:
        """Parse what came, and hand it to the reader."""
        if not self._in_use:
            if not self._drain(data):
                self.abort()
            return
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            self._keeps = False
            if not self.complete:
                self._fail(ConnectionFailedError(f"the answer is not valid HTTP: {error}"))
                self.abort()
                return
        arrived = self._arrived
        if arrived:
            self._bare = 0
        elif not self.complete:
            self._bare += len(data)
            if self._bare > LARGEST_HEAD:
                self._fail(ConnectionFailedError(f"the answer's head is larger than {LARGEST_HEAD} bytes"))
                self.abort()
                return
        if not self.status:
            return
        self._heard_at = self._loop.time()
        if self._take is None or self._context is None:
            self._unread += len(data)
            if self._unread > _MOST_UNREAD and self._reading and not self.complete:
                self._reading = False
                self._transport.pause_reading()
            self._wake()
        elif arrived:
            try:
                enough = self._context.run(self._take, self._pop())
            except Exception as error:  # noqa: BLE001  (the coroutine that waits raises it)
                self._fail(error)
            else:
                if enough:
                    self.enough = True
                if enough or self.complete:
                    self._take = None
                    self._wake()
        elif self.complete:
            self._wake()

    def eof_received(self) -> None:
        """Take no further exchange: the transport closes now."""
        self._keeps = False
        if not self._in_use:
            self.closed = True

    def connection_lost(self, exc: Exception | None) -> None:
        """End the exchange: an answer without a length ends with its connection."""
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._in_use and not self.complete:
            if exc is None and self.status and not self._has_length():
                self.complete = True
                self._wake()
            else:
                part = "ended" if self.status else "began"
                self._fail(ConnectionLostError(f"the connection closed before the answer {part}{_because(exc)}"))
        del self._parser  # it has this connection's methods
        self._gone(self)

    def _has_length(self) -> bool:
        coding = self.headers.get(b"transfer-encoding")
        if coding is not None:
            return coding.strip().lower().endswith(b"chunked")
        return b"content-length" in self.headers

    def pause_writing(self) -> None:
        """Stop sending."""
        self._full = True

    def resume_writing(self) -> None:
        """Go on sending."""
        self._full = False
        self._heard_at = self._loop.time()
        self._wake()

    # -- the parser's callbacks ---------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Refuse another answer behind the one that was asked for."""
        if self.complete:
            raise ConnectionFailedError

    def on_headers_complete(self) -> None:
        """Take the head, unless it is that of an interim answer (1xx)."""
        status = self._parser.get_status_code()
        if status < _SUCCESS:
            self._interim = True
            self._named.clear()
            return
        headers = {name.lower(): value for name, value in self._named.items()}
        self._named.clear()
        # The answer may take long, and providers send kilobytes of headers with each.
        self.headers = {name: headers[name] for name in _READ if name in headers} if status == _SUCCESS else headers
        self._keeps = self._parser.should_keep_alive()
        self.status = status

    def on_message_complete(self) -> None:
        """End the answer."""
        if self._interim:
            self._interim = False
        else:
            self.complete = True


def _because(error: Exception | None) -> str:
    return "" if error is None else f": {str(error) or type(error).__name__}"
