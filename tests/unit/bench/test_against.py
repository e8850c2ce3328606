from pathlib import Path
from typing import Any

from bench.against import Comparison, EarlierHeadrace
from bench.checkout import Checkout
from bench.systems import Headrace


class _Upstream:
    port = 1


def _comparison(most: float | None = None) -> Comparison:
    return Comparison(Checkout(Path(), "old"), Checkout(Path(), "new"), most, quick=False, load=0.5)


_UPSTREAM: Any = _Upstream()
_OLD, _NEW = EarlierHeadrace(_UPSTREAM), Headrace(_UPSTREAM)


def test_a_round_counts_if_both_were_measured_in_it() -> None:
    found = _comparison()
    for number, cpu in enumerate((1.0, 2.0, 3.0)):
        found.add("plain-1", _NEW, number, {"CPU, ms a job": cpu}, 2)
    for number, cpu in ((0, 10.0), (2, 30.0)):
        found.add("plain-1", _OLD, number, {"CPU, ms a job": cpu}, 2)
    [line] = found.lines()
    assert (line.old, line.new) == ([10.0, 30.0], [1.0, 3.0])


def test_a_row_that_the_old_commit_cannot_serve_has_the_new_figures() -> None:
    found = _comparison()
    found.add("plain-1-responses", _NEW, 0, {"CPU, ms a job": 1.0}, 2)
    [line] = found.lines()
    assert (line.old, line.new) == ([], [1.0])


def test_a_part_that_one_commit_lacks_took_nothing_there() -> None:
    found = _comparison()
    found.add("idle", _OLD, 0, {"CPU, ms a second": 3.0, "worker": 3.0}, 1)
    found.add("idle", _NEW, 0, {"CPU, ms a second": 3.0, "batch-worker": 3.0}, 1)
    lines = {line.figure: (line.old, line.new) for line in found.lines()}
    assert lines["worker"] == ([3.0], [0.0])
    assert lines["batch-worker"] == ([0.0], [3.0])


def test_only_more_cpu_is_too_much() -> None:
    found = _comparison(most=1.01)
    for number in range(3):
        found.add("plain-1", _OLD, number, {"CPU, ms a job": 1.0, "api": 1.0, "p50, ms": 1.0}, 2)
        found.add("plain-1", _NEW, number, {"CPU, ms a job": 1.2, "api": 1.2, "p50, ms": 1.2}, 2)
    assert found.slower == ["plain-1, CPU, ms a job: the whole interval is above 1.01"]
    assert found.slower[0] in found.markdown()
