from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.throttle import _SLOTS, Demand, Quota, Window, estimate_tokens

SECONDS = 60.0
DEMANDS = st.builds(Demand, st.integers(1, 3), st.integers(0, 50))


@given(
    st.lists(st.tuples(st.floats(0, 20), st.lists(DEMANDS, max_size=5)), max_size=40),
    st.integers(3, 10),
    st.integers(50, 200),
)
def test_no_minute_holds_more_than_the_limits(
    arrivals: list[tuple[float, list[Demand]]], calls: int, tokens: int
) -> None:
    window, quota, now = Window(SECONDS), Quota(None, calls, tokens), 0.0
    admitted: list[tuple[float, Demand]] = []
    for pause, asked in arrivals:
        now += pause
        for demand in asked[: window.decide(now, quota, 0, asked).granted]:
            window.add(now, demand)
            admitted.append((now, demand))
    for end, _ in admitted:
        minute = [demand for at, demand in admitted if end - SECONDS < at <= end]
        assert sum(demand.calls for demand in minute) <= calls
        assert sum(demand.tokens for demand in minute) <= tokens


@given(st.lists(st.tuples(st.floats(0, 20), DEMANDS), min_size=1, max_size=40), DEMANDS)
def test_whoever_waits_as_long_as_it_is_told_is_admitted(counted: list[tuple[float, Demand]], demand: Demand) -> None:
    window, quota, now = Window(SECONDS), Quota(None, 4, 60), 0.0
    for pause, taken in counted:
        now += pause
        if window.decide(now, quota, 0, [taken]).granted:
            window.add(now, taken)
    decision = window.decide(now, quota, 0, [demand])
    if not decision.granted:
        assert 0 < decision.wait_seconds <= SECONDS * (_SLOTS + 1) / _SLOTS
        assert window.decide(now + decision.wait_seconds + 1e-6, quota, 0, [demand]).granted


def test_slots_are_short_for_nobody_knows_how_long() -> None:
    window = Window(SECONDS)
    assert window.decide(0, Quota(3, None, None), 2, [Demand(1, 0), Demand(1, 0)]) == (1, 0, 0)
    assert window.decide(0, Quota(3, None, None), 2, [Demand(2, 0), Demand(1, 0)]) == (0, 0, 0)


def test_who_came_first_is_not_passed_by_a_smaller_one() -> None:
    decision = Window(SECONDS).decide(0, Quota(None, None, 10), 0, [Demand(1, 8), Demand(1, 8), Demand(1, 1)])
    assert decision.granted == 1


def test_what_was_not_used_does_not_count() -> None:
    window, quota = Window(SECONDS), Quota(None, None, 100)
    slot = window.add(10, Demand(1, 100))
    assert not window.decide(30, quota, 0, [Demand(1, 1)]).granted
    window.correct(30, slot, Demand(0, -60))
    assert window.total(30) == Demand(1, 40)
    window.correct(100, slot, Demand(0, -60))
    assert window.total(100) == Demand(0, 0)


def test_what_was_used_beyond_the_estimate_counts_from_when_that_is_known() -> None:
    window = Window(SECONDS)
    slot = window.add(0, Demand(1, 10))
    window.correct(59, slot, Demand(0, 500))
    assert window.total(80) == Demand(0, 500)


@pytest.mark.parametrize(
    ("limits", "reserved"),
    [
        ({}, 0),
        ({"max_tokens": 100}, 100),
        ({"max_tokens": None, "max_completion_tokens": 200}, 200),
        ({"max_tokens": 100, "n": 3}, 300),
        ({"max_tokens": 1_000_000}, 4096),
    ],
)
def test_tokens_are_reserved_for_the_prompt_and_a_limited_answer(limits: dict[str, int], reserved: int) -> None:
    request = {"messages": [{"role": "user", "content": "x" * 400}]}
    assert estimate_tokens(request | limits) == estimate_tokens(request) + reserved
    assert estimate_tokens(request) >= 100
