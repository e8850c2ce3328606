"""Plots as SVG, made on the server: they need no script, and follow the page's colours."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

OTHER = "other"
"""The series that all small ones together are."""
MOST_SERIES = 8
"""The colours that `console.css` has. The last is grey, for the series `OTHER`."""

# The most pixels that a column is wide, and the part of its place that it takes.
_WIDEST, _PART = 56.0, 0.8
# Steps between two lines of the grid, times a power of ten.
_STEPS = (1, 2, 2.5, 5, 10)
_LINES = 5


@dataclass(frozen=True, slots=True)
class Stacked:
    """Columns over time, each a stack of series."""

    title: str
    columns: Sequence[str]
    """The label of each column, as a day."""
    series: Mapping[str, Sequence[float]]
    """A value for each column, by the series' name. None is negative."""

    def narrowed(self) -> Stacked:
        """Return the plot with its largest series, as many as there are colours, and the rest as one."""
        if len(self.series) <= MOST_SERIES:
            return self
        by_size = sorted(self.series, key=lambda name: -sum(self.series[name]))
        kept = {name: self.series[name] for name in by_size[: MOST_SERIES - 1]}
        rest = [self.series[name] for name in by_size[MOST_SERIES - 1 :]]
        return Stacked(self.title, self.columns, kept | {OTHER: [sum(values) for values in zip(*rest, strict=True)]})

    def totals(self) -> list[float]:
        """Return what each column comes to."""
        return [sum(values) for values in zip(*self.series.values(), strict=True)] or [0.0] * len(self.columns)

    def rows(self) -> list[tuple[str, list[float], float]]:
        """Return the plot as a table: each column's label, its values, and what they come to."""
        rows = [[values[column] for values in self.series.values()] for column in range(len(self.columns))]
        return [(label, row, sum(row)) for label, row in zip(self.columns, rows, strict=True)]


@dataclass(frozen=True, slots=True)
class _Frame:
    """The size of a drawing, in pixels of its own."""

    name: str
    width: int
    height: int
    labels: int
    """The most labels below the columns."""
    left: int = 58
    right: int = 20
    top: int = 14
    bottom: int = 26

    @property
    def inner_width(self) -> int:
        return self.width - self.left - self.right

    @property
    def inner_height(self) -> int:
        return self.height - self.top - self.bottom


# The style sheet shows the one that fits the screen.
_FRAMES = (_Frame("wide", 960, 290, labels=10), _Frame("slim", 350, 220, labels=4))


def draw(plot: Stacked, label: Callable[[float], str]) -> Markup:
    """Return a plot as SVG with a legend. `label` formats a value of the axis."""
    plot = plot.narrowed()
    return Markup("").join(_draw(plot, label, frame) for frame in _FRAMES) + _legend(list(plot.series))


def _draw(plot: Stacked, label: Callable[[float], str], frame: _Frame) -> Markup:
    totals = plot.totals()
    ticks = _ticks(totals)
    parts = [
        Markup('<svg class="plot {}" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(
            frame.name, frame.width, frame.height, plot.title
        ),
        *(_grid_line(frame, tick / ticks[-1], label(tick)) for tick in ticks),
        *_stacks(plot, frame, ticks[-1]),
        *_column_labels(plot, frame),
        *(_hint(plot, frame, column, label) for column, total in enumerate(totals) if total > 0),
        Markup("</svg>"),
    ]
    return Markup("").join(parts)


def _grid_line(frame: _Frame, part: float, text: str) -> Markup:
    y = frame.top + frame.inner_height * (1 - part)
    return Markup(
        '<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>'
        '<text x="{}" y="{:.1f}" text-anchor="end">{}</text>'
    ).format(frame.left, frame.width - frame.right, y, y, frame.left - 7, y + 4, text)


def _stacks(plot: Stacked, frame: _Frame, top: float) -> list[Markup]:
    """Return one path for each series: a box in each column, on top of those of the series before it."""
    step = frame.inner_width / max(1, len(plot.columns))
    width = min(_WIDEST, step * _PART)
    floor = float(frame.top + frame.inner_height)
    tops = [floor] * len(plot.columns)
    paths = []
    for colour, values in enumerate(plot.series.values()):
        boxes = []
        for column, value in enumerate(values):
            height = frame.inner_height * value / top
            if height <= 0:
                continue
            tops[column] -= height
            x = frame.left + step * column + (step - width) / 2
            boxes.append(f"M{x:.1f} {tops[column]:.2f}h{width:.1f}v{height:.2f}h-{width:.1f}z")
        if boxes:
            paths.append(Markup('<path class="series-{}" d="{}"/>').format(colour, "".join(boxes)))
    return paths


def _column_labels(plot: Stacked, frame: _Frame) -> list[Markup]:
    """Return the labels below the columns: every one, or every second, third and so on, up to the newest."""
    step = frame.inner_width / max(1, len(plot.columns))
    every = math.ceil(len(plot.columns) / frame.labels)
    return [
        Markup('<text x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
            frame.left + step * (column + 0.5), frame.height - 8, name
        )
        for column, name in enumerate(plot.columns)
        if (len(plot.columns) - 1 - column) % every == 0
    ]


def _hint(plot: Stacked, frame: _Frame, column: int, label: Callable[[float], str]) -> Markup:
    """Return the place of a column, which says its values when the pointer is on it."""
    step = frame.inner_width / len(plot.columns)
    values = [f"{name}: {label(values[column])}" for name, values in plot.series.items() if values[column] > 0]
    return Markup('<rect class="hint" x="{:.1f}" y="{}" width="{:.1f}" height="{}"><title>{}</title></rect>').format(
        frame.left + step * column, frame.top, step, frame.inner_height, "\n".join([plot.columns[column], *values])
    )


def _legend(names: Sequence[str]) -> Markup:
    """Return the names with their colours."""
    items = (
        Markup(
            '<li><svg viewBox="0 0 12 12" aria-hidden="true">'
            '<rect class="series-{}" width="12" height="12"/></svg>{}</li>'
        ).format(colour, name)
        for colour, name in enumerate(names)
    )
    return Markup('<ul class="legend">{}</ul>').format(Markup("").join(items))


def _ticks(totals: Sequence[float]) -> list[float]:
    """Return the values of the grid's lines, from zero to the first that no column is above. Counts get whole ones."""
    most = max(totals, default=0.0)
    if most <= 0:
        return [0.0, 1.0]
    power = 10.0 ** math.floor(math.log10(most / _LINES))
    step = next(power * step for step in _STEPS if most / _LINES <= power * step * 1.000001)
    if all(float(total).is_integer() for total in totals):
        step = max(1.0, math.ceil(step))
    return [step * line for line in range(math.ceil(most / step - 1e-6) + 1)]
