from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from worker.window import SLOTS, Cost, Decision, ProviderLimits, Window

SECONDS = 60.0
COSTS = st.builds(Cost, st.integers(1, 2), st.integers(0, 50), st.integers(0, 1))


@given(
    st.lists(st.tuples(st.floats(0, 20), st.lists(COSTS, max_size=5)), max_size=40),
    st.integers(3, 10),
    st.integers(50, 200),
)
def test_no_minute_holds_more_than_the_limits(
    arrivals: list[tuple[float, list[Cost]]], calls: int, tokens: int
) -> None:
    window, limits, now = Window(SECONDS), ProviderLimits(None, calls, tokens), 0.0
    granted: list[tuple[float, Cost]] = []
    for pause, asked in arrivals:
        now += pause
        for cost in asked[: window.decide(now, limits, 0, asked).granted]:
            window.add(now, cost)
            granted.append((now, cost))
    for end, _ in granted:
        minute = [cost for at, cost in granted if end - SECONDS < at <= end]
        assert sum(cost.requests for cost in minute) <= calls
        assert sum(cost.tokens for cost in minute) <= tokens


@given(st.lists(st.tuples(st.floats(0, 20), COSTS), min_size=1, max_size=40), COSTS)
def test_a_call_that_waits_as_long_as_the_decision_says_is_granted(
    counted: list[tuple[float, Cost]], cost: Cost
) -> None:
    window, limits, now = Window(SECONDS), ProviderLimits(None, 4, 60), 0.0
    for pause, taken in counted:
        now += pause
        if window.decide(now, limits, 0, [taken]).granted:
            window.add(now, taken)
    decision = window.decide(now, limits, 0, [cost])
    if not decision.granted:
        assert 0 < decision.wait_seconds <= SECONDS * (SLOTS + 1) / SLOTS
        assert window.decide(now + decision.wait_seconds + 1e-6, limits, 0, [cost]).granted


def test_no_wait_is_known_while_slots_are_short() -> None:
    window = Window(SECONDS)
    assert window.decide(0, ProviderLimits(3, None, None), 2, [Cost(1, 0), Cost(1, 0)]) == Decision(1, 0, 0)
    assert window.decide(0, ProviderLimits(3, None, None), 2, [Cost(2, 0), Cost(1, 0)]) == Decision(0, 0, 0)


def test_calls_that_follow_others_count_in_the_minute_and_not_at_once() -> None:
    window, limits = Window(SECONDS), ProviderLimits(2, 7, None)
    cost = Cost(3, 0, more=2).within(limits)
    assert cost == Cost(2, 0, more=3)
    assert Cost(8, 0, more=20).within(limits) == Cost(2, 0, more=5)
    assert window.decide(0, limits, 0, [cost]).granted
    window.add(0, cost)
    assert window.total(0) == Cost(5, 0)
    assert window.decide(0, limits, 0, [Cost(1, 0, more=1)]).granted
    assert not window.decide(0, limits, 0, [Cost(1, 0, more=2)]).granted


def test_who_came_first_is_not_passed_by_a_smaller_one() -> None:
    decision = Window(SECONDS).decide(0, ProviderLimits(None, None, 10), 0, [Cost(1, 8), Cost(1, 8), Cost(1, 1)])
    assert decision.granted == 1


def test_what_was_not_used_does_not_count() -> None:
    window, limits = Window(SECONDS), ProviderLimits(None, None, 100)
    slot = window.add(10, Cost(1, 100))
    assert not window.decide(30, limits, 0, [Cost(1, 1)]).granted
    window.correct(30, slot, Cost(0, -60))
    assert window.total(30) == Cost(1, 40)
    window.correct(100, slot, Cost(0, -60))
    assert window.total(100) == Cost(0, 0)


def test_what_was_used_beyond_the_estimate_counts_from_when_that_is_known() -> None:
    window = Window(SECONDS)
    slot = window.add(0, Cost(1, 10))
    window.correct(59, slot, Cost(0, 500))
    assert window.total(80) == Cost(0, 500)
