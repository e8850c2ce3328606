"""Answers of the API that a page passes on as they come."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send


class PassedOn(StreamingResponse):
    """The body of an open answer of the API. `held` closes that answer, also if the browser reads nothing of it."""

    def __init__(self, pieces: AsyncIterator[bytes], held: contextlib.AsyncExitStack, **options: Any) -> None:
        """Take the pieces, what holds the answer open, and Starlette's options."""
        super().__init__(pieces, **options)
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the pieces."""
        async with self._held:
            await super().__call__(scope, receive, send)
