"""Calls to providers: limits of their answers, their silences, and errors that a client may see."""

from __future__ import annotations

import contextlib
import re
from asyncio import get_running_loop
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Literal

import httpx

from headrace.catalogue.models import Provider
from headrace.decompression import ENCODINGS, CompressionError, Decompressor
from headrace.errors import UpstreamError, UpstreamTimeoutError, UpstreamTooLargeError, shorten
from headrace.formats.chat.support import FORMAT_OF
from headrace.formats.failures import failure
from headrace.formats.registry import FORMATS
from headrace.providers.connection import Connection
from headrace.providers.cooldown import cooldown_seconds
from headrace.providers.faults import ConnectionFailedError, ConnectionLostError, SilenceError
from headrace.providers.pool import Pool
from headrace.providers.request import Upload, address_of, head_of, target_of
from headrace.telemetry.redaction import redact

__all__ = ["Allowance", "Answer", "Call", "ProviderClient", "Upload", "without_secret"]

LARGEST_ANSWER = 64 * 1024 * 1024
"""Bytes of an answer, whole or streamed, of all of its choices together."""
MOST_VALUES = 4_000_000
"""JSON values of an answer: 200,000 tokens in as many events have about three million."""
# What is left out to count the bytes that begin a value or stand before one.
_UNCOUNTED = bytes(set(range(256)) - set(b",{["))
# Bytes of an error's body that are read.
_LARGEST_ERROR = 64 * 1024
_LOST = "The connection to the model's provider failed."
# Characters of a library's words on a failure.
_LONGEST_REASON = 300
_NONE: Mapping[str, str] = {}
# The user of a URL, and its query with whatever comes behind.
_SECRET_IN_URL = re.compile(r"(?<=://)[^/\s@]*@|(?<=\S)[?#][^\s\])'\"]*")
# How a stream of events may begin: a field, a comment, or a byte order mark. JSON begins otherwise.
_EVENTS = (b"data", b"event", b"id", b"retry", b"error", b":", b"\xef\xbb\xbf")
# Two objects of a stream that is a JSON document a line; one document cannot have this, even in its strings.
_TWO_LINES = re.compile(rb"\}\r?\n\{")
# What servers write of a body that is not compressed; `none` is that of gateways that keep others from doing it.
_NOT_PACKED = frozenset({"", "identity", "none"})
_FAILURES = (ConnectionFailedError, SilenceError, TimeoutError)


class Allowance:
    """The bytes and JSON values that one answer may still have, in all of its calls."""

    def __init__(self) -> None:
        """Allow a whole answer."""
        self._bytes = LARGEST_ANSWER
        self._values = MOST_VALUES

    def take(self, piece: bytes) -> None:
        """Count a piece of the answer. Commas in strings count too, so the count of values is an upper bound.

        Raises:
            UpstreamTooLargeError: The answer is too large.
        """
        self._bytes -= len(piece)
        self._values -= len(piece.translate(None, _UNCOUNTED))  # takes a third of counting each of the three
        if self._bytes < 0 or self._values < 0:
            raise UpstreamTooLargeError


class ProviderClient:
    """Connections to every provider, kept alive between calls."""

    def __init__(self, *, connections: int) -> None:
        """Allow `connections` calls to each server at the same time. It is made where the event loop runs."""
        # The certificates that httpx trusts: SSL_CERT_FILE or SSL_CERT_DIR, else certifi's.
        self._pool = Pool(connections, httpx.create_ssl_context())

    async def close(self) -> None:
        """Close every connection."""
        await self._pool.close()

    def call(
        self,
        provider: Provider,
        *,
        url: str,
        headers: Mapping[str, str],
        body: bytes | Upload = b"",
        method: Literal["POST", "GET"] = "POST",
        allowance: Allowance | None = None,
    ) -> Call:
        """Return a call: entering sends its request and gives the answer to read, leaving ends the call.

        A body is JSON unless `headers` have a content type. Calls that make up one answer share an `allowance`.
        """
        allowance = allowance or Allowance()
        return Call(self._pool, provider, method=method, url=url, headers=headers, body=body, allowance=allowance)


class Call:
    """One request to a provider, and its answer while the block lasts."""

    __slots__ = ("_allowance", "_body", "_connection", "_headers", "_method", "_pool", "_provider", "_url")

    def __init__(
        self,
        pool: Pool,
        provider: Provider,
        *,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | Upload,
        allowance: Allowance,
    ) -> None:
        self._pool = pool
        self._provider = provider
        self._method = method
        self._url = url
        self._headers = headers
        self._body = body
        self._allowance = allowance

    async def __aenter__(self) -> Answer:
        """Send the request, and return the answer once its head is here.

        Raises:
            UpstreamError: No answer, or an error status; the class says which, and whether to try again.
        """
        provider, url = self._provider, self._url
        try:
            head = head_of(self._method, url, self._headers, self._body)
            try:
                self._connection = connection = await self._send(head)
            except ConnectionLostError:
                if self._method != "GET":
                    raise  # the provider may have begun to do what it was asked for
                self._connection = connection = await self._send(head)
        except _FAILURES as error:
            raise _translated(error, url, provider.connect_timeout) from error
        self._body, self._headers = b"", _NONE  # the answer may take minutes
        answer = Answer(connection, url, silence_seconds=provider.read_timeout, allowance=self._allowance)
        if connection.status != 200:
            try:
                raise await _refusal(answer, connection, provider)
            finally:
                self._pool.give_back(connection)
        return answer

    async def __aexit__(self, *_: object) -> None:
        """End the call, and keep its connection if the whole answer has come."""
        self._pool.give_back(self._connection)

    async def _send(self, head: bytes) -> Connection:
        provider, pool, body = self._provider, self._pool, self._body
        since = get_running_loop().time()
        patience = provider.connect_timeout + provider.read_timeout
        connection = await pool.take(
            target_of(self._url).origin, connect_timeout=provider.connect_timeout, patience=patience
        )
        try:
            if isinstance(body, Upload):
                await connection.upload(head, body.pieces, patience=patience, since=since)
            else:
                await connection.begin(head, body, patience=patience, since=since)
        except BaseException:
            pool.give_back(connection)
            raise
        return connection


def _may_begin_events(body: bytes) -> bool:
    """Return whether more bytes have to come before a body shows if it is a stream of events."""
    return not body or any(beginning.startswith(body) and beginning != body for beginning in _EVENTS)


class Answer:
    """A provider's answer whose body has not been read."""

    __slots__ = ("_allowance", "_connection", "_first", "_lines", "_packed", "_silence", "_take", "_url")

    def __init__(self, connection: Connection, url: str, *, silence_seconds: float, allowance: Allowance) -> None:
        """Wait no longer than `silence_seconds` for the next bytes; errors name the address of the `url`."""
        self._connection = connection
        self._url = url
        self._lines = b"ndjson" in connection.headers.get(b"content-type", b"")
        self._allowance = allowance
        self._silence = silence_seconds
        self._first = b""
        encoding = connection.headers.get(b"content-encoding", b"").decode("latin-1").strip().lower()
        self._packed = None if encoding in _NOT_PACKED else _Packed(encoding)

    async def is_stream(self) -> bool:
        """Return whether the answer is a stream, whatever was asked for: server-sent events, or a JSON document a line.

        Raises:
            UpstreamError: The connection broke, fell silent for too long, or there was too much.
        """
        while _may_begin_events(self._first.lstrip()):
            piece = await self._more()
            if not piece:
                return False
            self._allowance.take(piece)
            self._first += piece
        return self._lines or self._first.lstrip().startswith(_EVENTS) or _TWO_LINES.search(self._first) is not None

    async def pass_on(self, take: Callable[[bytes], object]) -> None:
        """Call `take` with bytes as they arrive, until it returns something true or the answer has ended.

        The connection calls it, so that no task wakes for each piece.

        Raises:
            UpstreamError: The connection broke, fell silent for too long, or there was too much.
        """
        connection, self._take = self._connection, take
        if self._first and take(self._pop_first()):
            connection.enough = True
            return
        try:
            ended = connection.ended or await connection.pass_on(self._count, patience=self._silence)
            if self._packed is not None and ended:
                self._packed.finish()
        except _FAILURES as error:
            raise _translated(error, self._url) from error

    def _pop_first(self) -> bytes:
        first, self._first = self._first, b""
        return first

    def _count(self, piece: bytes) -> object:
        """Count and take a piece of the body as it came."""
        if self._packed is not None:
            piece = self._packed.unpack(piece)
        self._allowance.take(piece)
        return self._take(piece)

    async def unhurried(self) -> AsyncGenerator[bytes, None]:
        """Yield bytes to a reader that may be slow: only the provider's silence is timed.

        Raises:
            UpstreamError: The connection broke, or fell silent for too long.
        """
        while piece := await self._more():
            yield piece

    async def read(self) -> bytes:
        """Return the whole answer.

        Raises:
            UpstreamError: The connection broke, fell silent for too long, or there was too much.
        """
        if self._connection.ended and self._packed is None:
            return self._first
        pieces: list[bytes] = []
        await self.pass_on(pieces.append)
        return b"".join(pieces)

    async def _more(self) -> bytes:
        """Return the next bytes, or none at the end."""
        try:
            while piece := await self._connection.more(patience=self._silence):
                if self._packed is None or (piece := self._packed.unpack(piece)):
                    return piece
            if self._packed is not None:
                self._packed.finish()
        except _FAILURES as error:
            raise _translated(error, self._url) from error
        return b""


class _Packed:
    """A body that its server compressed, though it was asked not to."""

    __slots__ = ("_body", "_encoding")

    def __init__(self, encoding: str) -> None:
        self._encoding = encoding
        self._body = Decompressor(self._encoding) if self._encoding in ENCODINGS else None

    def unpack(self, piece: bytes) -> bytes:
        """Return what a piece holds.

        Raises:
            ConnectionFailedError: It is not compressed as its header says, or in a way that is not known here.
            UpstreamTooLargeError: It holds more than a whole answer may.
        """
        if self._body is None:
            raise ConnectionFailedError(f"the answer is compressed in an unknown way: {shorten(self._encoding)!r}")
        try:
            piece = self._body.decode(piece, LARGEST_ANSWER + 1)
        except CompressionError as error:
            raise ConnectionFailedError(f"the answer is compressed wrongly: {error}") from error
        if len(piece) > LARGEST_ANSWER:
            raise UpstreamTooLargeError
        return piece

    def finish(self) -> None:
        """Check that the body is whole.

        Raises:
            ConnectionFailedError: It ends in the middle.
        """
        if self._body is not None and not self._body.finished:
            raise ConnectionFailedError("the compressed answer is not complete")


async def _refusal(answer: Answer, connection: Connection, provider: Provider) -> UpstreamError:
    """Return the error of an answer with another status than 200."""
    body = b""
    with contextlib.suppress(UpstreamError):
        async with contextlib.aclosing(answer.unhurried()) as pieces:
            async for piece in pieces:
                body += piece
                if len(body) > _LARGEST_ERROR:
                    break
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in connection.headers.items()}
    form = FORMATS[FORMAT_OF[provider.kind]]
    return failure(form.parse_error(body), connection.status, retry_after=cooldown_seconds(headers))


def _translated(error: Exception, url: str, connect_timeout: float = 0.0) -> UpstreamError:
    """Return what a failure of the connection is for the job; an operator sees the server's address in the detail."""
    address = address_of(url)
    if isinstance(error, SilenceError):
        return UpstreamTimeoutError(detail=f"{address}: {error}")
    if isinstance(error, TimeoutError):
        return UpstreamTimeoutError(detail=f"{address}: no connection within {connect_timeout:g} s")
    return UpstreamError(_LOST, detail=f"{address}: {_reason(error)}")


def _reason(error: Exception) -> str:
    """Return a message of a failure, without parts of quoted URLs that may be secret."""
    return _SECRET_IN_URL.sub("", " ".join(str(error).split()))[:_LONGEST_REASON]


def without_secret(error: UpstreamError, secret: str | None) -> UpstreamError:
    """Return a provider's error for the client: without the provider's key, and without text that looks like a key."""

    def concealed(text: str | None) -> str | None:
        return None if text is None else redact(text.replace(secret, "***") if secret else text)

    return type(error)(
        concealed(error.message),
        param=concealed(error.param),
        code=concealed(error.code),
        status=error.status,
        retry_after=error.retry_after,
        detail=concealed(error.detail),
    )
