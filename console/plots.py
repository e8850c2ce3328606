"""Plots as SVG, made on the server: they need no script, and follow the page's colours."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

# Pixels of the drawing; the page scales it.
_WIDTH, _HEIGHT = 720, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 10, 14, 26
# The colours that `console.css` has. Further series share the last one, with the name "other".
_COLOURS = 8
_GRID_LINES = 4
# The most labels below the columns.
_MOST_LABELS = 8
OTHER = "other"


@dataclass(frozen=True, slots=True)
class Stacked:
    """Columns over time, each a stack of series."""

    title: str
    columns: Sequence[str]
    """The label of each column, as a day."""
    series: Mapping[str, Sequence[float]]
    """A value for each column, by the series' name."""

    def narrowed(self) -> Stacked:
        """Return the plot with its largest series, as many as there are colours, and the rest as one."""
        if len(self.series) <= _COLOURS:
            return self
        by_size = sorted(self.series, key=lambda name: -sum(self.series[name]))
        kept = {name: self.series[name] for name in by_size[: _COLOURS - 1]}
        rest = [self.series[name] for name in by_size[_COLOURS - 1 :]]
        return Stacked(self.title, self.columns, kept | {OTHER: [sum(values) for values in zip(*rest, strict=True)]})


def draw(plot: Stacked, label: Callable[[float], str]) -> Markup:
    """Return a plot as SVG with a legend. `label` formats a value of the axis."""
    plot = plot.narrowed()
    totals = [sum(values) for values in zip(*plot.series.values(), strict=True)] or [0.0]
    top = _round_up(max(totals))
    inner_height, inner_width = _HEIGHT - _TOP - _BOTTOM, _WIDTH - _LEFT - _RIGHT
    parts = [
        Markup('<svg class="plot" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(_WIDTH, _HEIGHT, plot.title)
    ]
    for line in range(_GRID_LINES + 1):
        y = _TOP + inner_height * (1 - line / _GRID_LINES)
        parts.append(
            Markup('<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(_LEFT, _WIDTH - _RIGHT, y, y)
        )
        parts.append(
            Markup('<text x="{}" y="{:.1f}" text-anchor="end">{}</text>').format(
                _LEFT - 8, y + 4, label(top * line / _GRID_LINES)
            )
        )
    step = inner_width / max(1, len(plot.columns))
    every = math.ceil(len(plot.columns) / _MOST_LABELS)
    for column, name in enumerate(plot.columns):
        x, y = _LEFT + step * column, float(_TOP + inner_height)
        for colour, (series, values) in enumerate(plot.series.items()):
            height = inner_height * values[column] / top
            if height <= 0:
                continue
            y -= height
            parts.append(
                Markup('<rect class="series-{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.2f}">').format(
                    colour, x + step * 0.1, y, step * 0.8, height
                )
            )
            parts.append(Markup("<title>{}, {}: {}</title></rect>").format(name, series, label(values[column])))
        if column % every == 0:
            parts.append(
                Markup('<text x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(x + step / 2, _HEIGHT - 8, name)
            )
    parts.append(Markup("</svg>"))
    return Markup("").join(parts) + _legend(list(plot.series))


def _legend(names: Sequence[str]) -> Markup:
    """Return the names with their colours."""
    items = (
        Markup(
            '<li><svg class="plot" viewBox="0 0 12 12" aria-hidden="true">'
            '<rect class="series-{}" width="12" height="12"/></svg>{}</li>'
        ).format(colour, name)
        for colour, name in enumerate(names)
    )
    return Markup('<ul class="legend">{}</ul>').format(Markup("").join(items))


def _round_up(value: float) -> float:
    """Return the next value whose quarters read well: 1, 2, 4, 8 or 10 times a power of ten."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return power * next(step for step in (1, 2, 4, 8, 10) if value <= power * step * 1.000001)
