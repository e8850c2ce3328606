"""The report: from measurements to the table that the README quotes."""

from __future__ import annotations

import math
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import psutil

from bench.batches import Batches
from bench.scenarios import ALL_SCENARIOS, CLIENTS, FORMATS, SCENARIOS, Measurement
from bench.subscribers import Subscribers

Value = Callable[[Measurement], float]


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table: the value of a measurement, its unit, and Headrace's goal."""

    label: str
    value: Value
    unit: str
    digits: int = 1
    goal: float | None = None
    """The share of LiteLLM's figure that Headrace's may be at most. Shares hold on every machine, figures do not."""
    limit: float | None = None
    """The figure that Headrace's may be at most, in `unit`, where a share of LiteLLM's would say nothing."""
    over_direct: bool = False
    """The direct figure of the same round is subtracted."""


def _per_answer(seconds: float, measurement: Measurement) -> float:
    return 1000 * seconds / max(1, measurement.outcome.correct) if measurement.outcome else 0.0


def _per_delta(seconds: float, measurement: Measurement) -> float:
    return 1e6 * seconds / max(1, measurement.outcome.chunks) if measurement.outcome else 0.0


def _outcome(name: str) -> Value:
    def value(measurement: Measurement) -> float:
        return float(getattr(measurement.outcome, name))

    return value


def _rate(name: str) -> Value:
    def value(measurement: Measurement) -> float:
        outcome = measurement.outcome
        return float(getattr(outcome, name)) / outcome.seconds if outcome else 0.0

    return value


def _job_rows(goal: float, with_stores: float | None = None) -> tuple[Row, Row]:
    return (
        Row("CPU a job", lambda m: _per_answer(m.own, m), "ms", 2, goal),
        Row("CPU a job, stores included", lambda m: _per_answer(m.whole, m), "ms", 2, with_stores),
    )


def _delta_rows(goal: float) -> tuple[Row, Row]:
    return (
        Row("CPU a delta", lambda m: _per_delta(m.own, m), "µs", 1, goal),
        Row("CPU a delta, stores included", lambda m: _per_delta(m.whole, m), "µs", 1),
    )


ROWS: dict[str, tuple[Row, ...]] = {
    "plain-1": (
        *_job_rows(0.25, 0.40),
        Row("latency p50", _outcome("latency_p50"), "ms", 2),
        Row("latency p50, added", _outcome("latency_p50"), "ms", 2, 0.50, over_direct=True),
        Row("latency p99", _outcome("latency_p99"), "ms", 2),
    ),
    "plain-64": (
        *_job_rows(0.12),
        Row("requests", _rate("correct"), "/s", 0),
        Row("latency p50", _outcome("latency_p50"), "ms"),
        Row("latency p99", _outcome("latency_p99"), "ms"),
    ),
    "burst": (
        *_delta_rows(0.035),
        Row("deltas", _rate("chunks"), "/s", 0),
        Row("first delta p50", _outcome("first_p50"), "ms"),
    ),
    "paced": (
        *_delta_rows(0.11),
        Row("deltas", _rate("chunks"), "/s", 0),
        Row("first delta p50", _outcome("first_p50"), "ms"),
        Row("whole stream p50", _outcome("latency_p50"), "ms", 0),
    ),
    "idle": (
        Row("CPU a second", lambda m: 1000 * m.own / m.seconds, "ms", limit=5.0),
        Row("CPU a second, stores included", lambda m: 1000 * m.whole / m.seconds, "ms"),
    ),
}

TITLES = {scenario.name: scenario.title for scenario in ALL_SCENARIOS} | {"idle": "nothing to do"}


@dataclass(frozen=True, slots=True)
class Report:
    """The measurements of one run, and the machine."""

    versions: dict[str, str]
    measurements: list[Measurement]
    subscribers: Subscribers | None
    batches: Batches | None
    broken: list[str]
    """The measurements that failed, and why."""
    rounds: int
    quick: bool

    def median(self, scenario: str, system: str, row: Row) -> float | None:
        """Return the median over the rounds, or None if this was not measured."""
        found = [m for m in self.measurements if (m.scenario, m.system) == (scenario, system)]
        direct = {m.round: m for m in self.measurements if (m.scenario, m.system) == (scenario, "direct")}
        if row.over_direct:
            values = [row.value(m) - row.value(direct[m.round]) for m in found if m.round in direct]
        else:
            values = [row.value(m) for m in found]
        return statistics.median(values) if values else None

    @property
    def failures(self) -> list[str]:
        """The measurements that failed, and those with a wrong, broken or missing answer."""
        wrong = [
            f"{TITLES[m.scenario]}, {m.system}, round {m.round + 1}: {m.outcome.correct} of {m.outcome.asked} right"
            for m in self.measurements
            if m.outcome and m.outcome.correct < m.outcome.asked
        ]
        idle = self.subscribers
        if idle and idle.reached < idle.asked:
            wrong.append(f"{idle.reached} of {idle.asked} subscribers reached")
        if idle and idle.deaf:
            wrong.append(idle.deaf)
        if self.batches:
            wrong += self.batches.failures
        return [*self.broken, *wrong]

    @property
    def errors(self) -> list[str]:
        """Return the first few wrong answers of each measurement."""
        return [error for m in self.measurements if m.outcome for error in m.outcome.errors]

    def markdown(self) -> str:
        """Return the report as a page of Markdown."""
        noise = " (a quick run: expect noise)" if self.quick else ""
        lines = [
            "# Measurements",
            "",
            "Written by `make bench`: every system in the same run, on the same machine, over loopback, in front of",
            f"the same fake upstream. Medians of {self.rounds} round(s), in which the systems take turns{noise}.",
            "",
            f"* {datetime.now(UTC):%Y-%m-%d}, {machine()}",
            *(f"* {version}" for version in self.versions.values() if version),
            "",
            "CPU is that of the whole process tree, idling included. Headrace's own processes are its API, workers,",
            "scheduler and supervisor; its stores, Postgres and Valkey, are counted in the lines that say so.",
            "LiteLLM's proxy has no store here: it keeps nothing. A delta's figure holds its share of what the request",
            "cost. A goal is the share of LiteLLM's figure that Headrace's may be at most; idling has a limit in ms.",
            "",
            *self._comparison(),
        ]
        if parts := self._parts():
            lines += ["", "## Where Headrace's CPU goes", "", *parts]
        if formats := self._formats():
            lines += ["", "## CPU a delta by wire format", "", *formats]
        if clients := self._clients():
            lines += ["", "## CPU by the client's format", "", *clients]
        if self.subscribers:
            lines += ["", "## Idle subscribers", "", *self.subscribers.markdown()]
        if self.batches:
            lines += ["", "## Batches", "", *self.batches.markdown()]
        if self.failures:
            lines += ["", "## What went wrong", "", *(f"* {failure}" for failure in self.failures)]
        return "\n".join(lines) + "\n"

    def json(self) -> dict[str, object]:
        """Return the report, raw measurements included, as JSON's types."""
        table: dict[str, dict[str, dict[str, float | None]]] = {}
        for scenario, rows in ROWS.items():
            for row in rows:
                values = {system: self._cell_value(scenario, system, row) for system in self.versions}
                goals = {"goal": row.goal, "limit": row.limit}
                table.setdefault(scenario, {})[f"{row.label}, {row.unit}"] = values | goals
        return {
            "date": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
            "machine": machine(),
            "versions": self.versions,
            "quick": self.quick,
            "rounds": self.rounds,
            "medians": table,
            "subscribers": self.subscribers.json() if self.subscribers else None,
            "batches": self.batches.json() if self.batches else None,
            "failures": self.failures,
            "measurements": [measurement.json() for measurement in self.measurements],
        }

    def _cell_value(self, scenario: str, system: str, row: Row) -> float | None:
        # Without a system, CPU time and added latency would be zeros that look measured.
        if system == "direct" and (row.over_direct or row.label.startswith("CPU")):
            return None
        return self.median(scenario, system, row)

    def _comparison(self) -> Sequence[str]:
        header = "| | | direct | LiteLLM | Headrace | Headrace / LiteLLM | goal |"
        lines = [header, "| --- | --- | ---: | ---: | ---: | ---: | ---: |"]
        for scenario, rows in ROWS.items():
            title = TITLES[scenario]
            for row in rows:
                values = {name: self._cell_value(scenario, name, row) for name in ("direct", "litellm", "headrace")}
                if all(value is None for value in values.values()):
                    continue
                cells = [_number(value, row) for value in values.values()]
                ratio = _ratio(values["headrace"], values["litellm"])
                goal = _goal(row, values["headrace"], values["litellm"])
                lines.append(f"| {title} | {row.label}, {row.unit} | {' | '.join(cells)} | {ratio} | {goal} |")
                title = ""
        return lines

    def _formats(self) -> Sequence[str]:
        row = Row("CPU a delta", lambda m: _per_delta(m.own, m), "µs")
        lines = ["| Headrace, µs | OpenAI | Anthropic | Gemini | Anthropic / OpenAI | Gemini / OpenAI | goal |"]
        lines.append("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
        for scenario in SCENARIOS:
            names = (scenario.name, *(f"{scenario.name}-{name}" for name in FORMATS))
            values = [self.median(name, "headrace", row) for name in names]
            if not scenario.stream or any(value is None for value in values):
                continue
            cells = [_number(value, row) for value in values] + [_ratio(value, values[0]) for value in values[1:]]
            lines.append(f"| {scenario.title} | {' | '.join(cells)} | ≤ 2 |")
        return lines if len(lines) > 2 else []

    def _clients(self) -> Sequence[str]:
        lines = [
            "| Headrace | | Chat | Responses | Responses / Chat | goal |",
            "| --- | --- | ---: | ---: | ---: | ---: |",
        ]
        for scenario in SCENARIOS:
            names = (scenario.name, *(f"{scenario.name}-{name}" for name in CLIENTS))
            title = scenario.title
            for row in ROWS[scenario.name][:2]:
                values = [self.median(name, "headrace", row) for name in names]
                if any(value is None for value in values):
                    continue
                cells = [_number(value, row) for value in values]
                cells += [f"{self._paired(name, scenario.name, row):.2f}" for name in names[1:]]
                lines.append(f"| {title} | {row.label}, {row.unit} | {' | '.join(cells)} | ≤ 1.15 |")
                title = ""
        return lines if len(lines) > 2 else []

    def _paired(self, scenario: str, other: str, row: Row) -> float:
        """Return how many times what `other` costs `scenario` costs: the median over the rounds that measured both."""
        values: dict[str, dict[int, float]] = {scenario: {}, other: {}}
        for m in self.measurements:
            if m.system == "headrace" and m.scenario in values:
                values[m.scenario][m.round] = row.value(m)
        ours, theirs = values[scenario], values[other]
        shares = [ours[number] / theirs[number] for number in ours.keys() & theirs.keys() if theirs[number]]
        return statistics.median(shares) if shares else math.nan

    def _parts(self) -> Sequence[str]:
        names: list[str] = []
        for m in self.measurements:
            if m.system == "headrace":
                names += [part for part in (*m.cpu.own, *m.cpu.stores) if part not in names]
        if not names:
            return []
        lines = [f"| | unit | {' | '.join(names)} |", f"| --- | --- |{' ---: |' * len(names)}"]
        for scenario, title in TITLES.items():
            found = [m for m in self.measurements if (m.scenario, m.system) == (scenario, "headrace")]
            if not found:
                continue
            per, unit, digits = share(scenario)
            cells = [
                f"{statistics.median(per((m.cpu.own | m.cpu.stores).get(name, 0.0), m) for m in found):.{digits}f}"
                for name in names
            ]
            lines.append(f"| {title} | {unit} | {' | '.join(cells)} |")
        return lines


def machine() -> str:
    """Return a description of the machine that does not identify it."""
    memory = psutil.virtual_memory().total / 2**30
    return (
        f"{psutil.cpu_count()} cores, {memory:.0f} GiB, {platform.system()} {platform.machine()}, "
        f"Python {platform.python_version()}"
    )


def share(scenario: str) -> tuple[Callable[[float, Measurement], float], str, int]:
    """Return how CPU seconds of a scenario become those of one unit of its work, the unit, and digits to print."""
    if scenario == "idle":
        return lambda seconds, m: 1000 * seconds / m.seconds, "ms a second", 1
    if scenario.startswith(("plain", "durable")):
        return _per_answer, "ms a job", 2
    return _per_delta, "µs a delta", 1


def _number(value: float | None, row: Row) -> str:
    return "" if value is None else f"{value:,.{row.digits}f}"


def _ratio(ours: float | None, theirs: float | None) -> str:
    if ours is None or not theirs:
        return ""
    return f"{ours / theirs:.{2 if ours >= theirs / 10 else 3}f}"


def _goal(row: Row, ours: float | None, theirs: float | None) -> str:
    """Return the row's goal, marked by whether it is met; without a mark if it cannot be told."""
    if row.limit is not None:
        return f"≤ {row.limit:g} {row.unit}{_mark(ours, row.limit)}"
    if row.goal is not None:
        return f"≤ {row.goal:g}{_mark(ours, row.goal * theirs if theirs else None)}"
    return ""


def _mark(value: float | None, most: float | None) -> str:
    if value is None or most is None:
        return ""
    return " ✓" if value <= most else " ✗"
