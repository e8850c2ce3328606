"""The output of a batch, page by page."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import orjson

from headrace.batches.queries import finalize_batch, list_active
from headrace.files.queries import read_file
from headrace.jobs.sql.lines import feed_lines
from headrace.stores.database import Database
from scheduler.batches.output import Output
from tests.integration.batches.test_queries import create, get, new_lines
from tests.integration.job_rows import Jobs, Owner, end_of


async def test_empty_lines_of_the_input_do_not_end_the_output(database: Database, owner: Owner, jobs: Jobs) -> None:
    # The first page of results is of fifty lines, so there are pages without any.
    numbers = [3, 4, 5000, 5001, 90_000]
    lines = [replace(line, line=number) for line, number in zip(new_lines(1, 5), numbers, strict=True)]
    batch_id = await create(database, owner, total=5)
    assert await feed_lines(database, batch_id, lines, start=0, end=90_100, next_line=90_001)
    for job in await jobs.claim(*[line.id for line in lines]):
        await jobs.finish(end_of(job))
    assert await finalize_batch(database, batch_id)
    [batch] = [batch for batch in await list_active(database) if batch.id == batch_id]
    assert await Output(database, batch, room=asyncio.Semaphore(1)).write() is not None
    output_file_id = (await get(database, owner, batch_id)).output_file_id
    output = b"".join([chunk async for chunk in read_file(database, output_file_id)])
    assert [orjson.loads(line)["custom_id"] for line in output.splitlines()] == [line.custom_id for line in lines]
