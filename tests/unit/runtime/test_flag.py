from __future__ import annotations

import asyncio
import sys

import pytest

from headrace.runtime.flag import Flag


async def test_setting_it_wakes_all_that_wait_but_the_cancelled() -> None:
    flag = Flag()
    waiting = [asyncio.create_task(flag.wait()) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    flag.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting[0]
    await asyncio.gather(*waiting[1:])
    await flag.wait()


async def test_once_it_is_cleared_one_waits_again() -> None:
    flag = Flag(is_set=True)
    assert flag.is_set()
    flag.clear()
    waiting = asyncio.create_task(flag.wait())
    await asyncio.sleep(0)
    assert not waiting.done()
    flag.set()
    await waiting
    assert flag.is_set()


async def test_those_that_left_are_forgotten() -> None:
    flag = Flag()
    for _ in range(100):
        waiting = asyncio.create_task(flag.wait())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
    assert len(flag._waiters) == 1


def test_it_takes_a_tenth_of_the_memory_of_an_event_of_asyncio() -> None:
    event = asyncio.Event()
    assert 10 * sys.getsizeof(Flag()) < sys.getsizeof(event) + sys.getsizeof(event._waiters)
