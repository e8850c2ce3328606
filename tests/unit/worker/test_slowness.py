from __future__ import annotations

import random

from worker.slowness import Slowness


def shows(slowness: Slowness, times: int, *, usual: float) -> int:
    """Return how often a queue shows within so many times, of which one in six takes e times as long as `usual`."""
    dice = random.Random(11)
    return sum(slowness.add(usual * dice.lognormvariate(0, 1)) for _ in range(times))


def test_times_that_differ_show_no_queue() -> None:
    assert shows(Slowness(), 20_000, usual=1) == 0


def test_a_queue_delays_even_the_shortest() -> None:
    slowness = Slowness()
    shows(slowness, 200, usual=1)
    dice = random.Random(12)
    assert sum(slowness.add(2 + dice.lognormvariate(0, 1)) for _ in range(200)) > 0


def test_short_times_may_become_a_little_longer() -> None:
    slowness = Slowness()
    shows(slowness, 200, usual=0.01)
    assert shows(slowness, 200, usual=0.1) == 0


def test_a_provider_that_stays_slower_counts_as_fast_in_time() -> None:
    slowness = Slowness()
    shows(slowness, 200, usual=1)
    assert shows(slowness, 2000, usual=20) > 0
    assert shows(slowness, 1000, usual=20) == 0
