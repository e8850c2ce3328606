"""Headrace beside an earlier commit of itself: `python -m bench --against REVISION`.

Both run at once on stores of their own, and take the load in turns, so that a slow minute of the machine hits both.
Each round starts them anew, and the order in which they start and the order of their turns alternate. The load, the
upstream and the counting are this commit's for both. A row that the earlier commit cannot serve, since it lacks a
format, has n/a in its place.
"""

from __future__ import annotations

import math
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from typing import ClassVar

import psutil

from bench.batches import run_batch
from bench.checkout import Checkout, build, current
from bench.load import request_body
from bench.ratios import Line, table
from bench.report import share
from bench.scenarios import ALL_SCENARIOS, CLIENT_SCENARIOS, DURABLE, SCENARIOS, measure, measure_idle
from bench.systems import Cpu, Headrace, Upstream, start_order, turns

DEFAULT_ROWS = (*(scenario.name for scenario in (*SCENARIOS, *CLIENT_SCENARIOS)), "idle")
DEFAULT_ROUNDS = 6
QUICK_ROUNDS = 2
"""Rounds of a quick run: the fewest that have an interval."""

_OWN, _WHOLE = "CPU", "CPU, stores included"
_IDLE_SECONDS = 10
_BATCH_LINES = 20_000
# The first batch of a process makes it load modules.
_WARM_LINES = 200

Figures = dict[str, float]
"""The figures of one row, one system and one round, by their names, units included."""


class EarlierHeadrace(Headrace):
    """`headrace dev` of an earlier commit."""

    name = "earlier"


class FirstHeadrace(EarlierHeadrace):
    """`headrace dev` of a commit that knows no provider's format but OpenAI's."""

    kinds: ClassVar = {"fake": "openai"}


@dataclass(slots=True)
class Comparison:
    """The figures of both commits, and what went wrong."""

    old: Checkout
    new: Checkout
    most: float | None
    quick: bool
    load: float
    """Processes that ran or waited for a core, on average over the minute before the run."""
    figures: dict[tuple[str, str], dict[int, Figures]] = field(default_factory=dict)
    """By row and system, and by round."""
    digits: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def add(self, row: str, system: Headrace, number: int, figures: Figures, digits: int) -> None:
        """Take the figures of one measurement."""
        self.figures.setdefault((row, system.name), {})[number] = figures
        self.digits[row] = digits

    def lines(self) -> list[Line]:
        """Return a line for each figure. Rounds in which only one system was measured do not count."""
        lines = []
        for row, digits in self.digits.items():
            new = self.figures.get((row, Headrace.name), {})
            old = self.figures.get((row, EarlierHeadrace.name), {})
            rounds = [number for number in new if number in old or not old]
            for name in dict.fromkeys(name for figures in (*new.values(), *old.values()) for name in figures):
                before, after = ([of[n].get(name, 0.0) for n in rounds if n in of] for of in (old, new))
                lines.append(Line(row, name, before, after, digits, guarded=name.startswith(_OWN)))
        return lines

    @property
    def slower(self) -> list[str]:
        """The lines of CPU whose whole interval is above `most`."""
        found = [line for line in self.lines() if self.most is not None and line.exceeds(self.most)]
        return [f"{line.row}, {line.figure}: the whole interval is above {self.most:g}" for line in found]

    def markdown(self) -> str:
        """Return the table."""
        noise = ", short ones: expect noise" if self.quick else ""
        rounds = max((len(rounds) for rounds in self.figures.values()), default=0)
        lines = [
            f"New is {self.new.name}, old is {self.old.name}: medians of {rounds} round(s) in turns{noise}.",
            f"The load before was {self.load:.1f} on {psutil.cpu_count()} cores: one percent shows on a quiet machine.",
            "The ratio is the geometric mean of the rounds' ratios, with Student's interval over their logarithms.",
            "",
            *table(self.lines()),
        ]
        problems = [*self.failures, *self.slower]
        return "\n".join([*lines, *(("", *(f"* {problem}" for problem in problems)) if problems else ())]) + "\n"

    def json(self) -> dict[str, object]:
        """Return the lines with the figures of all rounds, as JSON's types."""
        lines = []
        for line in self.lines():
            # JSON has no infinity, which is the upper end of one round's interval.
            found = asdict(line.ratio) if line.ratio else {}
            ratio = {end: value if math.isfinite(value) else None for end, value in found.items()}
            lines.append(asdict(line) | {"ratio": ratio or None})
        return {
            "old": self.old.name,
            "new": self.new.name,
            "quick": self.quick,
            "load": self.load,
            "lines": lines,
            "failures": [*self.failures, *self.slower],
        }


def compare(
    revision: str, *, rows: Sequence[str] | None, rounds: int | None, quick: bool, most: float | None
) -> Comparison:
    """Build a revision, and measure it and the working tree in turns.

    Raises:
        RuntimeError: The revision does not build, or one of both does not start.
    """
    wanted = rows or DEFAULT_ROWS
    rounds = rounds or (QUICK_ROUNDS if quick else DEFAULT_ROUNDS)
    load = psutil.getloadavg()[0]  # before the build adds its own
    found = Comparison(build(revision), current(), most, quick, load)
    with Upstream() as upstream:
        for number in range(rounds):
            with ExitStack() as stack:
                started = [_started(stack, upstream, earlier) for earlier in start_order((found.old, None), number)]
                for row in wanted:
                    for system in turns([system for system in started if _serves(system, row)], number):
                        title = f"round {number + 1} of {rounds}, {row}, {system.name}"
                        with _measuring(title, system, found.failures):
                            figures, digits, wrong = _measure(row, system, number, quick)
                            found.add(row, system, number, figures, digits)
                            found.failures += [f"{title}: {problem}" for problem in wrong]
    return found


def _started(stack: ExitStack, upstream: Upstream, earlier: Checkout | None) -> Headrace:
    """Start an earlier commit, or without one the working tree."""
    if earlier is None:
        return stack.enter_context(Headrace(upstream))
    try:
        return stack.enter_context(EarlierHeadrace(upstream, earlier))
    except RuntimeError as error:
        print(f"{error}\ntrying again with providers of OpenAI's format alone", file=sys.stderr, flush=True)
        return stack.enter_context(FirstHeadrace(upstream, earlier))


@contextmanager
def _measuring(title: str, system: Headrace, failures: list[str]) -> Iterator[None]:
    # One failed measurement does not discard the others.
    print(title, file=sys.stderr, flush=True)
    try:
        yield
    except (OSError, RuntimeError) as error:
        failures.append(f"{title}: {type(error).__name__}")
        print(f"{error}\n{system.tree.log_tail() if system.tree else ''}", file=sys.stderr, flush=True)


_SCENARIOS = {scenario.name: scenario for scenario in (*ALL_SCENARIOS, DURABLE)}


def _serves(system: Headrace, row: str) -> bool:
    """Return whether a system has the endpoint and the model of a row."""
    if row == "idle":
        return True
    scenario = _SCENARIOS.get(row)
    path, body = "/api/v1/batches", None
    if scenario is not None:
        path = scenario.plan(system, quick=True).path
        body = request_body(scenario.client, scenario.warmup_model, stream=scenario.stream)
    request = urllib.request.Request(
        f"http://127.0.0.1:{system.port}{path}",
        data=body,
        headers={"authorization": f"Bearer {system.key}", "content-type": "application/json"},
    )
    try:
        urllib.request.urlopen(request, timeout=60).read()
    except urllib.error.HTTPError as error:
        if error.code in {404, 405}:
            return False
        raise RuntimeError(f"{system.name} answers {error.code} to {path}: {error.read()[:500]!r}") from None
    return True


def _measure(row: str, system: Headrace, number: int, quick: bool) -> tuple[Figures, int, list[str]]:
    """Measure one row, and return its figures, their digits, and what was wrong with the answers."""
    if row == "batches":
        return _measure_batch(system, quick)
    if row == "idle":
        measurement = measure_idle(system, number, _IDLE_SECONDS)
    else:
        measurement = measure(_SCENARIOS[row], system, number, quick=quick)
    per, unit, digits = share(row)
    spent = measurement.cpu
    figures = {
        f"{_OWN}, {unit}": per(measurement.own, measurement),
        f"{_WHOLE}, {unit}": per(measurement.whole, measurement),
        **{part: per(seconds, measurement) for part, seconds in _parts(spent)},
    }
    outcome = measurement.outcome
    if outcome is None:
        return figures, digits, []
    figures |= (
        {"first delta p50, ms": outcome.first_p50} if _SCENARIOS[row].stream else {"p50, ms": outcome.latency_p50}
    )
    wrong = [f"{outcome.correct} of {outcome.asked} right", *outcome.errors]
    return figures, digits, wrong if outcome.correct < outcome.asked else []


def _measure_batch(system: Headrace, quick: bool) -> tuple[Figures, int, list[str]]:
    run_batch(system, _WARM_LINES)
    run = run_batch(system, _BATCH_LINES // (5 if quick else 1))
    own, stores = (1e6 * sum(part.values()) / run.lines for part in (run.cpu.own, run.cpu.stores))
    figures = {
        f"{_OWN}, µs a line": own,
        f"{_WHOLE}, µs a line": own + stores,
        **{part: 1e6 * seconds / run.lines for part, seconds in _parts(run.cpu)},
        "seconds": run.total,
    }
    return figures, 1, [f"{run.answered} of {run.lines} lines answered"] if run.answered < run.lines else []


def _parts(spent: Cpu) -> list[tuple[str, float]]:
    """Return the CPU seconds of Headrace's own parts, and then of its stores."""
    return [*sorted(spent.own.items()), *sorted(spent.stores.items())]
