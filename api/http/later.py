"""Answers that are made after the web framework's layers have returned, to save memory.

A client may wait for its job for minutes. Meanwhile the frames of FastAPI's and Starlette's layers, and all that they
keep of the request, would take as much memory as everything else of it.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from api.http.errors import error_for, render_error
from api.http.sse import Tell
from headrace.errors import OutcomeUnknownError

Make = Callable[[], Coroutine[Any, Any, Response]]
Rest = Callable[[], Coroutine[Any, Any, Tell | None]]
"""Makes and sends an answer, and returns what writes its events, if it is a stream of them."""


class Later(Response):
    """An answer that `make` returns, or the error that it raises. `RequestScope` calls it."""

    background = None

    def __init__(self, make: Make) -> None:
        self._make = make

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  (ASGI's signature)
        """Leave what makes the answer in the state of the request."""
        # `send` goes through the layers that have returned by then: one of them adds the headers of CORS.
        rest: Rest = functools.partial(_answer, self._make, send)
        scope["state"]["later"] = rest


async def _answer(make: Make, send: Send) -> Tell | None:
    try:
        response = await make()
    except asyncio.CancelledError:  # at the end of `drain_seconds`
        response = render_error(OutcomeUnknownError())
    except Exception as error:  # noqa: BLE001  (`error_for` logs it, if it is unknown)
        response = render_error(error_for(error))
    scope: Scope = {"type": "http", "state": {}}
    await response(scope, _receive, send)
    tell: Tell | None = scope["state"].get("tell")
    return tell


async def _receive() -> Message:
    return {"type": "http.disconnect"}
