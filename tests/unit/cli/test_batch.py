from __future__ import annotations

import csv
import io
import json
import os
import socket
import stat
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text

from headrace.cli import main
from headrace.cli.batch import _write_results
from headrace.cli.batch_client import BatchClient, ServerError
from headrace.cli.batch_input import prepare
from headrace.cli.batch_output import check_outputs, save, written
from headrace.cli.batch_progress import progress_text
from headrace.cli.batch_table import (
    InputError,
    Table,
    fields_of,
    fill,
    find_format,
    output_delimiter,
    read_header,
    read_rows,
    write_answers,
)
from headrace.cli.printing import show

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
    assert problems_of(path) == [(None, "the input has no request")]


@given(st.dictionaries(st.sampled_from(["a", "b c", "ü"]), st.text(), min_size=3))
def test_what_a_row_has_is_data(values: dict[str, str]) -> None:
    assert (
        fill("{{{a}}} {b c}|{ü}", [*values], [*values.values()])
        == "{" + values["a"] + "} " + values["b c"] + "|" + values["ü"]
    )


@pytest.mark.parametrize("template", ["{", "}", "{}", "{a", "a}", "{a{b}}"])
def test_a_template_has_columns_and_nothing_else(template: str) -> None:
    with pytest.raises(InputError, match="--template"):
        fields_of(template)


def test_attributes_in_a_template_are_columns_that_are_not_there(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("text\nx\n")
    assert problems_of(path, Table("{text.__class__}", "m")) == [
        (1, "there is no column 'text.__class__'; the columns are: 'text'")
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


def answered(custom_id: str, text: str | None, **fields: Any) -> bytes:
    body = {"choices": [{"message": {"content": text, **fields}}]}
    return result(custom_id, response={"status_code": 200, "body": body})


def written_again(path: Path, table: Table, *outputs: bytes, name: str = "out.csv") -> bytes:
    """Return the table that is written when a batch has these output files."""
    form = find_format(path, table, path.suffix)
    target = io.BytesIO()
    delimiter = output_delimiter(path, Path(name), form)
    write_answers(path, table, form, [io.BytesIO(output) for output in outputs], target, delimiter=delimiter)
    return target.getvalue()


def test_answers_are_written_beside_their_rows(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("text\na\nb\nc\nd\ne\n")
    bad = {"status_code": 400, "body": {"error": {"message": "No."}}}
    out = written_again(
        path,
        Table("{text}", "m"),
        answered("row-1", "A, or\nnot") + answered("row-5", None, refusal="I cannot."),
        result("row-2", response=bad) + result("row-3", error={"message": "expired"}),
    )
    assert list(csv.reader(io.StringIO(out.decode(), newline=""))) == [
        ["text", "answer", "error"],
        ["a", "A, or\nnot", ""],
        ["b", "", "No."],
        ["c", "", "expired"],
        ["d", "", "not run"],
        ["e", "", "I cannot."],
    ]


@pytest.mark.parametrize(
    ("header", "ours"),
    [
        ("question,answer,text", "answer_2,error"),
        ("error,text,answer_2, Answer", "answer_3,error_2"),
        ("text,x,x", "answer,error"),
        (",text,", "answer,error"),
    ],
)
def test_no_column_of_a_table_is_lost_whatever_its_header(tmp_path: Path, header: str, ours: str) -> None:
    path = tmp_path / "t.csv"
    row = ",".join(f"v{at}" for at, _ in enumerate(header.split(",")))
    path.write_text(f"{header}\n{row}\n")
    assert written_again(path, Table("{text}", "m"), answered("row-1", "A")).decode() == (
        f"{header},{ours}\n{row},A,\n"
    )


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_table_goes_out_as_it_came(tmp_path: Path, mark: bytes, end: bytes) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(mark + b"id;text" + end + 'ü;"a\r;\nb"'.encode() + end)
    assert written_again(path, Table("{text}", "m"), answered("row-1", "ß\rx\ud800")) == (
        mark + b"id;text;answer;error" + end + 'ü;"a\r;\nb";"ß\rx?";'.encode() + end
    )


def test_a_table_in_utf_16_goes_out_in_utf_16(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    path.write_bytes("id\ttext\r\n1\t日本\r\n".encode("utf-16"))
    out = written_again(path, Table("{text}", "m"), answered("row-1", "語"))
    assert out.decode("utf-16") == "id,text,answer,error\r\n1,日本,語,\r\n"


@pytest.mark.parametrize(
    ("text", "template", "delimiter", "columns"),
    [
        ("id;text\n", "{text}", None, ["id", "text"]),
        ("id|text\n", "{text}", None, ["id", "text"]),
        ("id\ttext\n", "{text}", None, ["id", "text"]),
        ('"a;b",text\n', "{text}", None, ["a;b", "text"]),
        ("text,a;b;c;d\n", "{text}", None, ["text", "a;b;c;d"]),
        ("id:text\n", "{text}", ":", ["id", "text"]),
        ("text\n", "{text}", None, ["text"]),
    ],
)
def test_the_delimiter_is_found_from_the_header(
    tmp_path: Path, text: str, template: str, delimiter: str | None, columns: list[str]
) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    table = Table(template, "m", delimiter=delimiter)
    assert read_header(path, find_format(path, table, ".csv")) == columns


@pytest.mark.parametrize("field", ["note: x", "a!r", "a.b[0]", "#2", " b", "#1"])
def test_any_column_can_be_named(field: str) -> None:
    columns = ["note: x", "a!r", "a.b[0]", "", " b", "x", "x", "#1"]
    cells = [f"cell of {column}" for column in columns]
    at = columns.index(field) if field in columns else 1
    assert fill(f"<{{{field}}}>", columns, cells) == f"<{cells[at]}>"


def test_a_name_that_several_columns_have_is_refused_and_their_numbers_work(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("x,y,x\n1,2,3\n")
    assert problems_of(path, Table("{x}", "m")) == [
        (1, "several columns are named 'x': name one by its number, #1 and #3")
    ]
    with prepare(path, Table("{#3}", "m", id_column="#1")) as prepared:
        [line] = map(json.loads, prepared.path.read_text().splitlines())
    assert (line["custom_id"], line["body"]["messages"][0]["content"]) == ("1", "3")


def test_problems_of_a_table_are_told_by_its_own_lines(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('id,text\n1,"two\nlines"\n\n7,x\n7,y\n')
    assert problems_of(path, Table("{text}", "m", id_column="id")) == [
        (6, "Duplicate 'custom_id': '7' is that of line 5.")
    ]
    with prepare(path, Table("{text}", "m")) as prepared:
        assert [prepared.line_of(number) for number in (1, 2, 3, None)] == [2, 5, 6, None]


def test_a_table_that_is_not_utf_8_is_a_problem_of_its_line(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b"id,text\n1,a\n2,Gr\xfc\xdfe\n")
    assert problems_of(path, Table("{text}", "m")) == [(3, "it is not UTF-8: save the table as 'CSV UTF-8'")]


def test_a_table_that_changes_while_its_batch_runs_is_written_as_it_was(tmp_path: Path) -> None:
    path, table = tmp_path / "t.csv", Table("{text}", "m")
    path.write_text("text\na\n")
    with prepare(path, table) as prepared:
        path.write_text("other\nb\nc\n")
        assert prepared.rows is not None
        assert [row.cells for row in read_rows(prepared.rows.path, table, prepared.rows.form)] == [["a"]]


def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.write(writing, json.dumps(LINE).encode())
    os.close(writing)
    with prepare(Path(f"/dev/fd/{reading}"), None) as prepared:
        assert json.loads(prepared.path.read_bytes()) == LINE
        assert prepared.lines == 1
    os.close(reading)


# -- where results go -------------------------------------------------------------------------------------------------


def refused(source: Path, **outputs: Path) -> str:
    with pytest.raises(click.UsageError) as error:
        check_outputs({f"--{name}": path for name, path in outputs.items()}, source)
    return error.value.message


def test_an_output_that_is_the_input_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, link, hard, chain = (tmp_path / name for name in ("in.jsonl", "link", "hard", "chain"))
    source.write_text("mine")
    link.symlink_to(source)
    hard.hardlink_to(source)
    chain.symlink_to("link")
    monkeypatch.chdir(tmp_path)
    for path in (source, link, hard, chain, Path("in.jsonl"), Path(f"../{tmp_path.name}/in.jsonl")):
        assert "is the same file as FILE" in refused(source, output=path)
    assert "is the same file as FILE" in refused(link, output=source)
    assert "is the same file as FILE" in refused(source, output=tmp_path / "new", errors=source)


def test_two_outputs_in_one_file_are_refused(tmp_path: Path) -> None:
    source, new, link = tmp_path / "in.jsonl", tmp_path / "new", tmp_path / "link"
    source.write_text("mine")
    link.symlink_to(new)
    assert "is the same file as --output" in refused(source, output=new, errors=new)
    assert "is the same file as --output" in refused(source, output=new, errors=link)
    check_outputs({"--output": Path(os.devnull), "--errors": Path(os.devnull)}, source)


def test_an_output_that_cannot_be_written_is_refused_before(tmp_path: Path) -> None:
    source, loop = tmp_path / "in.jsonl", tmp_path / "loop"
    source.write_text("mine")
    loop.symlink_to(loop)
    assert "No such file or directory" in refused(source, output=tmp_path / "none" / "out")
    assert "Not a directory" in refused(source, output=source / "out")
    assert "Is a directory" in refused(source, output=tmp_path)
    assert "symbolic links" in refused(source, output=loop)
    assert "name too long" in refused(source, output=tmp_path / ("x" * 300))
    assert "Bad file descriptor" in refused(source, output=Path("/dev/fd/99999"))


def test_a_file_is_replaced_when_all_is_written_or_not_at_all(tmp_path: Path) -> None:
    target, link = tmp_path / "out", tmp_path / "link"
    target.write_text("before")
    target.chmod(0o640)
    link.symlink_to("out")

    def broken_off() -> None:
        with written(link) as file:
            file.write(b"half")
            raise EOFError

    with pytest.raises(EOFError):
        broken_off()
    assert target.read_text() == "before"
    with written(link) as file:
        file.write(b"after")
        assert target.read_text() == "before"
    assert (target.read_text(), target.stat().st_mode & 0o777, link.is_symlink()) == ("after", 0o640, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "out"]


def test_what_is_no_regular_file_is_written_to_and_stays(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    check_outputs({"--output": pipe})
    with written(pipe) as file:
        file.write(b"answers")
    assert os.read(reader, 100) == b"answers"
    os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


WITHOUT_ANSWERS = {"status": "completed", "output_file_id": None}


def test_a_file_of_results_that_a_batch_does_not_have_is_removed(tmp_path: Path) -> None:
    target, link = tmp_path / "out", tmp_path / "link"
    target.write_text("of an earlier batch")
    link.symlink_to("out")
    client = BatchClient("http://127.0.0.1", "hr_key", say=print)
    for _ in range(2):  # there is nothing to remove the second time
        assert save(client, WITHOUT_ANSWERS, "output_file_id", link) is None
        assert (target.exists(), link.is_symlink()) == (False, True)


def test_a_file_of_results_stays_if_no_request_of_the_next_batch_ran(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.write_text("of an earlier batch")
    client = BatchClient("http://127.0.0.1", "hr_key", say=print)
    assert save(client, WITHOUT_ANSWERS | {"status": "failed"}, "output_file_id", target) is None
    assert target.exists()


def test_what_is_no_regular_file_stays_when_a_batch_has_no_results(tmp_path: Path) -> None:
    client = BatchClient("http://127.0.0.1", "hr_key", say=print)
    pipe, target = tmp_path / "pipe", tmp_path / "out"
    os.mkfifo(pipe)
    with target.open("wb") as file:
        for path in (pipe, Path(os.devnull), Path("-"), Path(f"/dev/fd/{file.fileno()}")):
            assert save(client, WITHOUT_ANSWERS, "output_file_id", path) is None
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert target.exists()


def test_a_file_that_cannot_be_removed_is_told_by_its_path(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(OSError, match="symbolic links") as raised:
        save(BatchClient("http://127.0.0.1", "hr_key", say=print), WITHOUT_ANSWERS, "output_file_id", loop)
    assert raised.value.filename == str(loop)


def test_an_open_descriptor_is_written_from_where_it_stands(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with target.open("wb", buffering=0) as file:
        file.write(b"header\n")
        with written(Path(f"/dev/fd/{file.fileno()}")) as output:
            output.write(b"answers")
    assert target.read_text() == "header\nanswers"


@pytest.mark.parametrize("path", ["-", "/dev/stdout"])
def test_standard_output_is_written_to(path: str, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    with written(Path(path)) as output:
        output.write(b"answers")
    assert capfdbinary.readouterr().out == b"answers"


# -- the server's address ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8700", "localhost", "", "http://", "ftp://h", "http://h:port", " http://h", "http://h/?a=b"]
)
def test_an_address_that_can_never_work_is_refused(url: str) -> None:
    with pytest.raises(click.UsageError, match="HEADRACE_URL"):
        BatchClient(url, "hr_key", say=print)


@pytest.mark.parametrize("key", ["", " ", "hr_key\n", "hr_kéy", "hr key\r"])
def test_a_key_that_no_header_can_have_is_refused(key: str) -> None:
    with pytest.raises(click.UsageError, match="HEADRACE_API_KEY"):
        BatchClient("http://127.0.0.1:8700", key, say=print)


def test_a_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.cli.batch_client._UNANSWERED_SECONDS", 3)
    said: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(ServerError, match="cannot be reached"):
        BatchClient(f"http://127.0.0.1:{port}", "hr_key", say=said.append).get("/batches")
    assert len(said) == 1
    assert "trying again for a minute" in said[0]


def test_a_letter_that_the_locale_lacks_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding="ascii"))
    main(["--version"], standalone_mode=False)
    show(Text("Schlüssel ☃"))
    sys.stdout.flush()
    assert printed.getvalue().splitlines()[-1] == b"Schl?ssel ?"


def test_results_are_utf_8_whatever_the_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding="ascii"))
    line = json.loads(answered("a", "日本 \ud800"))
    assert _write_results(iter([line]), None, None) == (1, 0)
    assert "日本 \\ud800" in printed.getvalue().decode()
    assert json.loads(printed.getvalue()) == line


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
