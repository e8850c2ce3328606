"""What surrounds every request: its id, its body's limit, its answer, and one shape for whatever goes wrong."""

from __future__ import annotations

import asyncio
import logging
import math
import re
from collections.abc import Awaitable, Callable, Mapping

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.content_encoding import content_decoder
from api.endpoints import unknown_endpoint, unknown_model
from headrace.chat.validation import invalid_request
from headrace.database import is_away, is_foreign_schema
from headrace.errors import (
    HeadraceError,
    InvalidRequestError,
    ModelNotFoundError,
    OutcomeUnknownError,
    PayloadTooLargeError,
    UnavailableError,
)
from headrace.ids import new_id
from headrace.offload import LARGE_BYTES
from headrace.telemetry import bind

log = logging.getLogger(__name__)

SMALL_BODY = 64 * 1024
"""Bytes of a body that describes a key or an account."""

# Seconds of a `retry-after`: OpenAI's clients take a longer one for none, and come back at once or not at all.
_LONGEST_RETRY_AFTER = 59

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:\-]{1,128}")


def render_json(document: object, headers: Mapping[str, str] | None = None) -> Response:
    """Return an answer in JSON."""
    return Response(orjson.dumps(document), headers=headers, media_type="application/json")


def render_error(error: HeadraceError) -> Response:
    """Return an error as OpenAI has it."""
    headers = dict(error.headers)
    if error.status < 500 and not error.retryable:
        headers["x-should-retry"] = "false"  # OpenAI's clients repeat a 409 and a 429 otherwise
    if error.retry_after is not None or error.status in (429, 503):
        headers["retry-after"] = str(min(max(1, math.ceil(error.retry_after or 1)), _LONGEST_RETRY_AFTER))
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return Response(orjson.dumps({"error": error.body()}), error.status, headers, "application/json")


def leaving_error() -> UnavailableError:
    """Return what a client is answered whose process ends: a new error each time, as a raised one holds its frames."""
    return UnavailableError("This server is shutting down: send the request again.", retry_after=1)


async def read_body(request: Request, *, limit: int | None = None) -> bytes:
    """Return the whole body, of at most `limit` bytes.

    A compressed body is decompressed; the limit is of what comes out.

    Raises:
        PayloadTooLargeError: It is larger than that, or `HEADRACE_MAX_BODY_BYTES`; the rest of it is not read.
        InvalidRequestError: The client broke off, or the body is compressed in a way that is unknown or broken.
        RateLimitError: Too many large bodies of its account are under way.
        UnavailableError: Too many large bodies of all accounts are.
    """
    limit = min(limit or request.state.settings.max_body_bytes, request.state.settings.max_body_bytes)
    too_large = PayloadTooLargeError(f"The request body is larger than {limit} bytes.")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise too_large
    encoding = request.headers.get("content-encoding")
    decoder = None if encoding is None else content_decoder(encoding)
    pieces: list[bytes] = []
    size = 0
    while True:
        message = await request.receive()
        if message["type"] != "http.request":
            raise InvalidRequestError("The request body was broken off.")
        piece = message.get("body", b"")
        if decoder is not None:
            piece = decoder.decode(piece, limit - size + 1)
        size += len(piece)
        if size > limit:
            raise too_large
        if size > LARGE_BYTES:
            await request.state.room.take(request, size)
        pieces.append(piece)
        if not message.get("more_body", False):
            if decoder is not None:
                decoder.finish()
            return b"".join(pieces)


class RequestScope:
    """Gives every request an id, which its answer and its log lines carry, and answers what nobody else caught."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        inner = {**scope, "method": "GET"} if (is_head := scope["method"] == "HEAD") else scope
        request_id = _asked_id(scope) or new_id("req")
        header = (b"x-request-id", request_id.encode())
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message.get("headers", ()), header]
            await send(message)
            if started and is_head:
                # The rest is not made: it may be a large file, or a stream without an end.
                await send({"type": "http.response.body"})
                raise _HeadAnsweredError

        with bind(request=request_id):
            try:
                await self._app(inner, receive, send_with_id)
            except asyncio.CancelledError:
                # The server cancels what has no answer when the time of a process that ends is over.
                if started:
                    raise
                error = leaving_error() if inner["method"] == "GET" else OutcomeUnknownError()
                await render_error(error)(scope, receive, send_with_id)
            except Exception:
                if started and is_head:
                    return
                log.exception("a request broke: %s %s", scope["method"], scope["path"])
                if started:
                    raise
                await render_error(HeadraceError())(scope, receive, send_with_id)
            finally:
                if scope["state"].get("body_units"):
                    scope["state"]["room"].give_back(Request(scope))


class _HeadAnsweredError(Exception):
    """Ends a request by HEAD when its headers are sent."""


def _asked_id(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            text = value.decode("latin-1")
            return text if _REQUEST_ID.fullmatch(text) else None
    return None


def _our_error(error: Exception) -> HeadraceError:
    """Return what a client is told of an error that is not ours."""
    if isinstance(error, HeadraceError):
        return error
    if isinstance(error, ValidationError):
        return invalid_request(error)
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        param = str(first["loc"][-1])
        return InvalidRequestError(f"Invalid '{param}': {first['msg']}.", param=param, code="invalid_value")
    if isinstance(error, HTTPException):
        return InvalidRequestError(str(error.detail), status=error.status_code)
    if isinstance(error, SQLAlchemyError):
        if not is_away(error):
            log.error("a statement failed", exc_info=error)
            return HeadraceError()
        if is_foreign_schema(error):
            log.error("the database's schema is not the one that this release knows: %s", error)
        else:
            log.warning("Postgres is unavailable: %s", error)
        return UnavailableError()
    log.error("a request broke", exc_info=error)
    return HeadraceError()


async def _handle(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException) and error.status_code in (404, 405):
        return render_error(unknown_endpoint(request))
    if isinstance(error, ModelNotFoundError):
        return render_error(unknown_model(request, error))
    return render_error(_our_error(error))


def handle_errors(app: FastAPI) -> None:
    """Answer every kind of error in OpenAI's shape."""
    handler: Callable[[Request, Exception], Awaitable[Response]] = _handle
    for kind in (HeadraceError, ValidationError, RequestValidationError, HTTPException, SQLAlchemyError):
        app.add_exception_handler(kind, handler)
