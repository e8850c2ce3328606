"""The adaptive limit, alone and as two workers share it, before a simulated upstream on a simulated clock."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.adaptive import HOLD, INITIAL, MOST, AdaptiveLimit, Limit

TRIP = 0.002
"""Seconds that a message takes between a worker and the upstream, or between a worker and Redis."""


@dataclass
class Call:
    """A call to the upstream."""

    worker: int
    started: float
    level: int
    known: bool = False
    """Whether its worker knows that it was accepted, or that it ended."""


@dataclass
class Simulation:
    """Two workers that always have more calls to make, and an upstream that refuses those beyond its capacity."""

    capacities: Sequence[int]
    seconds: float
    """How long each capacity lasts."""
    answers: tuple[float, float] = (0.1, 0.4)
    """Seconds that an answer takes, at least and at most."""
    noise: float = 0.0
    """The part of all calls that the upstream refuses for another reason."""
    pause: float = 0.0
    """Seconds for which a refusal asks to make no call."""
    demand: int = MOST
    """Calls at once that the workers have to make."""
    seed: int = 5
    workers: list[AdaptiveLimit] = field(default_factory=lambda: [AdaptiveLimit(), AdaptiveLimit()])
    calls: int = 0
    refused: list[float] = field(default_factory=list)
    """When calls were refused."""
    used: float = 0.0
    offered: float = 0.0

    def run(self) -> Simulation:
        self.now = self._at = 0.0
        self._running = 0
        self._held = [0 for _ in self.workers]
        self._paused_until = 0.0
        self._shared = self.workers[0].current
        self._dice = random.Random(self.seed)
        self._numbers = count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._look()
        end = self.seconds * len(self.capacities)
        while self._events[0][0] < end:
            self.now, _, happen = heapq.heappop(self._events)
            happen()
        return self

    @property
    def capacity(self) -> int:
        return self.capacities[min(int(self.now / self.seconds), len(self.capacities) - 1)]

    def _later(self, seconds: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._numbers), happen))

    def _look(self) -> None:
        for worker in range(len(self.workers)):
            self._ask(worker)
        self._later(0.05, self._look)

    def _ask(self, worker: int) -> None:
        limit = self.workers[worker]
        limit.step(self.now)
        if limit.current > self._shared:
            self._shared = limit.current
        else:
            limit.learn(self._shared, self.now)
        while sum(self._held) < min(limit.current.calls, self.demand) and self.now >= self._paused_until:
            self._held[worker] += 1
            self._start(Call(worker, self.now, sum(self._held)))

    def _start(self, call: Call) -> None:
        self._later(TRIP, lambda: self._arrive(call))
        self._later(self.workers[call.worker].proof_seconds, lambda: self._accept(call))

    def _arrive(self, call: Call) -> None:
        self._account()
        self.calls += 1
        if self._running >= self.capacity or self._dice.random() < self.noise:
            self.refused.append(self.now)
            self._later(TRIP, lambda: self._end(call, accepted=False))
        else:
            self._running += 1
            self._later(self._dice.uniform(*self.answers), lambda: self._answer(call))

    def _answer(self, call: Call) -> None:
        self._account()
        self._running -= 1
        self._later(TRIP, lambda: self._end(call, accepted=True))

    def _accept(self, call: Call) -> None:
        if not call.known:
            call.known = True
            share = self._held[call.worker] / sum(self._held)
            self.workers[call.worker].accepted(call.started, call.level, share=share, now=self.now)
            self._ask(call.worker)

    def _end(self, call: Call, *, accepted: bool) -> None:
        if accepted:
            self._accept(call)
        else:
            self.workers[call.worker].overloaded(call.started, call.level, now=self.now, pause=self.pause)
            self._paused_until = max(self._paused_until, self.now + self.pause)
        call.known = True
        self._held[call.worker] -= 1
        self._ask(call.worker)

    def _account(self) -> None:
        self.offered += (self.now - self._at) * min(self.capacity, self.demand)
        self.used += (self.now - self._at) * min(self._running, self.capacity)
        self._at = self.now


@pytest.mark.parametrize("seed", range(5))
def test_a_capacity_that_is_unknown_and_changes_is_used_and_few_calls_are_refused(seed: int) -> None:
    simulation = Simulation([40, 15, 60], seconds=120, answers=(0.5, 1.5), seed=seed).run()
    assert len(simulation.refused) < 0.01 * simulation.calls
    assert simulation.used > 0.96 * simulation.offered


@pytest.mark.parametrize("capacity", [1, 5, 15, 100, 300])
def test_the_limit_converges_to_any_capacity(capacity: int) -> None:
    simulation = Simulation([capacity], seconds=20).run()
    for worker in simulation.workers:
        assert capacity * 0.9 - 1 <= worker.current.calls <= capacity * 1.1 + 1


@pytest.mark.parametrize("answers", [(0.1, 0.4), (1, 3), (10, 50)])
def test_a_capacity_that_rises_is_found_by_few_refusals_however_long_answers_take(
    answers: tuple[float, float],
) -> None:
    simulation = Simulation([15, 120], seconds=100, answers=answers).run()
    first = next(at for at in simulation.refused if at > simulation.seconds)
    assert first < simulation.seconds + 65, "after the hold"
    assert len([at for at in simulation.refused if first <= at < first + 1]) <= 8, "a fifteenth of the capacity"
    assert simulation.workers[0].current.calls >= 110


@pytest.mark.parametrize("pause", [1, 5, 10, 20])
@pytest.mark.parametrize("demand", [20, 64])
def test_a_provider_that_took_no_calls_for_a_while_and_asked_for_pauses_is_soon_used_again(
    pause: float, demand: int
) -> None:
    simulation = Simulation([MOST, 0, MOST], seconds=60, demand=demand, pause=pause, answers=(1, 3)).run()
    assert simulation.used > 0.8 * simulation.offered


@pytest.mark.parametrize("capacity", [2, 15, 100])
def test_the_limit_converges_to_a_capacity_also_where_refusals_pause_the_route(capacity: int) -> None:
    simulation = Simulation([capacity], seconds=300, pause=2).run()
    assert len(simulation.refused) < 200
    assert simulation.used > 0.85 * simulation.offered


def test_refusals_at_random_leave_a_part_of_the_capacity_in_use() -> None:
    simulation = Simulation([40], seconds=60, noise=0.01).run()
    assert simulation.used > 0.4 * simulation.offered


# -- one worker --------------------------------------------------------------------------------------------------------


def cut(*, level: int = INITIAL) -> AdaptiveLimit:
    limit = AdaptiveLimit()
    assert limit.overloaded(1.0, level, now=2.0)
    return limit


def accept(limit: AdaptiveLimit, calls: int, *, began: float, level: int | None = None) -> None:
    for number in range(calls):
        now = began + 0.1 * number
        limit.accepted(now, limit.current.calls if level is None else level, share=1, now=now)


def test_a_limit_that_is_not_in_use_stays_as_it_is() -> None:
    limit = AdaptiveLimit()
    accept(limit, 1000, began=1.0, level=INITIAL // 2 - 1)
    assert limit.current.calls == INITIAL


def test_at_first_the_limit_doubles_with_each_round() -> None:
    limit = AdaptiveLimit()
    accept(limit, INITIAL, began=1.0)
    assert INITIAL * 1.5 < limit.current.calls <= INITIAL * 2


def test_a_call_proves_the_present_limit_if_it_began_after_the_last_increase_and_filled_it() -> None:
    limit = AdaptiveLimit()
    assert limit.accepted(1.0, INITIAL, share=1, now=2.0)
    while limit.step(limit._next_step_at):
        pass
    grown = limit.current.calls
    assert grown == 2 * INITIAL
    assert not limit.accepted(2.0, grown, share=1, now=10.0), "it began before the last increase"
    assert not limit.accepted(10.0, grown * 3 // 4, share=1, now=11.0), "a quarter of the limit was free"
    assert limit.accepted(10.0, grown - 1, share=1, now=11.0)


def test_a_call_counts_as_accepted_after_some_times_as_long_as_refusals_take() -> None:
    limit = AdaptiveLimit()
    assert limit.proof_seconds == 1.0, "before the first refusal"
    limit.overloaded(1.0, INITIAL, now=1.1)
    assert limit.proof_seconds == pytest.approx(0.4)
    for _ in range(100):
        limit.overloaded(1.0, INITIAL, now=1.001)
    assert limit.proof_seconds == 0.05
    limit.overloaded(1.0, INITIAL, now=500.0)  # a stream broke off after minutes
    assert limit.proof_seconds == 1.0


def test_a_call_that_began_before_a_cut_cuts_nothing() -> None:
    limit = cut()
    known = limit.current
    assert not limit.overloaded(1.5, INITIAL, now=3.0)
    assert not limit.accepted(1.5, INITIAL, share=1, now=3.0)
    assert limit.current == known


def test_a_call_that_was_alone_cuts_nothing() -> None:
    assert not AdaptiveLimit().overloaded(1.0, 1, now=2.0)


def test_refusals_in_a_row_cut_more_and_more() -> None:
    limit, parts = AdaptiveLimit(), []
    limit.learn(Limit(cuts=1, version=1, calls=1000, ceiling=1000, floor=500, rate=1, falls=0, hold=0), now=1.0)
    for number in range(5):
        before = limit.current.calls
        limit.overloaded(2.0 + number, before, now=2.5 + number)
        parts.append(limit.current.calls / before)
    assert parts == sorted(parts, reverse=True)
    assert parts[0] > 0.95
    assert parts[-1] == pytest.approx(0.5, abs=0.01)


def test_after_a_cut_the_limit_returns_to_its_ceiling_and_stays_for_a_while() -> None:
    limit = cut()
    accept(limit, HOLD - 1, began=3.0)
    assert limit.current.calls == limit.current.ceiling == INITIAL - 1
    accept(limit, 10, began=30.0)
    assert limit.current.calls >= INITIAL, "then it tries one more"


def test_where_a_refusal_pauses_the_route_the_limit_stays_at_its_ceiling_for_longer() -> None:
    limit = AdaptiveLimit()
    limit.overloaded(1.0, INITIAL, now=2.0, pause=1.0)
    accept(limit, 450, began=3.0)
    assert limit.current.calls == INITIAL - 1, "within 50 times the pause"
    accept(limit, 50, began=52.0)
    assert limit.current.calls >= INITIAL


def test_a_cut_is_known_for_a_while() -> None:
    assert not AdaptiveLimit().known(1.0)
    limit = cut()
    assert limit.known(100.0)
    assert not limit.known(10_000.0)


def test_slowness_cuts_and_leaves_some_calls_and_those_with_waiting_clients() -> None:
    limit = AdaptiveLimit()
    limit.learn(Limit(cuts=0, version=1, calls=400, ceiling=0, floor=200, rate=1, falls=0, hold=0), now=1.0)
    assert limit.slowed(2.0, 400, now=3.0)
    assert limit.current.calls == 300
    assert not limit.slowed(2.5, 300, now=4.0), "the call began before the cut"
    assert not limit.slowed(5.0, 100, now=6.0), "the limit is not in use"
    for number in range(20):
        limit.slowed(10.0 + number, limit.current.calls, now=10.5 + number)
    assert limit.current.calls == INITIAL
    assert not limit.known(40.0)


# -- invariants --------------------------------------------------------------------------------------------------------

EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["step", "accepted", "overloaded", "slowed", "learn"]),
        st.integers(0, 1),  # the worker
        st.floats(0, 2),  # seconds since the last event
        st.floats(0, 3),  # seconds since the call began
        st.integers(1, 2 * MOST),
    ),
    max_size=200,
)


@given(events=EVENTS)
def test_limits_stay_within_bounds_are_cut_once_in_a_round_trip_and_agree(
    events: list[tuple[str, int, float, float, int]],
) -> None:
    workers, now, cut_at = [AdaptiveLimit(), AdaptiveLimit()], 10.0, [0.0, 0.0]
    for kind, which, passed, since, level in events:
        worker, now = workers[which], now + passed
        before = worker.current
        match kind:
            case "accepted":
                changed = worker.accepted(now - since, min(level, MOST), share=0.5, now=now)
                assert worker.current.calls >= before.calls
            case "step":
                changed = worker.step(now)
                assert worker.current.calls >= before.calls
            case "overloaded":
                changed = worker.overloaded(now - since, level, now=now)
                assert not (changed and now - since < cut_at[which])
                assert worker.current.calls <= before.calls
            case "slowed":
                changed = worker.slowed(now - since, level, now=now)
                assert worker.current.calls >= min(before.calls, INITIAL)
            case _:
                changed = worker.learn(workers[1 - which].current, now)
        assert changed == (worker.current != before)
        assert not changed or worker.current > before
        if worker.current.cuts > before.cuts:
            cut_at[which] = now
        assert 1 <= worker.current.calls <= MOST
        assert worker.current.floor <= worker.current.calls
        assert worker.current.ceiling == 0 or worker.current.ceiling >= worker.current.calls
    for which in (0, 1):
        workers[which].learn(workers[1 - which].current, now)
    assert workers[0].current == workers[1].current
    assert Limit.unpack(workers[0].current.pack()) == workers[0].current
