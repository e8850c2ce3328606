"""A batch's input, line by line, from the chunks of its file."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from headrace.batches.lines import LineReader, RawLine
from headrace.database import Database
from headrace.files.queries import read_file


async def read_input(
    database: Database, file_id: str, *, offset: int = 0, number: int = 1
) -> AsyncGenerator[RawLine, None]:
    """Yield the lines of a file from the one at `offset`, whose number is `number`; in the memory of a chunk."""
    reader = LineReader(offset=offset, number=number)
    async for piece in read_file(database, file_id, start=offset):
        for line in reader.feed(piece):
            yield line
    for line in reader.close():
        yield line
