from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from worker.circuit import Circuit, Rules

RULES = Rules(failures=3, cooling_seconds=10, longest_cooling_seconds=60, forget_seconds=600)
NOW = 1_777_898_096_000
CIRCUITS = st.builds(
    Circuit,
    failures=st.integers(0, 10),
    trips=st.integers(0, 200),
    failed_at=st.integers(0, NOW),
    open_until=st.just(0) | st.integers(NOW - 10**6, NOW + 10**6),
    probe_until=st.just(0) | st.integers(NOW - 10**6, NOW + 10**6),
)


def failed(circuit: Circuit, times: int = 1, *, now: int = NOW, probe: bool = False) -> Circuit:
    for _ in range(times):
        circuit = circuit.failed(now, RULES, probe=probe, jitter=0.5)
    return circuit


def test_it_opens_after_so_many_failures_in_a_row() -> None:
    assert failed(Circuit(), 2).blocked(NOW) == 0
    assert failed(Circuit(), 3).blocked(NOW) == 10_000


def test_an_answer_in_between_starts_the_count_anew() -> None:
    circuit = failed(failed(Circuit(), 2).answered(probe=False), 2)
    assert circuit.blocked(NOW) == 0
    assert failed(circuit).blocked(NOW) > 0


def test_failures_long_ago_do_not_count() -> None:
    assert failed(failed(Circuit(), 2), now=NOW + 601_000).blocked(NOW + 601_000) == 0


def test_a_failure_without_weight_is_not_counted() -> None:
    circuit = failed(Circuit(), 2).failed(NOW, RULES, probe=False, jitter=0.5, weight=0)
    assert circuit.blocked(NOW) == 0
    assert failed(circuit).blocked(NOW) > 0


def test_calls_that_were_under_way_when_it_opened_change_nothing() -> None:
    circuit = failed(Circuit(), 3)
    assert failed(circuit, 5) == circuit
    assert circuit.answered(probe=False) == circuit


def test_each_failed_probe_opens_it_for_longer_up_to_a_bound() -> None:
    circuit, now, seconds = failed(Circuit(), 3), NOW, []
    for _ in range(5):
        now += circuit.blocked(now)
        circuit = failed(circuit, now=now, probe=True)
        seconds.append(circuit.blocked(now) / 1000)
    assert seconds == [20, 40, 60, 60, 60]


def test_one_that_opens_again_soon_stays_open_longer_than_one_that_opens_again_late() -> None:
    closed = failed(Circuit(), 3).answered(probe=True)
    assert closed.blocked(NOW) == 0
    assert failed(closed, 3, now=NOW + 60_000).blocked(NOW + 60_000) == 20_000
    assert failed(closed, 3, now=NOW + 700_000).blocked(NOW + 700_000) == 10_000


def test_one_in_doubt_lets_a_probe_through_and_any_answer_closes_it() -> None:
    doubted = failed(Circuit(), 2).in_doubt(NOW)
    assert doubted.doubted
    assert doubted.blocked(NOW) == 0
    assert not doubted.answered(probe=False).open_until
    assert failed(doubted, probe=True).blocked(NOW) > 0


def test_what_failures_opened_is_not_in_doubt() -> None:
    circuit = failed(Circuit(), 3)
    assert circuit.in_doubt(NOW) == circuit
    assert not circuit.doubted


@given(CIRCUITS, st.integers(0, 10**6))
def test_tidying_up_does_not_change_what_is_blocked(circuit: Circuit, later: int) -> None:
    now = NOW + later
    assert circuit.tidied(now, RULES).blocked(now) == circuit.blocked(now)


@given(CIRCUITS, st.floats(0, 1), st.booleans())
def test_a_failure_blocks_for_no_longer_than_the_bound(circuit: Circuit, jitter: float, probe: bool) -> None:
    after = circuit.failed(NOW, RULES, probe=probe, jitter=jitter)
    assert after.blocked(NOW) <= max(circuit.blocked(NOW), int(60_000 * 1.25))
