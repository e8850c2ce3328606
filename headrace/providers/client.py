"""The one place that opens HTTP to a provider."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import re
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Literal
from urllib.parse import unquote_to_bytes, urlsplit

import aiohttp
import httpx

from headrace.catalogue.models import Provider
from headrace.errors import UpstreamError, UpstreamTimeoutError, UpstreamTooLargeError
from headrace.formats.chat.support import FORMAT_OF
from headrace.formats.failures import failure
from headrace.formats.registry import FORMATS, WireFormat
from headrace.providers.cooldown import cooldown_seconds
from headrace.telemetry.redaction import redact

LARGEST_ANSWER = 64 * 1024 * 1024
"""Bytes of an answer, whole or streamed, of all of its choices together."""
MOST_VALUES = 4_000_000
"""JSON values of an answer: 200,000 tokens in as many events have about three million."""
_LARGEST_ERROR = 64 * 1024
# A timer is set anew no oftener than this, so a silence is noticed up to this much late.
_COARSENESS_SECONDS = 0.5
_LOST = "The connection to the model's provider failed."
# Characters of a library's words on a failure.
_LONGEST_REASON = 300
# The user of a URL, and its query with whatever comes behind.
_SECRET_IN_URL = re.compile(r"(?<=://)[^/\s@]*@|(?<=\S)[?#][^\s\])'\"]*")
# Seconds that an idle connection is kept.
_KEEPALIVE_SECONDS = 60.0
# Bytes of an answer that are taken at a time, at most.
_PIECE_BYTES = 16 * 1024
# Addresses of calls that are remembered.
_MOST_ADDRESSES = 256
# How a stream of events may begin: a field, a comment, or a byte order mark. JSON begins otherwise.
_EVENTS = (b"data", b"event", b"id", b"retry", b"error", b":", b"\xef\xbb\xbf")
# Two objects of a stream that is a JSON document a line; one document cannot have this, even in its strings.
_TWO_LINES = re.compile(rb"\}\r?\n\{")


@dataclass(frozen=True, slots=True)
class Upload:
    """A body that is sent while it is read: its length in bytes, and its pieces, which can be read once."""

    size: int
    pieces: AsyncIterable[bytes]


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
        self._values -= piece.count(b",") + piece.count(b"{") + piece.count(b"[")
        if self._bytes < 0 or self._values < 0:
            raise UpstreamTooLargeError


class ProviderClient:
    """Connections to every provider, kept alive between calls."""

    def __init__(self, *, connections: int) -> None:
        """Allow `connections` calls at the same time. It is made where the event loop runs."""
        # The certificates that httpx trusts: SSL_CERT_FILE or SSL_CERT_DIR, else certifi's.
        tls = httpx.create_ssl_context()
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=connections, keepalive_timeout=_KEEPALIVE_SECONDS, ssl=tls),
            headers={"user-agent": "headrace", "accept-encoding": "identity", "connection": "keep-alive"},
            cookie_jar=aiohttp.DummyCookieJar(),  # no call is to show a provider what it told another one
        )

    async def close(self) -> None:
        """Close every connection."""
        await self._http.close()

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
        return Call(self._http, provider, method=method, url=url, headers=headers, body=body, allowance=allowance)


class Call:
    """One request to a provider, and its answer while the block lasts."""

    __slots__ = ("_allowance", "_body", "_headers", "_http", "_method", "_provider", "_response", "_target")

    def __init__(
        self,
        http: aiohttp.ClientSession,
        provider: Provider,
        *,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | Upload,
        allowance: Allowance,
    ) -> None:
        self._http = http
        self._provider = provider
        self._method = method
        self._target = _target(url)
        self._headers = headers
        self._body = body
        self._allowance = allowance

    async def __aenter__(self) -> Answer:
        """Send the request, and return the answer once its head is here.

        Raises:
            UpstreamError: No answer, or an error status; the class says which, and whether to try again.
        """
        provider, target, body = self._provider, self._target, self._body
        patience = provider.connect_timeout + provider.read_timeout
        with _Translated(target.address, patience):
            async with asyncio.timeout(patience) as silence:
                self._response = response = await self._http.request(
                    self._method,
                    target.url,
                    data=_patiently(body.pieces, silence, patience) if isinstance(body, Upload) else body or None,
                    headers={**_body_headers(body), **target.login, **self._headers},
                    allow_redirects=False,
                    timeout=_connecting(provider.connect_timeout),
                )
        if response.status != 200:
            try:
                raise await _refusal(response, FORMATS[FORMAT_OF[provider.kind]], target.address)
            finally:
                await self.__aexit__()
        return Answer(response, target.address, silence_seconds=provider.read_timeout, allowance=self._allowance)

    async def __aexit__(self, *_: object) -> None:
        """End the call, and keep its connection if the whole answer has come."""
        with contextlib.suppress(aiohttp.ClientError):
            self._response.release()
            await self._response.wait_for_close()


class Answer:
    """A provider's answer with status 200, yet to be read."""

    def __init__(
        self, response: aiohttp.ClientResponse, address: str, *, silence_seconds: float, allowance: Allowance
    ) -> None:
        """Wait no longer than `silence_seconds` for the next bytes; errors name the `address`."""
        self._address = address
        self._content = response.content
        self._arriving = self._content.iter_chunked(_PIECE_BYTES)
        self._lines = "ndjson" in response.headers.get("content-type", "")
        self._allowance = allowance
        self._silence = silence_seconds
        self._first = b""

    async def is_stream(self) -> bool:
        """Tell whether the answer is a stream, whatever was asked for: server-sent events, or a JSON document a line.

        Raises:
            UpstreamError: The connection broke, fell silent for too long, or there was too much.
        """
        with self._translated():
            if self._content.is_eof():  # it has come whole already, so no timer is needed
                self._first = self._content.read_nowait()
                self._allowance.take(self._first)
                if not self._first.strip():
                    return False
            else:
                async with asyncio.timeout(self._silence):
                    while not self._first.strip():
                        piece = await anext(self._arriving, None)
                        if piece is None:
                            return False
                        self._allowance.take(piece)
                        self._first += piece
        return self._lines or self._first.lstrip().startswith(_EVENTS) or _TWO_LINES.search(self._first) is not None

    async def pass_on(self, take: Callable[[bytes], object]) -> None:
        """Call `take` with bytes as they arrive, until it returns something true or the answer has ended.

        Raises:
            UpstreamError: The connection broke, fell silent for too long, or there was too much.
        """
        reading = self._pass_on(take)
        if self._content.is_eof():
            await reading
        else:
            # Each piece resumes this task alone, and not every coroutine that waits for the whole answer.
            await asyncio.create_task(reading)

    async def _pass_on(self, take: Callable[[bytes], object]) -> None:
        now, content = asyncio.get_running_loop().time, self._content
        patience = self._silence + _COARSENESS_SECONDS
        with self._translated():
            async with asyncio.timeout(patience) as silence:
                try:
                    next_look = now() + _COARSENESS_SECONDS
                    if self._first and take(self._first):
                        return
                    while piece := await content.readany():
                        if now() > next_look:
                            silence.reschedule(now() + patience)
                            next_look = now() + _COARSENESS_SECONDS
                        self._allowance.take(piece)
                        if take(piece):
                            return
                finally:
                    del silence  # it has this task, which has its error, whose traceback has this frame

    async def unhurried(self) -> AsyncGenerator[bytes, None]:
        """Yield bytes to a reader that may be slow: only the provider's silence is timed.

        Raises:
            UpstreamError: The connection broke, or fell silent for too long.
        """
        while True:
            with self._translated():
                try:
                    async with asyncio.timeout(self._silence):
                        piece = await anext(self._arriving)
                except StopAsyncIteration:
                    return
            yield piece

    async def read(self) -> bytes:
        """Return the whole answer.

        Raises:
            UpstreamError: The connection broke, fell silent for too long, or there was too much.
        """
        if self._content.at_eof():
            return self._first
        pieces: list[bytes] = []
        await self._pass_on(pieces.append)
        return b"".join(pieces)

    def _translated(self) -> _Translated:
        return _Translated(self._address, self._silence)


def _body_headers(body: bytes | Upload) -> dict[str, str]:
    """Return the headers of a body. The transport adds the length of bytes itself."""
    if isinstance(body, Upload):
        return {"content-type": "application/json", "content-length": str(body.size)}
    return {"content-type": "application/json"} if body else {}


async def _patiently(pieces: AsyncIterable[bytes], silence: asyncio.Timeout, patience: float) -> AsyncIterator[bytes]:
    """Yield the pieces of a body. While the provider takes them, it is not silent."""
    now = asyncio.get_running_loop().time
    async for piece in pieces:
        with contextlib.suppress(RuntimeError):  # a provider may answer before it has read the whole body
            silence.reschedule(now() + patience)
        yield piece


class _Translated:
    """Translates a connection's errors to UpstreamError; `patience` is how many seconds the provider may be silent."""

    __slots__ = ("_address", "_patience")

    def __init__(self, address: str, patience: float) -> None:
        self._address = address
        self._patience = patience

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        match error:
            case None:
                return
            case aiohttp.ServerTimeoutError():
                raise UpstreamTimeoutError(detail=f"{self._address}: {_reason(error)}") from error
            case TimeoutError():
                raise UpstreamTimeoutError(detail=f"{self._address}: nothing came for {self._patience:g} s") from error
            case aiohttp.ClientError():
                raise UpstreamError(_LOST, detail=f"{self._address}: {_reason(error)}") from error


@dataclass(frozen=True, slots=True)
class _Target:
    """Where a call goes."""

    url: str
    """The URL without its user."""
    login: Mapping[str, str]
    """The header with the URL's user: aiohttp takes only one of both."""
    address: str
    """The URL's scheme and host, without parts that may be secret: user, path and query."""


@functools.lru_cache(_MOST_ADDRESSES)
def _target(url: str) -> _Target:
    parts = urlsplit(url)
    login, at, host = parts.netloc.rpartition("@")
    address = f"{parts.scheme}://{host}"
    if not at:
        return _Target(url, {}, address)
    encoded = base64.b64encode(unquote_to_bytes(login)).decode()
    return _Target(parts._replace(netloc=host).geturl(), {"authorization": f"Basic {encoded}"}, address)


@functools.lru_cache(_MOST_ADDRESSES)
def _connecting(seconds: float) -> aiohttp.ClientTimeout:
    """Return the timer of a new connection alone. Silence has timers of ours: aiohttp's miss some silences."""
    return aiohttp.ClientTimeout(sock_connect=seconds)


def _reason(error: Exception) -> str:
    """Return a library's message of a failure, without parts of quoted URLs that may be secret."""
    text = " ".join(str(error).split()) or type(error.__cause__ or error).__name__
    return _SECRET_IN_URL.sub("", text)[:_LONGEST_REASON]


async def _refusal(response: aiohttp.ClientResponse, form: WireFormat, address: str) -> UpstreamError:
    body = b""
    with contextlib.suppress(UpstreamError), _Translated(address, 0):
        async for piece in response.content.iter_chunked(_PIECE_BYTES):
            body += piece
            if len(body) > _LARGEST_ERROR:
                break
    return failure(form.parse_error(body), response.status, retry_after=cooldown_seconds(response.headers))


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
