"""The tables of `bench.shapes`, and their place in the docs.

A figure is the median of the rounds, with the lowest and the highest round. A ratio is the geometric mean of the
rounds' ratios, with the interval of `bench.ratios`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import psutil

from bench.batches import Run
from bench.checkout import ROOT
from bench.ratios import ratio
from bench.report import machine
from bench.scenarios import DURABLE, Measurement
from bench.shapes import ADDED, SATURATION, Shapes

PAGE = ROOT / "docs" / "explanation" / "performance.md"

_BEGIN, _END = "<!-- make bench writes from here -->\n", "<!-- to here -->\n"
_TITLES = {"direct": "direct", "litellm": "LiteLLM", "portkey": "Portkey", "headrace": "Headrace"}

Value = Callable[[Measurement], float]


def replaced(page: str, tables: str) -> str:
    """Return the page with new tables between its marks; raise ValueError if it has no marks."""
    before, begin, rest = page.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise ValueError(f"the page has no {_BEGIN.strip()!r} and {_END.strip()!r} for the tables")
    return f"{before}{begin}\n{tables}\n{end}{after}"


def write(shapes: Shapes, page: Path = PAGE) -> None:
    """Put the tables into the docs."""
    page.write_text(replaced(page.read_text(), tables(shapes)))


def tables(shapes: Shapes) -> str:
    """Return the conditions and the tables in Markdown."""
    noise = ", short ones: expect noise" if shapes.quick else ""
    lines = [
        f"* {datetime.now(UTC):%Y-%m-%d}, {machine()}",
        *(f"* {version}" for version in shapes.versions.values() if version),
        *(f"* Not measured: {name}: {reason}" for name, reason in shapes.missing.items()),
        f"* {shapes.rounds} round(s) in turns{noise}",
        f"* The load before the run was {shapes.load:.1f} on {psutil.cpu_count()} cores",
        "",
        "### Added latency",
        "",
        *_added(shapes),
        "",
        "### Requests at saturation",
        "",
        *_saturation(shapes),
        "",
        "### Durable jobs, and lines of batches",
        "",
        *_durable(shapes),
    ]
    if shapes.failures:
        lines += ["", "### What went wrong", "", *(f"* {failure}" for failure in shapes.failures)]
    return "\n".join(lines) + "\n"


def _added(shapes: Shapes) -> Iterable[str]:
    gateways, others = _names(shapes)
    titles = ["direct call", *(f"added by {_TITLES[name]}" for name in gateways)]
    yield from _head(["at a time", "ms"], [*titles, *(f"Headrace / {_TITLES[name]}" for name in others)])
    for scenario in ADDED:
        title = str(scenario.concurrency)
        direct = shapes.of(scenario, "direct")
        for figure in ("p50", "p95", "p99"):
            value = _latency(figure)
            added = {
                name: {n: value(m) - value(direct[n]) for n, m in shapes.of(scenario, name).items() if n in direct}
                for name in gateways
            }
            cells = [spread([value(m) for m in direct.values()], 1)]
            cells += [spread(list(added[name].values()), 1) for name in gateways]
            cells += [compared(added[name], added["headrace"]) for name in others]
            yield _line(title, figure, *cells)
            title = ""


def _saturation(shapes: Shapes) -> Iterable[str]:
    gateways, others = _names(shapes)
    yield from _head([""], [*(_TITLES[name] for name in gateways), *(f"Headrace / {_TITLES[name]}" for name in others)])
    rows: list[tuple[str, Value, int]] = [
        ("requests a second", _rate, 0),
        ("requests a second and core", lambda m: _correct(m) / m.own, 0),
        ("… stores included", lambda m: _correct(m) / m.whole, 0),
        ("cores in use, stores included", _cores, 2),
    ]
    for label, value, digits in rows:
        values = {name: {n: value(m) for n, m in shapes.of(SATURATION, name).items()} for name in gateways}
        cells = [spread(list(values[name].values()), digits) for name in gateways]
        yield _line(label, *cells, *(compared(values[name], values["headrace"]) for name in others))


def _durable(shapes: Shapes) -> Iterable[str]:
    jobs = list(shapes.of(DURABLE, "headrace").values())
    yield from _head(["Headrace"], ["a second", "a second and core", "… stores included"])
    yield _line(
        "durable jobs, submitted until ended",
        spread([_rate(m) for m in jobs], 0),
        spread([_correct(m) / m.own for m in jobs], 0),
        spread([_correct(m) / m.whole for m in jobs], 0),
    )
    yield _line(
        "lines of a batch, upload to output",
        spread([run.rate for run in shapes.batches], 0),
        spread([run.answered / _spent(run, stores=False) for run in shapes.batches], 0),
        spread([run.answered / _spent(run, stores=True) for run in shapes.batches], 0),
    )


def _names(shapes: Shapes) -> tuple[list[str], list[str]]:
    """Return the gateways that were measured, and those of them that Headrace is compared with."""
    gateways = [name for name in shapes.versions if name != "direct"]
    return gateways, [name for name in gateways if name != "headrace"]


def _head(words: Sequence[str], figures: Sequence[str]) -> Sequence[str]:
    return _line(*words, *figures), f"|{' --- |' * len(words)}{' ---: |' * len(figures)}"


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _latency(name: str) -> Value:
    return lambda m: float(getattr(m.outcome, f"latency_{name}"))


def _correct(measurement: Measurement) -> int:
    return measurement.outcome.correct if measurement.outcome else 0


def _rate(measurement: Measurement) -> float:
    return _correct(measurement) / measurement.outcome.seconds if measurement.outcome else 0.0


def _cores(measurement: Measurement) -> float:
    return measurement.whole / measurement.outcome.seconds if measurement.outcome else 0.0


def _spent(run: Run, *, stores: bool) -> float:
    return sum(run.cpu.own.values()) + (sum(run.cpu.stores.values()) if stores else 0.0)


def spread(values: Sequence[float], digits: int) -> str:
    """Return the median of the rounds, with the lowest and the highest of several; nothing without a round."""
    if not values:
        return ""
    median, low, high = (f"{value:,.{digits}f}" for value in (statistics.median(values), min(values), max(values)))
    return f"{median} ({low} … {high})" if len(values) > 1 else median


def compared(theirs: Mapping[int, float], ours: Mapping[int, float]) -> str:
    """Return the ratio of our figures to theirs in the rounds that have both; nothing without such a round."""
    rounds = [number for number in ours if number in theirs]
    found = ratio([theirs[number] for number in rounds], [ours[number] for number in rounds])
    if found is None:
        return ""
    interval = "one round" if found.high == math.inf else f"{found.low:.2f} … {found.high:.2f}"
    return f"{found.mean:.2f} ({interval})"
