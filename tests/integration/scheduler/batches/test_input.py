"""Inputs with large lines: how long a line blocks the event loop, and how much memory it takes."""

from __future__ import annotations

import asyncio
import time
import tracemalloc
from collections.abc import Awaitable
from dataclasses import replace
from typing import Literal

import orjson

from headrace.agents.queries import create_agent
from headrace.batches.ended import read_lines
from headrace.catalogue.models import Catalogue
from headrace.files.tables import CHUNK_BYTES
from headrace.ids import new_id
from headrace.jobs.sql.lines import feed_lines, read_held
from headrace.stores.database import Database
from scheduler.batches.input import read_input
from scheduler.batches.validate import Validation
from tests.integration.batches.test_queries import create, feed, get, new_lines, store
from tests.integration.job_rows import Jobs, Owner, end_of


def render(custom_id: str, *, messages: int = 1, text: str = "Hello", model: str = "none") -> bytes:
    """Return a line with so many messages of the same text."""
    body = {"model": model, "messages": [{"role": "user", "content": text}] * messages}
    line = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}
    return orjson.dumps(line) + b"\n"


async def longest_step(work: Awaitable[object]) -> float:
    """Return the share of the event loop's time for `work` that other tasks waited for at most.

    The time is that of the loop's own thread on a processor, so neither other threads nor a busy machine count.
    """
    began = before = time.thread_time()
    longest = 0.0

    async def tick() -> None:
        nonlocal before, longest
        while True:
            await asyncio.sleep(0)
            now = time.thread_time()
            longest, before = max(longest, now - before), now

    ticker = asyncio.create_task(tick())
    await work
    ticker.cancel()
    return longest / (time.thread_time() - began)


async def check(database: Database, owner: Owner, data: bytes) -> tuple[float, list[dict[str, object]]]:
    """Check an input; returns the longest step of the event loop, as `longest_step` does, and the errors."""
    batch_id = await create(database, owner, data=data)
    batch = await get(database, owner, batch_id)
    longest = await longest_step(
        Validation(database, Catalogue(), batch, most_lines=100, room=asyncio.Semaphore(1)).run()
    )
    return longest, (await get(database, owner, batch_id)).errors


async def test_a_large_line_is_checked_beside_the_event_loop(database: Database, owner: Owner) -> None:
    longest, [error] = await check(database, owner, render("a", messages=9_000, text="x" * 500))
    assert error["code"] == "model_not_found"  # so all of it was checked
    assert longest < 0.25


async def test_an_input_of_blank_lines_lets_the_event_loop_go_on(database: Database, owner: Owner) -> None:
    longest, [error] = await check(database, owner, b"\n" * CHUNK_BYTES)
    assert error["code"] == "empty_file"
    assert longest < 0.25


async def test_a_check_keeps_few_of_the_agents_that_lines_name(database: Database, owner: Owner) -> None:
    agents = [new_id("agent") for _ in range(40)]
    definition = orjson.dumps({"model": "none", "instructions": "x" * 500_000}).decode()
    for agent_id in agents:
        await create_agent(database, agent_id, owner.account_id, definition=definition, model="none")
    lines = (render(f"{agent_id}-{turn}", model=agent_id) for turn in range(2) for agent_id in agents)
    tracemalloc.start()
    try:
        _, errors = await check(database, owner, b"".join(lines))
        assert tracemalloc.get_traced_memory()[1] < 15_000_000
    finally:
        tracemalloc.stop()
    wanted = "The model 'none' does not exist or you do not have access to it."  # so each agent was found
    assert [error["message"] for error in errors] == [wanted] * 80


class Room(asyncio.Semaphore):
    """Room for one large line, which tells when a reader has to wait for it."""

    def __init__(self) -> None:
        super().__init__(1)
        self.waits = asyncio.Event()

    async def acquire(self) -> Literal[True]:
        if self.locked():
            self.waits.set()
        return await super().acquire()


async def test_one_large_line_is_held_at_a_time(database: Database, owner: Owner) -> None:
    large = await store(database, owner, render("a", text="x" * (3 * CHUNK_BYTES)) * 2)
    small = await store(database, owner, render("b") * 100)
    room = Room()
    first, second = (read_input(database, large, room=room) for _ in range(2))
    assert (await anext(first)).number == 1
    waits = asyncio.create_task(anext(second))
    await room.waits.wait()
    assert len([line async for line in read_input(database, small, room=room)]) == 100
    assert len([line async for line in read_input(database, large)]) == 2
    assert not waits.done()
    goes_on = asyncio.create_task(anext(first))
    assert (await waits).number == 1
    await second.aclose()
    assert (await goes_on).number == 2
    await first.aclose()
    assert not room.locked()


async def test_a_page_of_lines_with_a_provider_ends_where_it_has_enough_bytes(database: Database, owner: Owner) -> None:
    batch_id = await create(database, owner, total=4)
    lines = [replace(line, request=orjson.dumps("x" * 3_000_000).decode()) for line in new_lines(1, 4)]
    assert await feed_lines(database, batch_id, lines, start=0, end=40, next_line=5, parcel="parcel_a")
    first = await read_held(database, batch_id, "parcel_a")
    assert [line.line for line in first] == [1, 2]
    rest = await read_held(database, batch_id, "parcel_a", after=2, job_ids=[line.id for line in lines])
    assert [line.line for line in rest] == [3, 4]


async def test_a_page_of_ended_lines_ends_where_it_has_enough_bytes(
    database: Database, owner: Owner, jobs: Jobs
) -> None:
    batch_id = await create(database, owner, total=4)
    job_ids = await feed(database, batch_id, 1, 4)
    for job in await jobs.claim(*job_ids):
        await jobs.finish(end_of(job, response=orjson.dumps({"choices": [], "text": "x" * 1000}).decode()))
    pages = []
    after = 0
    while page := await read_lines(database, batch_id, after=after, last=4, most_bytes=1500):
        pages.append([row.line for row in page])
        after = page[-1].line
    assert pages == [[1, 2], [3, 4]]
    [row] = await read_lines(database, batch_id, after=0, last=4, most_bytes=1)
    assert row.line == 1
