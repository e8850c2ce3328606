"""Reading the body of a request, up to its size limit."""

from __future__ import annotations

from starlette.types import Message

from api.http.content_encoding import content_decoder
from api.http.request import ApiRequest
from headrace.errors import InvalidRequestError, PayloadTooLargeError
from headrace.runtime.offload import LARGE_BYTES

SMALL_BODY = 64 * 1024
"""The most bytes of a body that describes a key or an account."""
METADATA_BODY = 128 * 1024
"""The most bytes of a body that replaces metadata: the longest metadata, with each character escaped."""


async def read_body(request: ApiRequest, *, limit: int | None = None) -> bytes:
    """Return the whole body, of at most `limit` bytes.

    A compressed body is decompressed. The limit holds before and after that.

    Raises:
        PayloadTooLargeError: The body is larger than `limit` or `HEADRACE_MAX_BODY_BYTES`. The rest is not read.
        InvalidRequestError: The client disconnected before the end, or the compression is unknown or corrupt.
        RateLimitError: The account has too many large bodies in progress.
        UnavailableError: All accounts together have too many large bodies in progress.
    """
    most = request.state["settings"].max_body_bytes
    limit = most if limit is None else min(limit, most)
    if declared_size(request) > limit:
        raise _too_large(limit)
    encoding = request.headers.get("content-encoding")
    decoder = None if encoding is None else content_decoder(encoding)
    pieces: list[bytes] = []
    size = received = 0
    while True:
        message = await next_message(request)
        piece = message.get("body", b"")
        received += len(piece)
        if decoder is not None:
            piece = decoder.decode(piece, limit - size + 1)
        size += len(piece)
        if size > limit or received > limit:
            raise _too_large(limit)
        if size > LARGE_BYTES:
            await request.state["body_memory"].take(request, size)
        pieces.append(piece)
        if not message.get("more_body", False):
            if decoder is not None:
                decoder.finish()
            return b"".join(pieces)


def declared_size(request: ApiRequest) -> int:
    """Return the size of the body as its `Content-Length` gives it, 0 without one."""
    declared = request.headers.get("content-length", "")
    return int(declared) if declared.isdecimal() else 0


async def next_message(request: ApiRequest) -> Message:
    """Return the next message of ASGI with a piece of the body.

    Raises:
        InvalidRequestError: The client disconnected before the end of the body.
    """
    message = await request.receive()
    if message["type"] != "http.request":
        raise InvalidRequestError("The request body ended early.")
    return message


def _too_large(limit: int) -> PayloadTooLargeError:
    return PayloadTooLargeError(f"The request body is larger than {limit} bytes.")
