"""How long answers took, counted in steps of a fourth of an octave: any sum of counts has percentiles.

Step `n` is for times of about 2^(n/4) ms. A percentile is the middle of its step, so it is right to 9 %.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from functools import cache
from itertools import accumulate

# Steps in which a time doubles.
_STEPS_AN_OCTAVE = 4
LAST_STEP = 120
"""2^30 ms, or twelve days: longer than any job has."""

PERCENTILES = (50, 90, 95, 99)


def step_of(milliseconds: str) -> str:
    """Return the SQL of the step of a column's milliseconds."""
    # In doubles, because Postgres takes a hundred times as long for the logarithm of a numeric. Their error is smaller
    # than the distance of any whole number of milliseconds from the middle between two steps.
    octaves = f"ln(greatest({milliseconds}, 1)::float8) / ln(2::float8)"
    return f"least({LAST_STEP}, round({_STEPS_AN_OCTAVE} * {octaves}))::smallint"


def percentiles(counts: Iterable[tuple[int, int]]) -> dict[str, float | None]:
    """Return the percentiles p50, p90, p95 and p99, in seconds, of pairs of a step and how many fell into it.

    They are None where nothing did.
    """
    steps = sorted(counts)
    seen = list(accumulate(count for _, count in steps))
    if not seen or not seen[-1]:
        return {f"p{percent}": None for percent in PERCENTILES}
    # The first step up to which there are as many, rounded up.
    at = {percent: steps[bisect_left(seen, -(-seen[-1] * percent // 100))][0] for percent in PERCENTILES}
    return {f"p{percent}": _seconds(step) for percent, step in at.items()}


@cache
def _seconds(step: int) -> float:
    """Return the middle of a step, as precise as it is."""
    return float(f"{2 ** (step / _STEPS_AN_OCTAVE) / 1000:.3g}")
