from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
import sqlalchemy as sa

from headrace.stores.group_commit import GroupCommit


class RefusedError(Exception):
    """An error such as psycopg raises."""

    sqlstate = "22P05"


async def test_a_lone_item_is_written_at_once_and_later_ones_together() -> None:
    batches: list[Sequence[int]] = []
    gate = asyncio.Event()

    async def flush(items: Sequence[int]) -> Sequence[int]:
        batches.append(items)
        if len(batches) == 1:
            await gate.wait()
        return [item * 2 for item in items]

    commits = GroupCommit(flush, statement="test", size=lambda _: 1)
    first = asyncio.create_task(commits.submit(1))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    rest = [asyncio.create_task(commits.submit(item)) for item in (2, 3, 4)]
    await asyncio.sleep(0)
    gate.set()
    assert [await first, *[await task for task in rest]] == [2, 4, 6, 8]
    assert batches == [[1], [2, 3, 4]]


async def test_large_items_are_written_in_several_batches_and_a_larger_one_alone() -> None:
    batches: list[Sequence[int]] = []

    async def flush(items: Sequence[int]) -> Sequence[int]:
        batches.append(items)
        return items

    commits = GroupCommit(flush, statement="test", size=lambda mebibytes: mebibytes * 1024 * 1024)
    items = [10, 6, 1, 40, 9, 9, 3]
    assert await asyncio.gather(*(commits.submit(item) for item in items)) == items
    assert batches == [[10, 6], [1], [40], [9], [9, 3]]


async def test_an_item_that_postgres_refuses_fails_alone() -> None:
    async def flush(items: Sequence[int]) -> Sequence[int]:
        await asyncio.sleep(0)
        if 13 in items:
            raise sa.exc.DataError("INSERT", {}, RefusedError())
        return items

    commits = GroupCommit(flush, statement="test", size=lambda _: 1)
    results = await asyncio.gather(*(commits.submit(item) for item in (12, 13, 14)), return_exceptions=True)
    assert results[0] == 12
    assert isinstance(results[1], sa.exc.DataError)
    assert results[2] == 14


async def test_a_failure_of_the_whole_reaches_everyone_and_the_next_is_written() -> None:
    failing = True

    async def flush(items: Sequence[int]) -> Sequence[int]:
        if failing:
            raise OSError("away")
        return items

    commits = GroupCommit(flush, statement="test", size=lambda _: 1)
    results = await asyncio.gather(commits.submit(1), commits.submit(2), return_exceptions=True)
    assert [type(result) for result in results] == [OSError, OSError]
    failing = False
    assert await commits.submit(3) == 3


async def test_one_who_gives_up_does_not_disturb_the_others() -> None:
    async def flush(items: Sequence[int]) -> Sequence[int]:
        await asyncio.sleep(0.01)
        return items

    commits = GroupCommit(flush, statement="test", size=lambda _: 1)
    tasks = [asyncio.create_task(commits.submit(item)) for item in (1, 2, 3)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[1]
    assert [await tasks[0], await tasks[2]] == [1, 3]
