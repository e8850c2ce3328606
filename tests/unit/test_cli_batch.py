from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.cli.batch import progress_text
from headrace.cli.batch_input import InputError, Table, fields_of, fill, prepare, read_rows, write_answers

LINE = {
    "custom_id": "a",
    "method": "POST",
    "url": "/v1/chat/completions",
    "body": {"model": "m", "messages": [{"role": "user", "content": "hi"}]},
}


def problems_of(path: Path, table: Table | None = None) -> list[tuple[int | None, str]]:
    with pytest.raises(InputError) as refused, prepare(path, table):
        pass
    return [(problem.line, problem.message) for problem in refused.value.problems]


def test_a_valid_input_is_known_by_what_it_holds(tmp_path: Path) -> None:
    first, same, other = tmp_path / "a.jsonl", tmp_path / "b.jsonl", tmp_path / "c.jsonl"
    first.write_text(json.dumps(LINE) + "\n\n" + json.dumps({**LINE, "custom_id": "b"}))
    same.write_text(first.read_text())
    other.write_text(json.dumps(LINE))
    with prepare(first, None) as one, prepare(same, None) as two, prepare(other, None) as three:
        assert (one.lines, three.lines) == (2, 1)
        assert one.digest == two.digest != three.digest


def test_every_problem_is_told_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join([json.dumps(LINE), "nonsense", json.dumps(LINE), json.dumps({**LINE, "method": "GET"})]))
    assert problems_of(path) == [
        (2, "This line is not parseable as valid JSON."),
        (3, "Duplicate 'custom_id': 'a' is that of line 1."),
        (4, "Invalid 'method': it must be 'POST'."),
    ]


def test_problems_are_told_up_to_a_limit(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("nonsense\n" * 100)
    assert len(problems_of(path)) == 20


def test_an_empty_input_is_a_problem(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n")
    assert problems_of(path) == [(None, "there is no request in it")]


@given(st.dictionaries(st.sampled_from(["a", "b c", "ü"]), st.text(), min_size=3))
def test_what_a_row_has_is_data(values: dict[str, str]) -> None:
    assert fill("{{{a}}} {b c}|{ü}", values) == "{" + values["a"] + "} " + values["b c"] + "|" + values["ü"]


@pytest.mark.parametrize("template", ["{", "}", "{}", "{a:>9}", "{a!r}", "{0.__class__!s}"])
def test_a_template_has_columns_and_nothing_else(template: str) -> None:
    with pytest.raises(InputError, match="--template"):
        fields_of(template)


def test_attributes_in_a_template_are_columns_that_are_not_there(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("text\nx\n")
    assert problems_of(path, Table("{text.__class__}", "m")) == [
        (1, "there is no column 'text.__class__'; the columns are: text")
    ]


@pytest.mark.parametrize(
    ("name", "text"), [("t.csv", 'id,text\n1,"a, {id}"\n2,"b\nc"\n'), ("t.tsv", 'id\ttext\n1\ta, {id}\n2\t"b\nc"\n')]
)
def test_rows_become_requests(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text("\ufeff" + text, encoding="utf-8")
    table = Table("Say: {text}", "m", system="Be brief.", max_tokens=5, id_column="id")
    with prepare(path, table) as prepared:
        lines = [json.loads(line) for line in prepared.path.read_text().splitlines()]
    assert [line["custom_id"] for line in lines] == ["1", "2"]
    assert [line["body"]["messages"][1]["content"] for line in lines] == ["Say: a, {id}", "Say: b\nc"]
    assert lines[0]["body"]["messages"][0] == {"role": "system", "content": "Be brief."}
    assert lines[0]["body"]["max_completion_tokens"] == 5
    assert not prepared.path.exists()


@pytest.mark.parametrize(
    ("text", "line"), [("id,text\n1\n", 2), ("id,text\n1,a,b\n", 2), ('id,text\n1,"a', 2), ("", 1), ("id\n1\n", 1)]
)
def test_what_is_no_table_is_a_problem_of_its_line(tmp_path: Path, text: str, line: int) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    assert [found for found, _ in problems_of(path, Table("{text}", "m"))] == [line]


def result(custom_id: str, **fields: Any) -> bytes:
    return json.dumps({"custom_id": custom_id, "response": None, "error": None, **fields}).encode() + b"\n"


def test_answers_are_written_beside_their_rows(tmp_path: Path) -> None:
    path, target = tmp_path / "t.csv", tmp_path / "out.csv"
    path.write_text("text\na\nb\nc\nd\n")
    table = Table("{text}", "m")
    good = {"status_code": 200, "body": {"choices": [{"message": {"content": "A, or\nnot"}}]}}
    bad = {"status_code": 400, "body": {"error": {"message": "No."}}}
    answers = io.BytesIO(result("row-1", response=good))
    errors = io.BytesIO(result("row-2", response=bad) + result("row-3", error={"message": "expired"}))
    write_answers(path, table, [answers, errors], target)
    with target.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["text"], row["answer"], row["error"]) for row in rows] == [
        ("a", "A, or\nnot", ""),
        ("b", "", "No."),
        ("c", "", "expired"),
        ("d", "", "not run"),
    ]
    assert [row.custom_id for row in read_rows(path, table)] == ["row-1", "row-2", "row-3", "row-4"]


@pytest.mark.parametrize(
    ("progress", "told"),
    [
        ({"request_counts": {"total": 0, "completed": 0, "failed": 0}}, "0/0"),
        (
            {
                "request_counts": {"total": 20_000, "completed": 4990, "failed": 10},
                "requests_per_second": 982.4,
                "tokens_per_second": 29_472.0,
                "cost": "0.05",
                "seconds_left": 75.2,
            },
            "4,990/20,000 · 10 failed · 982 req/s · 29,472 tok/s · 0.0500 of about 0.2000 USD · 1 min 15 s left",
        ),
        ({"request_counts": {"total": 2, "completed": 2, "failed": 0}, "cost": "0.05"}, "2/2 · 0.0500 USD"),
        (
            {"request_counts": {"total": 9, "completed": 1, "failed": 0}, "cost": None, "seconds_left": 7300.0},
            "1/9 · 2 h 1 min left",
        ),
    ],
)
def test_progress_is_told_on_a_line(progress: dict[str, Any], told: str) -> None:
    assert progress_text(progress) == told
