from __future__ import annotations

import asyncio
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.runtime import chores


@given(now=st.floats(0, 1e6), seconds=st.floats(0.001, 100))
def test_the_last_tick_within_some_seconds_is_one_at_which_most_chores_wake(now: float, seconds: float) -> None:
    loop = _Clock(now)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio, "get_running_loop", lambda: loop)
        rest = chores.last_tick_within(seconds)
        assert 0 < rest <= seconds
        if rest < seconds:
            ticks = (now + rest + chores._PHASE) / chores._COMMON_SECONDS
            assert math.isclose(ticks, round(ticks), abs_tol=1e-6)
            assert rest + chores._COMMON_SECONDS > seconds - chores._SHORTEST_SECONDS


async def test_a_wait_for_an_event_ends_with_the_event_or_with_its_seconds() -> None:
    event = asyncio.Event()
    await chores.wait_for(event, 0.01)
    asyncio.get_running_loop().call_later(0.01, event.set)
    await chores.wait_for(event, None)
    assert event.is_set()


class _Clock:
    def __init__(self, now: float) -> None:
        self._now = now

    def time(self) -> float:
        return self._now
