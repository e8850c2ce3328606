"""Writes the results of a batch into two files, for answers and for errors, each in the order of the input."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import orjson

from headrace.batches.ended import read_lines
from headrace.batches.queries import WrittenFile, end_batch
from headrace.batches.results import is_answer, render_line, render_unrun
from headrace.batches.state import BatchState
from headrace.files.queries import FileWriter
from headrace.ids import new_id
from headrace.runtime.offload import offloaded
from headrace.stores.connections import Row
from headrace.stores.database import Database
from headrace.telemetry.metrics import BATCHES_ENDED
from scheduler.batches.input import read_input

# Bytes that a page of results should have. A page is held in memory, and an answer may be of any size.
_PAGE_BYTES = 512 * 1024
# Results on the first page, before their size is known, and on any page.
_FIRST_PAGE = 50
_LARGEST_PAGE = 1000


class Output:
    """The two files of one batch. A file without lines is not made."""

    def __init__(self, database: Database, batch: Row, *, room: asyncio.Semaphore) -> None:
        """Prepare the files. A large line of the input waits for `room`."""
        self._database = database
        self._batch = batch
        self._room = room
        self._answers = self._writer()
        self._errors = self._writer()

    def _writer(self) -> FileWriter:
        return FileWriter(self._database, account_id=self._batch.account_id, purpose="batch_output")

    async def write(self) -> BatchState | None:
        """Write both files and end the batch. Returns its end state, or None if another scheduler ended it."""
        ended, whole = False, False
        try:
            await self._write_ended()
            whole = self._batch.fed == self._batch.total
            if not whole:
                await self._write_unrun()
            written = []
            for writer, name in ((self._answers, "output"), (self._errors, "error")):
                if writer.size:
                    await writer.flush()
                    written.append(WrittenFile(writer.file_id, writer.size, f"{self._batch.id}_{name}.jsonl"))
            end = self._end(whole)
            ended = await end_batch(
                self._database,
                self._batch.id,
                begin=BatchState(self._batch.state),
                end=end,
                output_file_id=self._answers.file_id if self._answers.size else None,
                error_file_id=self._errors.file_id if self._errors.size else None,
                written=written,
            )
        finally:
            if not ended:
                for writer in (self._answers, self._errors):
                    await writer.discard()
        if not ended:
            return None
        BATCHES_ENDED.labels(end.value).inc()
        return end

    def _end(self, whole: bool) -> BatchState:
        if self._batch.state == BatchState.CANCELLING:
            return BatchState.CANCELLED
        return BatchState.COMPLETED if whole else BatchState.EXPIRED

    async def _write_ended(self) -> None:
        after, limit, last_fed = 0, _FIRST_PAGE, self._batch.next_line - 1
        while after < last_fed:
            last = min(after + limit, last_fed)
            rows = await read_lines(self._database, self._batch.id, after=after, last=last, most_bytes=_PAGE_BYTES)
            if not rows:  # empty lines of the input are no jobs
                after, limit = last, 2 * limit
                continue
            answers, errors = bytearray(), bytearray()
            for row in rows:
                (answers if is_answer(row) else errors).extend(render_line(row) + b"\n")
            await self._answers.write(bytes(answers))
            await self._errors.write(bytes(errors))
            after = rows[-1].line
            average = (len(answers) + len(errors)) // len(rows)
            limit = max(1, min(_LARGEST_PAGE, _PAGE_BYTES // average))

    async def _write_unrun(self) -> None:
        """Write the lines of a cancelled or expired batch that never became jobs."""
        cancelled = self._batch.state == BatchState.CANCELLING
        batch = self._batch
        lines = read_input(
            self._database, batch.input_file_id, offset=batch.next_offset, number=batch.next_line, room=self._room
        )
        async with aclosing(lines):
            async for raw in lines:
                assert raw.text is not None  # validation has checked it
                custom_id = (await offloaded(len(raw.text), orjson.loads, raw.text))["custom_id"]
                del raw  # the next line has the room
                await self._errors.write(render_unrun(new_id("job"), custom_id, cancelled=cancelled) + b"\n")
