"""A batch's input, line by line, from the chunks of its file."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing

from headrace.batches.lines import LineReader, RawLine
from headrace.files.queries import read_file
from headrace.files.tables import CHUNK_BYTES
from headrace.stores.database import Database

# Seconds that a reader of lines may keep the event loop, which several readers share with all other work.
_SLICE_SECONDS = 0.005
# Bytes that are split at once. If each of them ended a line, this would take some milliseconds.
_PIECE_BYTES = 8 * 1024


async def read_input(
    database: Database, file_id: str, *, offset: int = 0, number: int = 1, room: asyncio.Semaphore | None = None
) -> AsyncGenerator[RawLine, None]:
    """Yield the lines of a file from the one at `offset`, whose number is `number`.

    The reader holds one chunk in memory, and a line until it yields it. Before a line grows larger than a chunk, the
    reader acquires `room`, and releases it when the caller asks for the next line. Every few milliseconds it lets other
    work run.
    """
    reader = LineReader(offset=offset, number=number)
    has_room = False
    began = time.monotonic()
    try:
        async with aclosing(read_file(database, file_id, start=offset)) as chunks:
            async for chunk in chunks:
                for at in range(0, len(chunk), _PIECE_BYTES):
                    lines = deque(reader.feed(chunk[at : at + _PIECE_BYTES]))
                    while lines:
                        yield lines.popleft()  # which no name here keeps alive
                        if room is not None and has_room:
                            room.release()
                            has_room = False
                        began = await _breathe(began)
                    began = await _breathe(began)
                if room is not None and not has_room and reader.held > CHUNK_BYTES:
                    await room.acquire()
                    has_room = True
        lines = deque(reader.close())
        while lines:
            yield lines.popleft()
    finally:
        if room is not None and has_room:
            room.release()


async def _breathe(began: float) -> float:
    """Let other work run if this reader has had the event loop for long. Returns when its current turn began."""
    if time.monotonic() - began < _SLICE_SECONDS:
        return began
    await asyncio.sleep(0)
    return time.monotonic()
