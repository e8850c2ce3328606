"""The pace of lines: slower beside requests where tasks wait for cores, and without a limit elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, field

from headrace.queue import LINES
from headrace.runtime.machine import machine_id, stalled_seconds
from worker.line_pace import LinePace
from worker.slots import Slots

# CPU seconds of one line.
_COST = 0.0005
_MOST_LINES = 2000
"""Lines that the worker can run in a second."""


@dataclass
class Machine:
    """A machine with clocks that a test moves, and a worker on it that runs lines."""

    time: float = 100.0
    stalled: float | None = 0.0
    spent: float = 0.0
    requests: int = 0
    cost: float = _COST
    pace: LinePace = field(init=False)

    def __post_init__(self) -> None:
        self.pace = LinePace(stalled=lambda: self.stalled, spent=lambda: self.spent, now=lambda: self.time)

    def go_on(
        self, *, waiting: float, requests: int, seconds: float = 1.0, lines: int = _MOST_LINES, news: float = 0.01
    ) -> int:
        """Let time pass in steps of 10 ms, and return how many lines started, of up to `lines` a second.

        Tasks wait for a share of the time, and a step begins with some of the `requests` a second. The worker hears of
        them every `news` seconds.
        """
        started = 0
        for step in range(round(seconds / 0.01)):
            self.requests += requests // 100
            if step % round(news / 0.01) == 0:
                self.pace.hear(self.requests)
            self.time += 0.01
            if self.stalled is not None:
                self.stalled += waiting * 0.01
            for _ in range(int(min(lines // 100, self.pace.room()))):
                self.pace.started()
                self.spent += self.cost
                started += 1
        return started


def test_lines_have_no_limit_where_no_requests_come() -> None:
    machine = Machine()
    assert machine.go_on(waiting=0.9, requests=0, seconds=5) == 5 * _MOST_LINES


def test_lines_have_no_limit_while_no_task_waits_for_a_core() -> None:
    machine = Machine()
    machine.go_on(waiting=0.05, requests=0)
    assert machine.go_on(waiting=0.05, requests=100, seconds=5) == 5 * _MOST_LINES


def test_lines_that_take_little_have_no_limit() -> None:
    machine = Machine(cost=_COST / 8)
    machine.go_on(waiting=0.9, requests=0, lines=100)
    for _ in range(5):
        machine.go_on(waiting=0.9, requests=100, lines=100)
        assert not machine.pace.is_limited


def test_lines_have_no_limit_where_nothing_tells_how_long_tasks_wait() -> None:
    machine = Machine(stalled=None)
    machine.go_on(waiting=0.9, requests=0)
    machine.go_on(waiting=0.9, requests=100)
    assert not machine.pace.is_limited


def test_lines_beside_requests_take_a_hundredth_of_a_core_while_tasks_wait() -> None:
    machine = Machine()
    machine.go_on(waiting=0.9, requests=0)
    assert 15 <= machine.go_on(waiting=0.9, requests=100) <= 20
    assert 75 <= machine.go_on(waiting=0.9, requests=100, seconds=5) <= 100


def test_lines_stay_slow_between_two_news_of_requests() -> None:
    machine = Machine()
    machine.go_on(waiting=0.9, requests=0)
    machine.go_on(waiting=0.9, requests=100)
    assert machine.go_on(waiting=0.9, requests=100, seconds=10, news=2) <= 200


def test_other_work_of_the_worker_does_not_stop_its_lines() -> None:
    machine = Machine()
    for _ in range(10):
        machine.spent += 0.9
        machine.go_on(waiting=0.9, requests=100)
    assert 15 <= machine.go_on(waiting=0.9, requests=100) <= 20


def test_lines_start_evenly() -> None:
    machine = Machine()
    machine.go_on(waiting=0.9, requests=0)
    machine.go_on(waiting=0.9, requests=100)
    machine.time += 0.2
    assert machine.pace.room() < 3


def test_lines_speed_up_slowly_while_no_task_waits_and_slow_down_when_one_does() -> None:
    machine = Machine()
    machine.go_on(waiting=0.9, requests=0)
    machine.go_on(waiting=0.9, requests=100)
    slow = machine.go_on(waiting=0.05, requests=100)
    machine.go_on(waiting=0.05, requests=100, seconds=3)
    assert machine.pace.is_limited
    faster = machine.go_on(waiting=0.05, requests=100)
    machine.go_on(waiting=0.9, requests=100)
    assert max(slow, machine.go_on(waiting=0.9, requests=100)) < faster
    machine.go_on(waiting=0.05, requests=100, seconds=30)
    assert not machine.pace.is_limited


def test_lines_have_no_limit_again_some_seconds_after_the_last_request() -> None:
    machine = Machine()
    machine.go_on(waiting=0.9, requests=0)
    machine.go_on(waiting=0.9, requests=100)
    machine.go_on(waiting=0.9, requests=0)
    assert machine.pace.is_limited
    machine.go_on(waiting=0.9, requests=0, seconds=3)
    assert not machine.pace.is_limited


def test_lines_begin_slowly_where_requests_came_lately() -> None:
    machine = Machine()
    machine.go_on(waiting=0, requests=100, lines=0)
    machine.go_on(waiting=0, requests=0, seconds=30, lines=0)
    assert machine.go_on(waiting=0.9, requests=0, seconds=0.1) < _MOST_LINES / 20
    machine.go_on(waiting=0.9, requests=0, seconds=1.25)
    assert not machine.pace.is_limited, "no request has come"
    machine.go_on(waiting=0, requests=0, seconds=60, lines=0)
    assert machine.go_on(waiting=0.9, requests=0, seconds=0.25) == _MOST_LINES / 4, "the last request was long ago"


def test_a_line_waits_for_the_pace_and_no_other_job_does() -> None:
    machine = Machine()
    machine.go_on(waiting=0.9, requests=0)
    machine.go_on(waiting=0.9, requests=100)
    machine.time += 0.2
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
    machine.go_on(waiting=0, requests=100, seconds=0.01)
    assert machine.pace.is_limited


def test_the_first_request_slows_no_line_if_no_task_waited_before() -> None:
    machine = Machine()
    machine.go_on(waiting=0.05, requests=0)
    machine.go_on(waiting=0.01, requests=100, seconds=0.01)
    assert not machine.pace.is_limited
