"""The outermost middleware.

It gives each request an id and a log line, serves HEAD, and turns uncaught errors into answers.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable, Mapping

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http.errors import render_error, shutdown_error
from api.http.later import Rest
from api.http.sse import EventWriter, Tell
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
# The route of a path that has no endpoint.
_NO_ENDPOINT = "(no endpoint)"
# What the metric of requests calls each hundred of statuses; 0 stands for no answer.
_CLASSES = ("none", "1xx", "2xx", "3xx", "4xx", "5xx")
_requests = bound_metric(HTTP_REQUESTS)
_ANSWERED = "%(method)s %(route)s: %(status)d in %(seconds).3f s"
_UNANSWERED = "%(method)s %(route)s: no answer, after %(seconds).3f s"


class RequestScope:
    """Gives every request an id for its answer and log lines, and answers errors that no handler caught.

    It also makes the answers that are `Later`, and writes the events of an `EventStream`, after the layers within have
    returned: both may last for hours, and must not hold their frames, the request's headers or what was made of them.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id, context = _asked_context(scope)
        scope["state"]["trace_context"] = context
        answer = _Answer(scope["method"], request_id or new_id("req"), send)
        with bind(request=answer.request_id):
            if context is not None:
                note(trace=trace_id(context))
            try:
                later, tell = await self._begin(scope, receive, answer)
                del scope, receive
                if later is not None:
                    tell = await later()
                    del later
                if tell is not None:
                    writer = EventWriter(send)
                    telling = tell(writer.write)
                    del tell
                    await telling
                    await writer.end()
            except Exception:
                log.exception("a request failed: %s %s", answer.method, answer.route)
                raise
            finally:
                answer.end()

    async def _begin(self, scope: Scope, receive: Receive, answer: _Answer) -> tuple[Rest | None, Tell | None]:
        """Have a request answered. Returns what is left to do: to make the answer, or to write its events."""
        inner = {**scope, "method": "GET"} if answer.is_head else scope
        try:
            await self._app(inner, receive, answer.send)
        except asyncio.CancelledError:
            # At the end of `drain_seconds` the server cancels the requests that have no answer.
            if answer.status is not None:
                raise
            error = shutdown_error() if inner["method"] == "GET" else OutcomeUnknownError()
            await render_error(error)(scope, receive, answer.send)
        except Exception:
            if answer.status is not None:
                if answer.is_head:
                    return None, None
                raise
            log.exception("a request failed: %s %s", answer.method, _route(inner))
            await render_error(HeadraceError())(scope, receive, answer.send)
        finally:
            answer.note_endpoint(inner)
            later: Rest | None = scope["state"].pop("later", None)
            if later is not None:
                scope["state"]["client"].head_read = True
            elif scope["state"].get("body_units"):
                scope["state"]["body_memory"].give_back(Request(scope))
        return later, scope["state"].pop("tell", None)


class _Answer:
    """The answer to one request: it sends the answer's beginning, and counts and logs its end."""

    __slots__ = ("_began", "_send", "is_head", "method", "request_id", "route", "status")

    def __init__(self, method: str, request_id: str, send: Send) -> None:
        self.method = method
        self.is_head = method == "HEAD"
        self.request_id = request_id
        self.route = _NO_ENDPOINT
        self.status: int | None = None
        """The status that was sent, None before."""
        self._began = time.perf_counter()
        self._send = send

    async def send(self, message: Message) -> None:
        """Send a part of the answer."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), (b"x-request-id", self.request_id.encode())]
        await self._send(message)
        if self.is_head and self.status is not None:
            # The body is not produced: it may be a large file, or a stream without an end.
            await self._send({"type": "http.response.body"})
            raise _HeadAnsweredError

    def note_endpoint(self, scope: Scope) -> None:
        """Note which endpoint answers, and the ids in its path."""
        self.route = _route(scope)
        if not log.isEnabledFor(self._level):
            return
        for parameter, text in scope.get("path_params", {}).items():
            if parameter in _IDS:
                field, prefix, read = _IDS[parameter]
                if field not in bound() and is_id(an_id := read(text), prefix):
                    note(**{field: an_id})

    def end(self) -> None:
        """Count the request, and log how it was answered."""
        _requests(self.route, _CLASSES[(self.status or 0) // 100]).inc()
        if log.isEnabledFor(self._level):
            seconds = time.perf_counter() - self._began
            fields = {"method": self.method, "route": self.route, "status": self.status, "seconds": seconds}
            log.log(self._level, _UNANSWERED if self.status is None else _ANSWERED, fields)

    @property
    def _level(self) -> int:
        return logging.DEBUG if self.route in _PROBES else logging.INFO


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
    return getattr(scope.get("route"), "path", _NO_ENDPOINT)
