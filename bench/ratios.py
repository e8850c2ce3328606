"""Ratios of two systems that were measured in turns, and how far chance may have moved them.

The figures of one round are a pair: the machine was about as fast for both. The interval is Student's, at 95 %, over
the logarithms of the pairs' ratios, so it is exact only if those are spread normally. It needs two rounds, is wide with
three, and halves about when the rounds become four times as many. A bootstrap of so few pairs would be too narrow.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

# The 97.5th percentile of Student's t distribution with 1, 2, … 30 degrees of freedom; with more it hardly falls.
_STUDENT = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


def student(degrees: int) -> float:
    """Return how many standard errors an interval at 95 % reaches to each side, by the degrees of freedom."""
    return _STUDENT[min(degrees, len(_STUDENT)) - 1]


@dataclass(frozen=True, slots=True)
class Ratio:
    """The geometric mean of new / old over the rounds, and its interval; one round alone leaves that unbounded."""

    mean: float
    low: float
    high: float


def ratio(old: Sequence[float], new: Sequence[float]) -> Ratio | None:
    """Return the ratio of pairs of figures, or None without a pair whose figures are both above zero."""
    if not old or not new:
        return None
    logs = [math.log(after / before) for before, after in zip(old, new, strict=True) if before > 0 and after > 0]
    if not logs:
        return None
    mean = statistics.fmean(logs)
    if len(logs) == 1:
        return Ratio(math.exp(mean), 0.0, math.inf)
    error = statistics.stdev(logs) / math.sqrt(len(logs))
    margin = student(len(logs) - 1) * error
    return Ratio(math.exp(mean), math.exp(mean - margin), math.exp(mean + margin))


@dataclass(frozen=True, slots=True)
class Line:
    """One figure of one row, of both systems by round. Without figures the older system cannot serve the row."""

    row: str
    figure: str
    old: Sequence[float]
    new: Sequence[float]
    digits: int = 1
    guarded: bool = False
    """Whether `--most` holds for it."""

    @property
    def ratio(self) -> Ratio | None:
        """The ratio new / old."""
        return ratio(self.old, self.new)

    def exceeds(self, most: float) -> bool:
        """Return whether the line is guarded, and its whole interval is above `most`."""
        found = self.ratio if self.guarded else None
        return found is not None and found.low > most


def table(lines: Sequence[Line]) -> list[str]:
    """Return the table in Markdown; a row is named once, and `n/a` is written where the old system has no figures."""
    rendered = ["| | | old | new | new / old | 95 % interval |", "| --- | --- | ---: | ---: | ---: | ---: |"]
    named = ""
    for line in lines:
        found = line.ratio
        cells = [
            "" if line.row == named else line.row,
            line.figure,
            _median(line.old, line.digits),
            _median(line.new, line.digits),
            "" if found is None else f"{found.mean:.3f}",
            "" if found is None else "one round" if found.high == math.inf else f"{found.low:.3f} … {found.high:.3f}",
        ]
        named = line.row
        rendered.append(f"| {' | '.join(cells)} |")
    return rendered


def _median(values: Sequence[float], digits: int) -> str:
    return f"{statistics.median(values):,.{digits}f}" if values else "n/a"
