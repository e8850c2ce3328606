"""The bytes of a request to a provider, except its body. Pure: no I/O."""

from __future__ import annotations

import base64
import functools
import re
from collections.abc import AsyncIterable, Mapping
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes, urlsplit

import httpx

from headrace.providers.connection import Origin
from headrace.providers.faults import ConnectionFailedError

# URLs, and heads of requests, that are remembered.
_MOST_REMEMBERED = 256
_PORTS = {"http": 80, "https": 443}
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""A header's name: RFC 9110, section 5.1."""
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_ALWAYS = {"user-agent": "headrace", "accept": "*/*", "accept-encoding": "identity", "connection": "keep-alive"}


@dataclass(frozen=True, slots=True)
class Upload:
    """A body that is sent while it is read: its length in bytes, and its pieces, which can be read once."""

    size: int
    pieces: AsyncIterable[bytes]


@dataclass(frozen=True, slots=True)
class _Target:
    """Where a call goes."""

    origin: Origin
    path: bytes
    """The path with the query, as the request line has it."""
    host: str
    """The Host header."""
    login: str | None
    """The Authorization header of the URL's user."""


def address_of(url: str) -> str:
    """Return the URL's scheme and host, without parts that may be secret: user, path and query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


@functools.lru_cache(_MOST_REMEMBERED)
def target_of(url: str) -> _Target:
    """Take a URL apart.

    Raises:
        ConnectionFailedError: It is not an HTTP URL.
    """
    try:
        read = httpx.URL(url)
    except (httpx.InvalidURL, ValueError):
        raise ConnectionFailedError("the URL is not valid") from None
    if read.scheme not in _PORTS or not read.host:
        raise ConnectionFailedError("the URL is not one of HTTP")
    login = None
    if read.userinfo:
        login = "Basic " + base64.b64encode(unquote_to_bytes(read.userinfo)).decode()
    origin = Origin(read.scheme == "https", read.raw_host.decode(), read.port or _PORTS[read.scheme])
    return _Target(origin, read.raw_path, read.netloc.decode(), login)


def head_of(method: str, url: str, headers: Mapping[str, str], body: bytes | Upload) -> bytes:
    """Return the head of a request, up to its body.

    Raises:
        ConnectionFailedError: The URL or a header is not valid.
    """
    size = body.size if isinstance(body, Upload) else len(body)
    start = _start_of(method, url, tuple(headers.items()), size > 0)
    if not size and method == "GET":
        return start + b"\r\n"
    return b"%bcontent-length: %d\r\n\r\n" % (start, size)


@functools.lru_cache(_MOST_REMEMBERED)
def _start_of(method: str, url: str, headers: tuple[tuple[str, str], ...], has_body: bool) -> bytes:
    """Return a head without the body's length and the blank line. Most calls have the head of one before."""
    target = target_of(url)
    fields = {"host": target.host, **_ALWAYS}
    if has_body:
        fields["content-type"] = "application/json"
    if target.login is not None:
        fields["authorization"] = target.login
    for name, value in headers:
        if not _TOKEN.fullmatch(name):
            raise ConnectionFailedError("a header's name is not valid")
        if _CONTROL.search(value):
            raise ConnectionFailedError(f"the header {name} has a line break or another control character")
        fields[name.lower()] = value.strip()
    fields.pop("content-length", None)
    lines = [f"{name}: {value}\r\n".encode() for name, value in fields.items()]
    return b"".join((method.encode(), b" ", target.path, b" HTTP/1.1\r\n", *lines))
