import pytest

from bench.instructions import above, per_operation, plan, table
from bench.pure import PARTS


@pytest.mark.parametrize("name", PARTS)
def test_every_operation_runs_on_this_commit(name: str) -> None:
    run = PARTS[name]()
    run()
    assert run()


def test_the_start_and_what_the_parent_does_between_forks_cancel_out() -> None:
    names = ["parse", "missing", "fold"]
    assert plan(names).splitlines()[:3] == ["parse\t10", "parse\t10", "parse\t110"]
    start, between = 1_000_000, 700
    collected = {
        11: start + 10 * 5_000,
        12: start + between + 10 * 5_000,
        13: start + 2 * between + 110 * 5_000,
        14: start + 9 * between + 10 * 80,
        15: start + 10 * between + 10 * 80,
        16: start + 11 * between + 110 * 80,
    }
    assert per_operation(names, [11, 12, 13, 0, 0, 0, 14, 15, 16], collected) == {"parse": 5_000, "fold": 80}


def test_the_table_has_the_wider_spread_and_says_what_a_commit_lacks() -> None:
    new, old = {"parse": [1010.0, 990.0], "render": [50.0, 50.0]}, {"parse": [500.0, 500.0]}
    assert table(["parse", "render"], new, old)[2:] == [
        "| parse | 500 | 1,000 | 2.000 | 2.00% |",
        "| render | n/a | 50 |  | 0.00% |",
    ]
    assert table(["parse"], new, None)[2:] == ["| parse | 1,000 | 2.00% |"]


def test_an_operation_is_above_the_ratio_with_each_seed() -> None:
    old = {"parse": [100.0, 102.0], "fold": [100.0, 100.0]}
    new = {"parse": [103.0, 110.0], "fold": [120.0, 121.0], "render": [9.0, 9.0]}
    assert above(1.01, new, old) == ["fold"]
