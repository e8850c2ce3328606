"""CSV whose cells a spreadsheet never runs as formulas."""

from __future__ import annotations

import csv
import io
from decimal import Decimal
from typing import Any

import pytest

from headrace.usage.spreadsheet import render_rows


def read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


@pytest.mark.parametrize(
    "text",
    [
        *("=cmd|x", '=cmd|" /C calc"!A0', "+1+2", "-1+2", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\uff1d1+2"),
        *("+49301", "-", "-1e5", "--1", "-1.", "-\u0663"),
    ],
)
def test_no_text_is_taken_for_a_formula(text: str) -> None:
    assert read(render_rows([{"user": text}], names=[])) == [{"user": "'" + text}]


@pytest.mark.parametrize("text", ["-0.0001000000", "-10", "0.00065", "a=b", "job_1", "", " =1", "'=1", "7"])
def test_numbers_and_names_are_left_alone(text: str) -> None:
    assert read(render_rows([{"user": text, "n": 1}], names=[])) == [{"user": text, "n": "1"}]


@pytest.mark.parametrize(
    "cost", ["-0.0001000000", "1E-11", "-1E+3", "0.00000001875", "123456789012345678901234567890.5"]
)
def test_money_keeps_every_digit(cost: str) -> None:
    [row] = read(render_rows([{"cost": Decimal(cost)}], names=[]))
    assert Decimal(row["cost"]) == Decimal(cost)
    assert "E" not in row["cost"]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([{"a": None, "b": {"p50": 0.5, "p90": None}, "c": True}], "a,b_p50,b_p90,c\r\n,0.5,,True\r\n"),
        ([], "start_time,model\r\n"),
    ],
)
def test_a_line_of_names_comes_first(rows: list[dict[str, Any]], expected: str) -> None:
    assert render_rows(rows, names=["start_time", "model"]) == expected
