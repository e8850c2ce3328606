"""What templates say, without a browser."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from console.plots import Stacked, draw
from console.render import STATIC, duration, moment, money, number, size

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
    assert (size(12), size(3 * 1024**2)) == ("12 B", "3.0 MiB")
    assert 'datetime="2026-09-21T14:13:20+00:00"' in moment(1_790_000_000)


@given(
    st.dictionaries(st.text(min_size=1), st.lists(st.floats(0, 1e12), min_size=5, max_size=5), max_size=20),
)
def test_a_plot_draws_any_series_inside_its_frame(series: dict[str, list[float]]) -> None:
    drawn = draw(Stacked("Tokens", ["1", "2", "3", "4", "5"], series), number)
    assert drawn.count("<li>") <= 8
    for y, height in re.findall(r'y="([\d.e-]+)" width="[\d.]+" height="([\d.e-]+)"', drawn):
        assert float(y) >= 13.9
        assert float(y) + float(height) <= 214.2
    assert "<script" not in draw(Stacked("<script>", ["<script>"], {"<script>": [1.0]}), number)
