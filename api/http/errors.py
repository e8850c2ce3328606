"""Errors as answers: every kind of failure in OpenAI's shape."""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from api.http.endpoints import unknown_endpoint, unknown_model
from api.http.request import ApiRequest
from headrace.errors import HeadraceError, InvalidRequestError, ModelNotFoundError, UnavailableError, invalid_parameter
from headrace.formats.chat.validation import invalid_request
from headrace.stores.failures import is_foreign_schema, is_unavailable

log = logging.getLogger(__name__)

# The most seconds of a `retry-after`. OpenAI's clients ignore a longer one, and retry at once or not at all.
_LONGEST_RETRY_AFTER = 59


def render_json(document: object, headers: Mapping[str, str] | None = None) -> Response:
    """Return an answer in JSON."""
    return Response(orjson.dumps(document), headers=headers, media_type="application/json")


def render_error(error: HeadraceError) -> Response:
    """Return an error as an answer in OpenAI's shape."""
    headers = dict(error.headers)
    if error.status < 500 and not error.retryable:
        headers["x-should-retry"] = "false"  # OpenAI's clients repeat a 409 and a 429 otherwise
    if error.retry_after is not None or error.status in (429, 503):
        headers["retry-after"] = str(min(max(1, math.ceil(error.retry_after or 1)), _LONGEST_RETRY_AFTER))
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return Response(orjson.dumps({"error": error.body()}), error.status, headers, "application/json")


def shutdown_error() -> UnavailableError:
    """Return the error for a client whose API process shuts down: a new one each time, as a raised one keeps frames."""
    return UnavailableError("This server is shutting down: send the request again.", retry_after=1)


def error_for(error: Exception) -> HeadraceError:
    """Return the error that a client gets for any exception. Unknown ones are logged, and the client gets a 500."""
    if isinstance(error, HeadraceError):
        return error
    if isinstance(error, ValidationError):
        return invalid_request(error)
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        param = str(first["loc"][-1])
        return invalid_parameter(param, first["msg"])
    if isinstance(error, HTTPException):
        return InvalidRequestError(str(error.detail), status=error.status_code)
    if isinstance(error, SQLAlchemyError):
        if not is_unavailable(error):
            log.error("a statement failed", exc_info=error)
            return HeadraceError()
        if is_foreign_schema(error):
            log.warning("the database's schema is not the one that this release knows: %s", error)
        else:
            log.warning("Postgres is unavailable: %s", error)
        return UnavailableError()
    log.error("a request failed", exc_info=error)
    return HeadraceError()


async def _handle(request: ApiRequest, error: Exception) -> Response:
    if isinstance(error, HTTPException) and error.status_code in (404, 405):
        return render_error(unknown_endpoint(request))
    if isinstance(error, ModelNotFoundError):
        return render_error(unknown_model(request, error))
    return render_error(error_for(error))


def handle_errors(app: FastAPI) -> None:
    """Answer every kind of error in OpenAI's shape."""
    handler: Callable[[Request[Any], Exception], Awaitable[Response]] = _handle
    for kind in (HeadraceError, ValidationError, RequestValidationError, HTTPException, SQLAlchemyError):
        app.add_exception_handler(kind, handler)
