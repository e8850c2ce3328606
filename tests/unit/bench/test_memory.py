import pytest

from bench.memory import growth


def test_a_steady_growth_is_found_behind_the_first_quarter() -> None:
    start = [(float(second), 10.0**9) for second in range(0, 300, 5)]
    steady = [(float(second), 10.0**8 + 1000 * second) for second in range(300, 1200, 5)]
    found = growth(start + steady)
    assert found.slope == pytest.approx(3.6e6)
    assert found.low <= found.slope <= found.high


def test_a_flat_memory_with_noise_has_an_interval_around_zero() -> None:
    found = growth([(5.0 * number, 10.0**8 + number // 30 % 2 * 10_000) for number in range(400)])
    assert found.low < 0 < found.high
