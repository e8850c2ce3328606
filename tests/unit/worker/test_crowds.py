"""How many lines of batches may start while others like them wait for permits."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.crowds import Crowd, Crowds, Key
from worker.wakeups import Message, WakeUps

KEY = ("acct_1", "model")
OTHER = ("acct_2", "model")


class Clock:
    """A clock in seconds, which tests set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def crowds(clock: Clock) -> Crowds:
    return Crowds(now=clock)


def wait(crowd: Crowd, count: int) -> None:
    for _ in range(count):
        crowd.join()


def grant(crowd: Crowd, count: int) -> None:
    for _ in range(count):
        crowd.leave(granted=True)


def test_a_burst_whose_permits_come_soon_holds_nothing_back(crowds: Crowds, clock: Clock) -> None:
    for _ in range(100):
        wait(crowds.of(KEY), 500)
        clock.now += 0.1
        assert crowds.room(KEY) == math.inf
        grant(crowds.of(KEY), 500)
    assert not crowds.hold


def test_lines_that_wait_hold_back_those_of_their_account_and_model_alone(crowds: Crowds, clock: Clock) -> None:
    wait(crowds.of(KEY), 500)
    clock.now += 1
    assert crowds.hold
    assert crowds.room(KEY) == 0
    assert crowds.room(OTHER) == math.inf
    assert crowds.room(("acct_1", "other")) == math.inf
    assert crowds.room(None) == 0, "lines of which it is not known whose they are"


def test_some_lines_always_wait_so_that_a_free_permit_finds_one(crowds: Crowds, clock: Clock) -> None:
    wait(crowds.of(KEY), 1)
    clock.now += 3600
    assert 1 <= crowds.room(KEY) < 50


def test_as_many_wait_as_get_their_permits_in_the_next_seconds(crowds: Crowds, clock: Clock) -> None:
    crowd = crowds.of(KEY)
    wait(crowd, 10)
    for _ in range(200):  # 50 permits a second, for 20 seconds
        clock.now += 0.1
        grant(crowd, 5)
        wait(crowd, 5)
    assert 150 <= crowd.room <= 250
    clock.now += 60
    assert crowd.room < 50, "the permits of the last seconds alone count"


def test_lines_that_left_without_a_permit_are_not_replaced_by_as_many(crowds: Crowds, clock: Clock) -> None:
    crowd = crowds.of(KEY)
    wait(crowd, 500)
    clock.now += 5
    for _ in range(500):
        crowd.leave(granted=False)
    assert 1 <= crowd.room < 50
    clock.now += 60
    assert crowd.room == math.inf


def test_a_worker_forgets_accounts_and_models_without_lines(crowds: Crowds) -> None:
    wait(crowds.of(KEY), 1)
    for number in range(5000):
        crowds.of(("acct_1", f"model-{number}"))
    assert len(crowds._crowds) <= 1000
    grant(crowds.of(KEY), 1)  # and not those with lines


def no_limit(_: Key | None) -> float:
    return math.inf


def test_lines_start_in_turn_by_account_and_model_as_far_as_they_have_room() -> None:
    wakeups = WakeUps()
    for name in ("a1", "a2", "a3", "b1", "b2", "c1"):
        wakeups.add(name, "batch", Message())
    assert wakeups.first_lines(4, no_limit) == ["a1", "a2", "a3", "b1"]
    assert wakeups.unknown_lines(2) == ["a1", "a2"]
    for name in ("a1", "a2", "a3", "b1", "b2"):
        wakeups.know(name, (name[0], "model"))
    room = {("a", "model"): 2.0, ("b", "model"): math.inf, None: 0.0}
    assert wakeups.first_lines(3, room.__getitem__) == ["a1", "a2", "b1"]
    assert wakeups.first_lines(9, room.__getitem__) == ["a1", "a2", "b1", "b2"]
    wakeups.drop("a1")
    assert wakeups.first_lines(1, no_limit) == ["c1"], "whose turn it is: the others had theirs"
    assert wakeups.first_lines(9, no_limit) == ["a2", "a3", "b1", "b2", "c1"]


@given(st.lists(st.tuples(st.sampled_from(["add", "know", "drop", "take"]), st.integers(0, 9), st.integers(0, 2))))
def test_no_line_is_lost_or_counted_twice(steps: list[tuple[str, int, int]]) -> None:
    wakeups, waiting = WakeUps(), dict[str, None]()
    for step, number, key in steps:
        name = f"job_{number}"
        if step == "add" and name not in waiting:
            wakeups.add(name, "batch" if number < 8 else "default", Message())
            waiting[name] = None
        elif step == "know":
            wakeups.know(name, (f"acct_{key}", "model"))
        elif step == "drop":
            wakeups.drop(name)
            waiting.pop(name, None)
        elif step == "take":
            found = wakeups.first_lines(key, no_limit)
            assert len(found) == min(key, wakeups.competing("batch"))
        lines = {name for name in waiting if name < "job_8"}
        assert set(wakeups.tiers) == waiting.keys()
        assert wakeups.competing("batch") == len(lines)
        assert wakeups.competing("default") == len(waiting) - len(lines)
        assert sorted(wakeups.first_lines(99, no_limit)) == sorted(lines)
