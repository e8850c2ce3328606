"""The pace of lines: slower beside requests where tasks wait for cores, and without a limit elsewhere."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from headrace.runtime.machine import machine_id, stalled_seconds
from worker.line_pace import LinePace
from worker.slots import LINES, Slots

# CPU seconds of one line.
_COST = 0.001


@dataclass
class Machine:
    """A machine with clocks that a test moves, and a worker on it that runs lines."""

    time: float = 100.0
    stalled: float | None = 0.0
    spent: float = 0.0
    requests: int = 0
    pace: LinePace = field(init=False)

    def __post_init__(self) -> None:
        self.pace = LinePace(stalled=lambda: self.stalled, spent=lambda: self.spent, now=lambda: self.time)

    def go_on(self, *, waiting: float, requests: int, seconds: float = 1.0) -> None:
        """Let time pass in steps of 10 ms, in which the lines start that may; tasks wait for a share of it."""
        for _ in range(round(seconds / 0.01)):
            self.time += 0.01
            for _ in range(int(min(50, self.pace.room()))):
                self.pace.started()
                self.spent += _COST
        if self.stalled is not None:
            self.stalled += waiting * seconds
        self.requests += requests
        self.pace.look(self.requests)

    def lines_in(self, seconds: float, *, waiting: float, requests: int) -> int:
        """Return how many lines start in the time."""
        before = self.spent
        self.go_on(waiting=waiting, requests=requests, seconds=seconds)
        return round((self.spent - before) / _COST)


def test_lines_have_no_limit_without_requests_beside_them() -> None:
    machine = Machine()
    for _ in range(5):
        machine.go_on(waiting=0.9, requests=0)
    assert machine.pace.room() == math.inf


def test_lines_have_no_limit_while_no_task_waits_for_a_core() -> None:
    machine = Machine()
    for _ in range(5):
        machine.go_on(waiting=0.1, requests=100)
    assert machine.pace.room() == math.inf


def test_lines_that_take_little_have_no_limit() -> None:
    machine = Machine()
    for step in range(1, 20):
        machine.time += 0.5
        for _ in range(20):  # 40 a second: their provider takes no more at once
            machine.pace.started()
            machine.spent += _COST
        machine.stalled = 0.45 * step
        machine.go_on(waiting=0, requests=100, seconds=0)
        assert not machine.pace.is_limited


def test_lines_have_no_limit_where_nothing_tells_how_long_tasks_wait() -> None:
    machine = Machine(stalled=None)
    machine.go_on(waiting=0.9, requests=100)
    assert machine.pace.room() == math.inf


def test_lines_beside_requests_take_a_twentieth_of_a_core_while_tasks_wait() -> None:
    machine = Machine()
    machine.go_on(waiting=0.9, requests=100)
    assert machine.pace.is_limited
    for _ in range(5):
        assert 45 <= machine.lines_in(1, waiting=0.9, requests=100) <= 55


def test_other_work_of_the_worker_does_not_stop_its_lines() -> None:
    machine = Machine()
    machine.go_on(waiting=0.9, requests=100)
    for _ in range(10):
        machine.spent += 0.9
        machine.go_on(waiting=0.9, requests=100)
    assert 45 <= machine.lines_in(1, waiting=0.9, requests=100) <= 55


def test_lines_that_seem_to_take_long_start_all_the_same() -> None:
    machine = Machine()
    machine.spent += 1000
    machine.go_on(waiting=0.9, requests=100)
    assert 45 <= machine.lines_in(1, waiting=0.9, requests=100) <= 55


def test_news_that_come_at_once_do_not_change_the_pace() -> None:
    machine = Machine()
    machine.go_on(waiting=0.9, requests=100)
    for _ in range(20):
        machine.go_on(waiting=0, requests=1, seconds=0.01)
    assert machine.pace.is_limited


def test_lines_start_evenly() -> None:
    machine = Machine()
    machine.go_on(waiting=0.9, requests=100)
    machine.time += 30
    assert machine.pace.room() <= 2


def test_lines_speed_up_while_no_task_waits_and_slow_down_when_one_does() -> None:
    machine = Machine()
    machine.go_on(waiting=0.9, requests=100)
    slow = machine.lines_in(1, waiting=0.1, requests=100)
    for _ in range(20):
        machine.go_on(waiting=0.1, requests=100)
    faster = machine.lines_in(1, waiting=0.9, requests=100)
    slower = machine.lines_in(1, waiting=0.1, requests=100)
    assert max(slow, slower) < faster
    for _ in range(20):
        machine.go_on(waiting=0.1, requests=100)
    assert machine.pace.is_limited
    for _ in range(60):
        machine.go_on(waiting=0.1, requests=100)
    assert not machine.pace.is_limited


def test_lines_have_no_limit_again_some_seconds_after_the_last_request() -> None:
    machine = Machine()
    machine.go_on(waiting=0.9, requests=100)
    machine.go_on(waiting=0.9, requests=0)
    assert machine.pace.is_limited
    for _ in range(3):
        machine.go_on(waiting=0.9, requests=0)
    assert not machine.pace.is_limited


def test_a_line_waits_for_the_pace_and_no_other_job_does() -> None:
    machine = Machine()
    machine.go_on(waiting=0.9, requests=100)
    machine.time += 1
    slots = Slots(100, line_slots=100, pace=machine.pace)
    while slots.room(LINES):
        slots.take(LINES)
    assert slots.lines <= 2
    assert slots.line_waits
    assert slots.room("default") == 100 - slots.lines


def test_slots_without_a_pace_are_all_for_lines() -> None:
    slots = Slots(100, line_slots=80)
    assert slots.room(LINES) == 80
    assert not slots.line_waits


def test_processes_of_a_machine_have_one_id_of_it() -> None:
    assert machine_id() == machine_id()


def test_the_time_that_tasks_wait_for_cores_does_not_go_back() -> None:
    first, second = stalled_seconds(), stalled_seconds()
    assert first is None or second is None or first <= second


def test_the_first_request_slows_lines_at_once_if_tasks_waited_before() -> None:
    machine = Machine()
    machine.go_on(waiting=0.9, requests=0)
    assert not machine.pace.is_limited
    machine.go_on(waiting=0, requests=1, seconds=0.01)
    assert machine.pace.is_limited


def test_the_first_request_slows_no_line_if_no_task_waited_before() -> None:
    machine = Machine()
    machine.go_on(waiting=0.1, requests=0)
    machine.go_on(waiting=0.01, requests=1, seconds=0.01)
    assert not machine.pace.is_limited


def test_the_first_request_slows_no_line_if_none_ran_before() -> None:
    machine = Machine()
    machine.go_on(waiting=0.9, requests=0)
    machine.time += 1
    machine.stalled = 1.8
    machine.pace.look(0)
    machine.time += 0.01
    machine.pace.look(1)
    assert not machine.pace.is_limited
