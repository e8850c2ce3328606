"""The outermost middleware: it gives requests their ids and log lines, answers HEAD and for uncaught errors."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable, Mapping

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http.errors import render_error, shutdown_error
from headrace.errors import HeadraceError, OutcomeUnknownError
from headrace.ids import is_id, job_id_of, job_id_of_response, new_id
from headrace.telemetry.context import bind, bound, note
from headrace.telemetry.metrics import HTTP_REQUESTS
from headrace.telemetry.metrics import bound as bound_metric
from headrace.telemetry.traceparent import read_context, trace_id

log = logging.getLogger(__name__)

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:\-]{1,128}")

# Routes that orchestrators call every few seconds: their lines are at DEBUG.
_PROBES = {"/healthz", "/readyz"}
# Parameters of paths whose ids a request's line has: the line's field, the id's prefix, and what reads the id.
_IDS: Mapping[str, tuple[str, str, Callable[[str], str]]] = {
    "job_id": ("job", "job", str),
    "response_id": ("job", "job", job_id_of_response),
    "completion_id": ("job", "job", job_id_of),
    "batch_id": ("batch", "batch", str),
    "conversation_id": ("conversation", "conv", str),
}
# What the metric of requests calls each hundred of statuses; 0 stands for no answer.
_CLASSES = ("none", "1xx", "2xx", "3xx", "4xx", "5xx")
_requests = bound_metric(HTTP_REQUESTS)
_ANSWERED = "%(method)s %(route)s: %(status)d in %(seconds).3f s"
_UNANSWERED = "%(method)s %(route)s: no answer, after %(seconds).3f s"


class RequestScope:
    """Gives every request an id for its answer and log lines, and answers errors that no handler caught."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        inner = {**scope, "method": "GET"} if (is_head := scope["method"] == "HEAD") else scope
        began = time.perf_counter()
        request_id, context = _asked_context(scope)
        scope["state"]["trace_context"] = context
        request_id = request_id or new_id("req")
        header = (b"x-request-id", request_id.encode())
        started = False
        status: int | None = None

        async def send_with_id(message: Message) -> None:
            nonlocal started, status
            if message["type"] == "http.response.start":
                started, status = True, message["status"]
                message["headers"] = [*message.get("headers", ()), header]
            await send(message)
            if started and is_head:
                # The body is not produced: it may be a large file, or a stream without an end.
                await send({"type": "http.response.body"})
                raise _HeadAnsweredError

        with bind(request=request_id):
            if context is not None:
                note(trace=trace_id(context))
            try:
                await self._app(inner, receive, send_with_id)
            except asyncio.CancelledError:
                # At the end of `drain_seconds` the server cancels the requests that have no answer.
                if started:
                    raise
                error = shutdown_error() if inner["method"] == "GET" else OutcomeUnknownError()
                await render_error(error)(scope, receive, send_with_id)
            except Exception:
                if started and is_head:
                    return
                log.exception("a request failed: %s %s", scope["method"], _route(inner))
                if started:
                    raise
                await render_error(HeadraceError())(scope, receive, send_with_id)
            finally:
                if scope["state"].get("body_units"):
                    scope["state"]["room"].give_back(Request(scope))
                _requests(_route(inner), _CLASSES[(status or 0) // 100]).inc()
                _log_request(scope["method"], inner, status, time.perf_counter() - began)


class _HeadAnsweredError(Exception):
    """Stops the endpoint of a HEAD request once its headers are sent."""


def _asked_context(scope: Scope) -> tuple[str | None, str | None]:
    """Return the request id and the trace context that a request came with, those that are well-formed."""
    request_id: str | None = None
    parents: list[str] = []
    states: list[str] = []
    for name, value in scope["headers"]:
        if name == b"x-request-id" and request_id is None:
            request_id = value.decode("latin-1")
        elif name == b"traceparent":
            parents.append(value.decode("latin-1"))
        elif name == b"tracestate":
            states.append(value.decode("latin-1"))
    if request_id is not None and not _REQUEST_ID.fullmatch(request_id):
        request_id = None
    return request_id, read_context(parents, states) if parents else None


def _route(scope: Scope) -> str:
    """Return the template of the path, without `/v1` or `/api/v1`; a path that has no endpoint may be any text."""
    return getattr(scope.get("route"), "path", "(no endpoint)")


def _log_request(method: str, scope: Scope, status: int | None, seconds: float) -> None:
    """Log how a request was answered; `status` is None if it was not."""
    route = _route(scope)
    level = logging.DEBUG if route in _PROBES else logging.INFO
    if not log.isEnabledFor(level):
        return
    for parameter, text in scope.get("path_params", {}).items():
        if parameter in _IDS:
            field, prefix, read = _IDS[parameter]
            if field not in bound() and is_id(an_id := read(text), prefix):
                note(**{field: an_id})
    fields = {"method": method, "route": route, "status": status, "seconds": seconds}
    log.log(level, _UNANSWERED if status is None else _ANSWERED, fields)
