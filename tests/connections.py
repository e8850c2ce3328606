"""Ends of connections that tests' own servers have."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator


@contextlib.asynccontextmanager
async def closing(writer: asyncio.StreamWriter) -> AsyncIterator[None]:
    """Close a connection in the end, and return once its socket is closed too; reset it if the task is cancelled.

    A socket that is left to the loop's end is reported as a warning, which fails whatever test runs then.
    """
    try:
        yield
        writer.close()
        await writer.wait_closed()
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
