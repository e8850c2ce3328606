"""One client's connection: uvicorn's, with limits on the memory and the time that a client can take.

uvicorn accepts a head of any size. It waits without end for the rest of a head or a body, and for a client that does
not read its answer. It has no settings for these limits, so this class extends the callbacks of the parser and of the
transport. The server calls `check` every `CHECK_SECONDS` for all connections, so a request needs no timer.
"""

from __future__ import annotations

import asyncio
import logging
import resource
from collections import deque
from collections.abc import Callable
from typing import Any

import httptools
from uvicorn._types import ASGISendEvent
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from api.http.errors import render_error
from headrace.errors import HeadraceError, InvalidRequestError, UnavailableError
from headrace.ids import new_id
from headrace.runtime.flag import Flag
from headrace.runtime.quiet_server import TICK_SECONDS
from headrace.settings import Settings
from headrace.telemetry.context import bind

log = logging.getLogger(__name__)

LARGEST_HEAD = 64 * 1024
"""The most bytes of a request's headers, and of its trailers."""
MOST_HEADERS = 128
"""The most headers of a request."""
LONGEST_URL = 16 * 1024
"""The most bytes of a request's path and query. Sixteen metadata filters with the longest names and values fit."""
MOST_PIPELINED = 16
"""The most requests that may wait on a connection while an earlier one is answered."""
IDLE_SECONDS = 75
"""Seconds a connection stays open without a request. Proxies close idle connections after about 60 seconds. If the
server closed one first, it would reset a request that the proxy is just sending."""
LEAST_BYTES_PER_SECOND = 512
"""Bytes per second that a client must send of a body or read of an answer, averaged over `client_timeout_seconds`."""
CHECK_SECONDS = TICK_SECONDS
"""Seconds between two checks of all connections."""
RESERVED_DESCRIPTORS = 128
"""Descriptors that clients cannot take: for Postgres, Redis and files, and for refusing further clients."""

# Seconds a refused client has to read the error.
_LINGER_SECONDS = 2.0
# Bytes of a body that are read and discarded after the request is answered. Some clients read the answer only when they
# have sent everything, and would find the connection closed.
_MOST_DRAINED = 256 * 1024 * 1024
# Connections that are accepted however few descriptors the process has.
_LEAST_CONNECTIONS = 16
# Idle connections that are closed at once to make room, as a share of all connections.
_ROOM = 1 / 16
# The requests that wait on a connection whose client does not pipeline: all share one queue, as one takes 0.7 KB.
_NONE_WAIT: deque[tuple[RequestResponseCycle, Any]] = deque(maxlen=0)
# What is left of the scopes of requests whose heads will not be read again.
_METHOD_ALONE: tuple[Any, Any] = ({"method": "GET"}, {"method": "HEAD"})
# The log line of a process whose connections are all in use.
_FULL = (
    "all %d connections of this API are in use: it closes idle ones, or else refuses new ones. "
    "HEADRACE_MAX_CONNECTIONS and the limit of open files (ulimit -Hn) set their number"
)


def most_connections(settings: Settings) -> int:
    """Return the most clients that may connect: as many as is set, and as there are file descriptors for."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if descriptors == resource.RLIM_INFINITY:
        return settings.max_connections
    return min(settings.max_connections, max(_LEAST_CONNECTIONS, descriptors - RESERVED_DESCRIPTORS))


class _Flow(FlowControl):
    """uvicorn's control of a connection's flow, with an event that takes less memory."""

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__(transport)
        self._is_writable_event = Flag(is_set=True)  # type: ignore[assignment]  # it has the methods that are called


class Client:
    """The client of a connection, in `request.state["client"]`: it tells one request at a time that it has left."""

    __slots__ = ("_connection", "_on_leaving", "gone", "head_read")

    def __init__(self, connection: Connection | None = None) -> None:
        self._connection = connection
        self.gone = False
        self.head_read = False
        """Whether the head of the last request will not be read again."""
        self._on_leaving: Callable[[], None] | None = None

    def notify(self, on_leaving: Callable[[], None] | None) -> None:
        """Call `on_leaving` when the client leaves, at once if it has left; with None, call nothing from now on."""
        self._on_leaving = on_leaving
        if self.gone and on_leaving is not None:
            on_leaving()

    @property
    def takes_more(self) -> bool:
        """Whether the streamed answer has begun and its next piece may be written without waiting for the client.

        An answer of HTTP/1.0 is never written like this, nor one while further requests wait on the connection.
        """
        connection = self._connection
        if connection is None or connection.pipeline:
            return False
        cycle = connection.cycle
        waits = connection.flow.write_paused or cycle.response_complete or connection.transport.is_closing()
        return bool(cycle.chunked_encoding) and not waits

    def write(self, piece: bytes) -> None:
        """Write a piece of a streamed answer as uvicorn would, but at once; only if the client `takes_more`."""
        assert self._connection is not None
        self._connection.transport.write(b"%x\r\n%b\r\n" % (len(piece), piece))

    def leave(self) -> None:
        """Note that the client has left."""
        self.gone = True
        self._connection = None  # which has this client: a cycle would wait for the garbage collector
        self.notify(self._on_leaving)


class Connection(HttpToolsProtocol):
    """A connection, from its first byte to its last.

    Its own attributes are slots: a dictionary with these and uvicorn's has too many keys to share them with others,
    and takes 1.3 KB more.
    """

    __slots__ = (
        "_client",
        "_head_bytes",
        "_in_head",
        "_parsed",
        "_problem",
        "_received",
        "_refused_at",
        "_settings",
        "_unparsed",
        "_unread",
        "_unread_since",
        "since",
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take what uvicorn gives."""
        super().__init__(*args, **kwargs)
        self.pipeline = _NONE_WAIT
        self._settings: Settings = self.app_state["settings"]
        self._client = Client(self)
        self._in_head = self._parsed = False
        self._head_bytes = 0
        # Bytes since the parser last called back, such as those of a header that does not end.
        self._unparsed = 0
        # When the wait for the client began: for a request, the rest of its head, or more of its body.
        self.since = 0.0
        self._received = 0
        # Bytes of an answer that the client has not read, and since when their number has not fallen.
        self._unread = 0
        self._unread_since = 0.0
        self._problem: HeadraceError | None = None
        self._refused_at: float | None = None

    # -- what the transport calls -------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Accept the connection, or refuse it if there are too many."""
        super().connection_made(transport)
        self.flow = _Flow(transport)
        self.server = self.client = None  # nothing reads the addresses, which take 0.4 KB
        self.since = self.loop.time()
        most = most_connections(self._settings)
        if len(self.connections) <= most:
            return
        log.warning(_FULL, most)
        if not self._make_room(most):
            self._refuse(UnavailableError("This server has no connection free.", retry_after=1))

    def connection_lost(self, exc: Exception | None) -> None:
        """End the requests of a client that has left."""
        super().connection_lost(exc)
        self._client.leave()

    def data_received(self, data: bytes) -> None:
        """Parse what the client sent, unless the client was refused."""
        if self._refused_at is not None:
            return
        self._parsed = False
        self._unset_keepalive_if_required()
        rest = data
        try:
            while rest:
                rest = self._parse(rest)
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")
        self._unparsed = 0 if self._parsed else self._unparsed + len(data)
        if self._unparsed > LARGEST_HEAD and self._refused_at is None:
            self._refuse(_head_too_large())

    def _parse(self, data: bytes) -> bytes:
        """Parse data, and return what to parse next: a head without its offer to upgrade, and what follows it.

        The parser takes what follows such a head for another protocol. A server that ignores the offer, as this one
        does, reads the request as any other (RFC 9110, 7.8).
        """
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            method, version = self.parser.get_method(), self.parser.get_http_version().encode()
            lines = b"".join(b"%b: %b\r\n" % header for header in self.headers if header[0] != b"upgrade")
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's
            return b"%b %b HTTP/%b\r\n%b\r\n%b" % (method, self.url, version, lines, data[offer.args[0] :])
        return b""

    def send_400_response(self, msg: str) -> None:
        """Answer with the problem that the parser or one of its callbacks found."""
        self._refuse(self._problem or InvalidRequestError(msg, code="invalid_http"))

    # -- what the parser calls ----------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Note that a request has begun."""
        super().on_message_begin()
        self.scope["state"]["client"] = self._client
        self._client.head_read = False
        self._parsed = self._in_head = True
        self._head_bytes = 0
        self.since = self.loop.time()

    def on_url(self, url: bytes) -> None:
        """Take a piece of the URL."""
        super().on_url(url)
        self._parsed = True
        if len(self.url) > LONGEST_URL:
            self._fail(
                InvalidRequestError(
                    f"The request's URL is longer than {LONGEST_URL} bytes.", status=414, code="url_too_long"
                )
            )

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header, or a trailer."""
        self._parsed = True
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > LARGEST_HEAD or len(self.headers) >= MOST_HEADERS:
            self._fail(_head_too_large())
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start the request, if not too many wait on this connection."""
        self._parsed = True
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                self._fail(InvalidRequestError("This server opens no tunnels.", code="invalid_http"))
            return  # the request starts when its head is parsed without the offer
        self._in_head = False
        self.since = self.loop.time()
        self._received = self._head_bytes = 0
        if len(self.pipeline) >= MOST_PIPELINED:
            self._fail(InvalidRequestError("Too many requests wait on this connection.", code="too_many_pipelined"))
        if self.pipeline is _NONE_WAIT and not self.is_idle:
            self.pipeline = deque()
        super().on_headers_complete()
        # uvicorn only sets, clears and awaits it, which a Flag does in less memory.
        self.cycle.message_event = Flag()  # type: ignore[assignment]
        cycle = self.pipeline[0][0] if self.pipeline else self.cycle
        if not cycle.keep_alive:  # uvicorn has no hook for the cycle's class
            cycle.__class__ = _UnframedCycle if self.scope["http_version"] == "1.0" else _LastCycle

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        self._parsed = True
        self._received += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Note that the whole request has been received; if it was the connection's last and is answered, close it."""
        if self.parser.should_upgrade():
            return
        super().on_message_complete()
        if not self.pipeline:
            self.flow.resume_reading()  # uvicorn pauses at a large body, and would not see that the client leaves
        if self.cycle.response_complete:
            self.cycle.more_body = False
            if isinstance(self.cycle, _LastCycle):
                self.transport.close()

    def on_response_complete(self) -> None:
        """Wait for the next request, or for the rest of a body that nothing reads."""
        self.since = self.loop.time()
        self._received = 0
        super().on_response_complete()
        if self.is_idle and self.cycle.more_body and isinstance(self.cycle, _LastCycle):
            self._end_answers()

    def _fail(self, problem: HeadraceError) -> None:
        self._problem = problem
        raise ValueError(problem.message)  # the parser stops, and `send_400_response` is called

    # -- what the clock calls -----------------------------------------------------------------------------------------

    def check(self, now: float) -> None:
        """Close the connection if its client has kept it waiting for too long; `now` is the event loop's time."""
        patience = self._settings.client_timeout_seconds
        if self._refused_at is not None:
            if now - self._refused_at > _LINGER_SECONDS:
                self.transport.abort()
            return
        reads = self._in_head or self.is_idle or self.pipeline
        if not reads and (self.cycle.response_started or self._client.head_read):
            self._forget_request()
        before, self._unread = self._unread, self.transport.get_write_buffer_size()
        if self._unread:
            if not before or before - self._unread >= LEAST_BYTES_PER_SECOND * CHECK_SECONDS:
                self._unread_since = now
            elif now - self._unread_since > patience:
                self.transport.abort()
        elif self.is_idle:
            self._check_idle(now, patience)
        elif self.cycle.more_body:
            self._check_sender(now, patience)

    def _forget_request(self) -> None:
        """Drop the head of a request whose answer needs its method alone: the client may wait for hours."""
        cycle: Any = self.cycle
        self.scope = cycle.scope = _METHOD_ALONE[cycle.scope["method"] == "HEAD"]
        self.headers, self.url = [], b""

    def _check_idle(self, now: float, patience: float) -> None:
        waited = now - self.since
        cycle: Any = self.cycle
        if self._in_head:
            if waited > patience:
                self._refuse(_too_slow("headers"))
        elif cycle is not None and cycle.more_body:
            # The client has its answer and still sends: it may read the answer only afterwards.
            slow = waited > _LINGER_SECONDS and self._received < LEAST_BYTES_PER_SECOND * waited
            if slow or waited > patience or self._received > _MOST_DRAINED:
                self.transport.abort()
        elif waited > IDLE_SECONDS:
            self.transport.close()

    def _check_sender(self, now: float, patience: float) -> None:
        cycle = self.cycle
        ours = self.flow.read_paused or cycle.body or cycle.waiting_for_100_continue
        if ours or self._received >= LEAST_BYTES_PER_SECOND * patience:
            self.since, self._received = now, 0
        elif now - self.since > patience:
            self._refuse(_too_slow("body"))

    # -- refusing -----------------------------------------------------------------------------------------------------

    @property
    def is_idle(self) -> bool:
        """Whether no request is in progress."""
        cycle: Any = self.cycle  # None before the first request, which uvicorn's types do not say
        return cycle is None or cycle.response_complete

    def _make_room(self, most: int) -> bool:
        """Close the connections that have been idle for longest. Returns whether one was idle."""
        others = [other for other in self.connections if isinstance(other, Connection) and other is not self]
        idle = [other for other in others if other.is_idle and not other.transport.get_write_buffer_size()]
        idle.sort(key=lambda other: other.since)
        for other in idle[: max(1, int(most * _ROOM))]:
            other.transport.abort()
        return bool(idle)

    def _refuse(self, error: HeadraceError) -> None:
        """Answer with an error in any state of a request, and close the connection once the client has read it."""
        self._refused_at = self.loop.time()
        if not self.is_idle:
            cycle = self.cycle
            if cycle.response_started or self.pipeline:
                self.transport.abort()
                return
            cycle.disconnected = True
            cycle.message_event.set()
            self._client.leave()
        self._unset_keepalive_if_required()
        answer = render_error(error)
        request_id = new_id("req")
        answer.headers["connection"] = "close"
        answer.headers["x-request-id"] = request_id
        with bind(request=request_id):
            # A 5xx says that all connections are in use, and `connection_made` has logged a warning that says so.
            level = logging.INFO if error.status < 500 else logging.DEBUG
            log.log(level, "refused a request: %s", error.summary())
        lines = b"".join(b"%b: %b\r\n" % header for header in answer.raw_headers)
        self.transport.write(b"%b%b\r\n%b" % (STATUS_LINE[error.status], lines, bytes(answer.body)))
        self.flow.resume_reading()
        self._end_answers()

    def _end_answers(self) -> None:
        """Send no more, but go on receiving: closing would reset a client that sends all before it reads its answer."""
        if self.transport.can_write_eof():
            self.transport.write_eof()


class _LastCycle(RequestResponseCycle):
    """A request that is its connection's last, and its answer."""

    async def send(self, message: ASGISendEvent) -> None:
        """Send a part of the answer. uvicorn closes the connection after it, unless the client is still sending."""
        if message["type"] == "http.response.body" and not message.get("more_body", False) and self.more_body:
            self.keep_alive = True
        await super().send(message)


class _UnframedCycle(_LastCycle):
    """A request of HTTP/1.0. Its answer has no chunked framing: the connection's end ends it (RFC 9112, 6.1)."""

    async def send(self, message: ASGISendEvent) -> None:
        """Send a part of the answer."""
        if message["type"] == "http.response.start":
            self.keep_alive = False
            if all(name.lower() != b"content-length" for name, _ in message.get("headers", ())):
                self.chunked_encoding = False
        elif message["type"] == "http.response.body" and not self.expected_content_length:
            self.expected_content_length = len(message.get("body", b""))  # uvicorn sends no more than it expects
        await super().send(message)


def _head_too_large() -> InvalidRequestError:
    return InvalidRequestError(
        f"The request's headers are larger than {LARGEST_HEAD} bytes, or more than {MOST_HEADERS}.",
        status=431,
        code="headers_too_large",
    )


def _too_slow(part: str) -> InvalidRequestError:
    return InvalidRequestError(f"The request's {part} did not come in time.", status=408, code="request_timeout")
