"""How long answers took, counted in steps of a fourth of an octave, so that percentiles of any sum can be told.

Step `n` is for times of about 2^(n/4) ms. A percentile is the middle of its step, so it is right to 9 %.
"""

from __future__ import annotations

from collections.abc import Iterable

_STEPS_AN_OCTAVE = 4
LAST_STEP = 120
"""2^30 ms, or twelve days: longer than any job has."""

PERCENTILES = (50, 90, 95, 99)


def step_of(milliseconds: str) -> str:
    """Return the SQL of the step of a column's milliseconds."""
    return f"least({LAST_STEP}, round({_STEPS_AN_OCTAVE} * log(2, greatest({milliseconds}, 1))))::smallint"


def percentiles(counts: Iterable[tuple[int, int]]) -> dict[str, float | None]:
    """Return the percentiles p50, p90, p95 and p99, in seconds, of pairs of a step and how many fell into it.

    They are None where nothing did.
    """
    steps = sorted(counts)
    total = sum(count for _, count in steps)
    found: dict[str, float | None] = {}
    for percent in PERCENTILES:
        seen, at = 0, None
        for step, count in steps:
            seen += count
            if count and seen * 100 >= total * percent:
                at = step
                break
        found[f"p{percent}"] = None if at is None else float(f"{2 ** (at / _STEPS_AN_OCTAVE) / 1000:.3g}")
    return found
