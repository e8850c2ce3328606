"""What templates say, without a browser."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from console.plots import OTHER, Stacked, _ticks, draw
from console.render import STATIC, duration, moment, money, number, short_money, short_number, size

TEMPLATES = sorted((STATIC.parent / "templates").glob("*.html"))


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.stem)
def test_templates_have_nothing_that_the_policy_blocks(template: object) -> None:
    text = template.read_text()  # type: ignore[attr-defined]
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=|<script(?![^>]*\ssrc=)|javascript:", text)
    assert not re.search(r"""(?:src|href)="https?:""", text)
    assert "|safe" not in text.replace(" ", "")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "\N{EN DASH}"),
        (0.84, "840 ms"),
        (4.21, "4.2 s"),
        (185, "3 min 5 s"),
        (7800, "2 h 10 min"),
        (86_400, "1 d"),
    ],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_numbers_sums_and_sizes() -> None:
    assert (number(12345), number(None)) == ("12,345", "\N{EN DASH}")
    assert (money("1234.5"), money(0), money("0.0000213")) == ("$1,234.50", "$0.00", "$0.000021")
    assert (money(0.5), money("0.0000001")) == ("$0.50", "< $0.000001")
    assert (money(0.9999999), money(0.9999994), money("0.0000005001")) == ("$1.00", "$0.999999", "$0.000001")
    assert (short_money(0.025), short_money(12), short_money(1200)) == ("$0.025", "$12", "$1.2 K")
    assert (short_number(0.25), short_number(950), short_number(4.5e9)) == ("0.25", "950", "4.5 B")
    assert (size(12), size(3 * 1024**2)) == ("12 B", "3.0 MiB")
    assert 'datetime="2026-09-21T14:13:20+00:00"' in moment(1_790_000_000)


@given(
    st.dictionaries(st.text(min_size=1), st.lists(st.floats(0, 1e12), min_size=5, max_size=5), max_size=20),
)
def test_a_plot_draws_any_series_inside_its_frame(series: dict[str, list[float]]) -> None:
    drawn = draw(Stacked("Tokens", ["1", "2", "3", "4", "5"], series), number)
    assert drawn.count("<li>") <= 8
    for frame in re.findall(r"<svg class=\"plot.*?</svg>", drawn, re.DOTALL):
        height = float(re.search(r'viewBox="0 0 \d+ (\d+)"', frame)[1])  # type: ignore[index]
        for y, tall in re.findall(r"M[\d.]+ ([\d.e-]+)h[\d.]+v([\d.e-]+)", frame):
            assert float(y) >= 13.9
            assert float(y) + float(tall) <= height - 25.8
    assert "<script" not in draw(Stacked("<script>", ["<script>"], {"<script>": [1.0]}), number)


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([0.0], [0, 1]),
        ([1.0], [0, 1]),
        ([3.0, 2.0], [0, 1, 2, 3]),
        ([0.021], [0, 0.005, 0.01, 0.015, 0.02, 0.025]),
        ([2_300_000.0], [0, 500_000, 1_000_000, 1_500_000, 2_000_000, 2_500_000]),
    ],
)
def test_the_axis_has_round_numbers_and_whole_ones_for_counts(values: list[float], ticks: list[float]) -> None:
    assert _ticks(values) == pytest.approx(ticks)


def test_small_series_share_one_name() -> None:
    plot = Stacked("Cost", ["1"], {f"model {number}": [float(number)] for number in range(12)}).narrowed()
    assert list(plot.series) == [f"model {number}" for number in range(11, 4, -1)] + [OTHER]
    assert plot.rows() == [("1", [11, 10, 9, 8, 7, 6, 5, 10], 66)]
