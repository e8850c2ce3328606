import math

import pytest

from bench.ratios import Line, ratio, table


def test_the_interval_is_students_over_the_logarithms() -> None:
    # The logarithms are 0.01, 0.02 and 0.03: a mean of 0.02 with a standard error of 0.01 / √3, and 2 degrees.
    found = ratio([1.0, 2.0, 4.0], [math.exp(0.01), 2 * math.exp(0.02), 4 * math.exp(0.03)])
    assert found is not None
    margin = 4.303 * 0.01 / math.sqrt(3)
    assert found.mean == pytest.approx(math.exp(0.02))
    assert found.low == pytest.approx(math.exp(0.02 - margin))
    assert found.high == pytest.approx(math.exp(0.02 + margin))


def test_a_slow_minute_that_hits_both_widens_nothing() -> None:
    found = ratio([1.0, 3.0, 1.0, 2.0], [1.1, 3.3, 1.1, 2.2])
    assert found is not None
    assert (found.low, found.high) == pytest.approx((1.1, 1.1))


def test_swapped_systems_have_the_inverse_ratio() -> None:
    old, new = [1.0, 1.2, 1.1], [1.3, 1.1, 1.4]
    forward, backward = ratio(old, new), ratio(new, old)
    assert forward is not None
    assert backward is not None
    assert (forward.mean, forward.low, forward.high) == pytest.approx(
        (1 / backward.mean, 1 / backward.high, 1 / backward.low)
    )


def test_many_rounds_have_an_interval() -> None:
    found = ratio([1.0] * 100, [1.0, 1.02] * 50)
    assert found is not None
    assert 1.005 < found.low < found.mean < found.high < 1.015


def test_one_round_proves_nothing() -> None:
    line = Line("plain-1", "CPU", [1.0], [5.0], guarded=True)
    assert not line.exceeds(1.01)
    assert "| 5.000 | one round |" in table([line])[-1]


def test_figures_of_zero_have_no_ratio() -> None:
    assert ratio([0.0, 0.0], [1.0, 1.0]) is None
    assert ratio([], [1.0, 1.0]) is None


def test_a_guarded_line_exceeds_when_its_whole_interval_does() -> None:
    clearly = Line("plain-1", "CPU", [1.0, 1.0, 1.0], [1.10, 1.11, 1.12], guarded=True)
    perhaps = Line("plain-1", "CPU", [1.0, 1.0, 1.0], [0.90, 1.11, 1.32], guarded=True)
    part = Line("plain-1", "worker", [1.0, 1.0, 1.0], [1.10, 1.11, 1.12])
    assert clearly.exceeds(1.01)
    assert not clearly.exceeds(1.2)
    assert not perhaps.exceeds(1.01)
    assert not part.exceeds(1.01)


def test_the_table_names_a_row_once_and_says_what_the_old_commit_lacks() -> None:
    lines = [
        Line("plain-1", "CPU, ms a job", [4.0, 4.0], [5.0, 5.0], 2),
        Line("plain-1", "api", [1.0, 3.0], [2.0, 2.0], 2),
        Line("plain-1-responses", "CPU, ms a job", [], [1234.5], 1),
    ]
    assert table(lines)[2:] == [
        "| plain-1 | CPU, ms a job | 4.00 | 5.00 | 1.250 | 1.250 … 1.250 |",
        f"|  | api | 2.00 | 2.00 | 1.155 | {_interval(lines[1])} |",
        "| plain-1-responses | CPU, ms a job | n/a | 1,234.5 |  |  |",
    ]


def _interval(line: Line) -> str:
    found = line.ratio
    assert found is not None
    return f"{found.low:.3f} … {found.high:.3f}"
