"""The outermost middleware: it gives requests their ids, answers HEAD, and answers for uncaught errors."""

from __future__ import annotations

import asyncio
import logging
import re

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http.errors import render_error, shutdown_error
from headrace.errors import HeadraceError, OutcomeUnknownError
from headrace.ids import new_id
from headrace.telemetry.logs import bind

log = logging.getLogger(__name__)

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:\-]{1,128}")


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
                # The body is not produced: it may be a large file, or a stream without an end.
                await send({"type": "http.response.body"})
                raise _HeadAnsweredError

        with bind(request=request_id):
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
                log.exception("a request failed: %s %s", scope["method"], scope["path"])
                if started:
                    raise
                await render_error(HeadraceError())(scope, receive, send_with_id)
            finally:
                if scope["state"].get("body_units"):
                    scope["state"]["room"].give_back(Request(scope))


class _HeadAnsweredError(Exception):
    """Stops the endpoint of a HEAD request once its headers are sent."""


def _asked_id(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            text = value.decode("latin-1")
            return text if _REQUEST_ID.fullmatch(text) else None
    return None
