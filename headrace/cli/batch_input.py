"""What `headrace batch run` sends: a file of requests, checked line by line before anything is uploaded.

A table (`.csv`, `.tsv`) becomes requests by a template, whose `{column}` is replaced by what the row has there. What a
row has is data: braces in it mean nothing.
"""

from __future__ import annotations

import csv
import hashlib
import json
import string
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from headrace.batches.lines import ENDPOINT, LARGEST_LINE, LineProblem, LineReader, RawLine, parse_line
from headrace.errors import InvalidRequestError

MOST_PROBLEMS = 20
_PIECE_BYTES = 1024 * 1024
_DELIMITERS = {".csv": ",", ".tsv": "\t"}


class InputError(Exception):
    """The input is not valid. Each problem has its line, if it has one."""

    def __init__(self, problems: Sequence[LineProblem]) -> None:
        """Keep the problems, of which there may be more."""
        self.problems = problems
        super().__init__("; ".join(problem.message for problem in problems))


@dataclass(frozen=True, slots=True)
class Table:
    """How the rows of a table become requests."""

    template: str
    model: str
    system: str | None = None
    max_tokens: int | None = None
    id_column: str | None = None


@dataclass(frozen=True, slots=True)
class Prepared:
    """A checked input: the file to upload, how many requests it has, and the digest by which it is known again."""

    path: Path
    lines: int
    digest: str


def is_table(path: Path) -> bool:
    """Tell whether a file is one that needs a template."""
    return path.suffix.lower() in _DELIMITERS


@contextmanager
def prepare(path: Path, table: Table | None) -> Iterator[Prepared]:
    """Give a checked input; what was made of a table is gone afterwards.

    Raises:
        InputError: It is not valid; the first `MOST_PROBLEMS` problems are told.
        OSError: It cannot be read.
    """
    if table is None:
        yield _check(path)
        return
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as target:
        for row in read_rows(path, table):
            target.write(json.dumps(render_row(row, table), ensure_ascii=False).encode() + b"\n")
        target.flush()
        yield _check(Path(target.name))


def _check(path: Path) -> Prepared:
    problems: list[LineProblem] = []
    digest = hashlib.sha256()
    reader = LineReader()
    seen: dict[str, int] = {}

    def check(lines: Iterator[RawLine]) -> None:
        for raw in lines:
            try:
                _note(seen, parse_line(raw.text).custom_id, raw.number)
            except InvalidRequestError as error:
                problems.append(LineProblem.of(raw.number, error))

    with path.open("rb") as file:
        while (piece := file.read(_PIECE_BYTES)) and len(problems) < MOST_PROBLEMS:
            digest.update(piece)
            check(reader.feed(piece))
    check(reader.close())
    if not seen and not problems:
        problems.append(LineProblem(None, "empty_file", "there is no request in it", None))
    if problems:
        raise InputError(problems[:MOST_PROBLEMS])
    return Prepared(path, len(seen), digest.hexdigest())


def _note(seen: dict[str, int], custom_id: str, number: int) -> None:
    if (first := seen.setdefault(custom_id, number)) != number:
        raise InvalidRequestError(
            f"Duplicate 'custom_id': '{custom_id[:80]}' is that of line {first}.",
            param="custom_id",
            code="duplicate_custom_id",
        )


@dataclass(frozen=True, slots=True)
class TableRow:
    """A row of a table, the line where it ends, and what its answer is known by."""

    line: int
    custom_id: str
    values: Mapping[str, str]


def read_rows(path: Path, table: Table) -> Iterator[TableRow]:
    """Yield the rows of a table whose first line names its columns.

    Raises:
        InputError: It is no table, or lacks a column that is asked for.
        OSError: It cannot be read.
    """
    csv.field_size_limit(LARGEST_LINE)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter=_DELIMITERS[path.suffix.lower()], strict=True)
        try:
            columns = list(reader.fieldnames or ())
            _check_columns(columns, table)
            for number, row in enumerate(reader, 1):
                if None in row or None in row.values():
                    told = f"the row has not as many fields as there are columns ({len(columns)})"
                    raise InputError([LineProblem(reader.line_num, "invalid_row", told, None)])
                custom_id = f"row-{number}" if table.id_column is None else row[table.id_column]
                yield TableRow(reader.line_num, custom_id, row)
        except (csv.Error, UnicodeDecodeError) as error:
            raise InputError([LineProblem(reader.line_num + 1, "invalid_table", str(error), None)]) from error


def _check_columns(columns: Sequence[str], table: Table) -> None:
    for name in (*fields_of(table.template), *([] if table.id_column is None else [table.id_column])):
        if name not in columns:
            there = ", ".join(columns) or "none"
            told = f"there is no column '{name}'; the columns are: {there}"
            raise InputError([LineProblem(1, "unknown_column", told, None)])


def fields_of(template: str) -> list[str]:
    """Return the columns that a template names.

    Raises:
        InputError: It is not valid.
    """
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise _bad_template(str(error)) from error
    for _, name, spec, conversion in parts:
        if name is not None and (not name or spec or conversion):
            raise _bad_template("a field is a column's name in braces, and '{{' is a brace")
    return [name for _, name, _, _ in parts if name is not None]


def _bad_template(why: str) -> InputError:
    return InputError([LineProblem(None, "invalid_template", f"--template: {why}", None)])


def fill(template: str, values: Mapping[str, str]) -> str:
    """Return a template with the fields of a row."""
    return "".join(
        literal + ("" if name is None else values[name]) for literal, name, _, _ in string.Formatter().parse(template)
    )


def render_row(row: TableRow, table: Table) -> dict[str, Any]:
    """Return the request that a row becomes, as a line of a batch's input."""
    messages = [{"role": "user", "content": fill(table.template, row.values)}]
    if table.system is not None:
        messages.insert(0, {"role": "system", "content": table.system})
    body: dict[str, Any] = {"model": table.model, "messages": messages}
    if table.max_tokens is not None:
        body["max_completion_tokens"] = table.max_tokens
    return {"custom_id": row.custom_id, "method": "POST", "url": ENDPOINT, "body": body}


def write_answers(path: Path, table: Table, outputs: Sequence[IO[bytes]], target: Path) -> None:
    """Write a table again with two columns more, `answer` and `error`, from a batch's output files.

    Those are in the order of the rows, so that neither is held in memory.
    """
    results = [_results(file) for file in outputs]
    waiting = [next(rest, None) for rest in results]
    with target.open("w", encoding="utf-8", newline="") as file:
        writer = None
        for row in read_rows(path, table):
            if writer is None:
                writer = csv.DictWriter(
                    file, [*row.values, "answer", "error"], delimiter=_DELIMITERS[path.suffix.lower()]
                )
                writer.writeheader()
            answer, error = "", "not run"
            for at, result in enumerate(waiting):
                if result is not None and result["custom_id"] == row.custom_id:
                    answer, error = _told(result)
                    waiting[at] = next(results[at], None)
            writer.writerow({**row.values, "answer": answer, "error": error})


def _results(file: IO[bytes]) -> Iterator[dict[str, Any]]:
    for line in file:
        yield json.loads(line)


def _told(result: Mapping[str, Any]) -> tuple[str, str]:
    """Return the answer and the error of a line."""
    response = result["response"]
    if response is None:
        return "", str((result["error"] or {}).get("message", ""))
    if response["status_code"] != 200:
        return "", str(response["body"].get("error", {}).get("message", ""))
    return str(response["body"]["choices"][0]["message"].get("content") or ""), ""
