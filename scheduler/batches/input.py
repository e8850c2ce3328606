"""A batch's input, line by line, from the chunks of its file."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from headrace.batches.lines import LineReader, RawLine
from headrace.files.queries import read_file
from headrace.files.tables import CHUNK_BYTES
from headrace.stores.database import Database

# Seconds a reader of lines may keep the event loop. Several read at once, and what they do goes before all others.
_SLICE_SECONDS = 0.005
# Bytes that are split at once: if each is a line's end, some milliseconds.
_PIECE_BYTES = 8 * 1024


async def read_input(
    database: Database, file_id: str, *, offset: int = 0, number: int = 1, room: asyncio.Semaphore | None = None
) -> AsyncGenerator[RawLine, None]:
    """Yield the lines of a file from the one at `offset`, whose number is `number`.

    It takes the memory of a chunk and a line. Before it holds more of a line than a chunk it waits for `room`, which is
    free again when the next line is asked for. Every few milliseconds the event loop gets to do other work.
    """
    reader = LineReader(offset=offset, number=number)
    has_room = False
    began = time.monotonic()
    try:
        async with aclosing(read_file(database, file_id, start=offset)) as chunks:
            async for chunk in chunks:
                for at in range(0, len(chunk), _PIECE_BYTES):
                    for line in reader.feed(chunk[at : at + _PIECE_BYTES]):
                        yield line
                        if room is not None and has_room:
                            room.release()
                            has_room = False
                        began = await _breathe(began)
                    began = await _breathe(began)
                if room is not None and not has_room and reader.held > CHUNK_BYTES:
                    await room.acquire()
                    has_room = True
        for line in reader.close():
            yield line
    finally:
        if room is not None and has_room:
            room.release()


async def _breathe(began: float) -> float:
    """Let the event loop do other work, if this reader has kept it for long; returns since when it keeps it."""
    if time.monotonic() - began < _SLICE_SECONDS:
        return began
    await asyncio.sleep(0)
    return time.monotonic()
