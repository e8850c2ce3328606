"""Tables (`.csv`, `.tsv`): their rows as requests, and a copy of the table with the answers.

A row becomes a request by a template, whose `{column}` is replaced by the row's cell. Braces in a cell have no meaning.
Rows are lists rather than mappings, as names in a table's header may repeat or be empty.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from headrace.batches.endpoints import DEFAULT_ENDPOINT
from headrace.batches.lines import LARGEST_LINE, LineProblem

_DELIMITERS = {".csv": (",", ";", "\t", "|"), ".tsv": ("\t",)}
_ENCODINGS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_TOKEN = re.compile(r"\{\{|\}\}|\{(?P<field>[^{}]+)\}|[{}]")
_POSITION = re.compile(r"#([1-9][0-9]{0,5})")


class InputError(Exception):
    """The input is not valid. A problem has its line where it concerns one."""

    def __init__(self, problems: Sequence[LineProblem]) -> None:
        """Take the problems that were found; there may be more."""
        self.problems = problems
        super().__init__("; ".join(problem.message for problem in problems))


def _problem(line: int | None, code: str, message: str) -> InputError:
    return InputError([LineProblem(line, code, message, None)])


@dataclass(frozen=True, slots=True)
class Table:
    """How the rows of a table become requests."""

    template: str
    model: str
    system: str | None = None
    max_tokens: int | None = None
    id_column: str | None = None
    delimiter: str | None = None
    """The character between cells, or None for the one that fits the header best."""


def is_table(path: Path) -> bool:
    """Return whether a file is a table by its name."""
    return path.suffix.lower() in _DELIMITERS


# -- reading ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Format:
    """The format of a table's file, so that a copy can have the same."""

    encoding: str
    delimiter: str
    line_end: str


@dataclass(frozen=True, slots=True)
class TableRow:
    """A row of a table, the line where it starts, and the id of its request."""

    line: int
    custom_id: str
    cells: list[str]


def find_format(path: Path, table: Table, kind: str) -> Format:
    """Return the format of a table. `kind` is the suffix of its name, which limits the delimiters.

    Raises:
        InputError: The file is neither UTF-8 nor UTF-16 with a byte order mark.
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(4)
    encoding = next((name for mark, name in _ENCODINGS.items() if start.startswith(mark)), "utf-8")
    try:
        with path.open(encoding=encoding, newline="") as text:
            first = text.readline()
    except UnicodeError:
        raise _bad_encoding(path, encoding) from None
    line_end = "\r\n" if first.endswith("\r\n") else "\n"
    if table.delimiter is not None:
        return Format(encoding, table.delimiter, line_end)
    wanted = {*fields_of(table.template), *filter(None, [table.id_column])}

    def fits(delimiter: str) -> tuple[bool, int]:
        try:
            columns = read_header(path, Format(encoding, delimiter, line_end))
        except InputError:
            return False, 0
        return wanted <= {*columns}, len(columns)

    # If several fit equally well, `max` takes the first, which is the usual one of the suffix.
    best = max(_DELIMITERS[kind], key=fits)
    return Format(encoding, best, line_end)


@contextmanager
def _reading(path: Path, form: Format) -> Iterator[Any]:
    csv.field_size_limit(LARGEST_LINE)
    with path.open(encoding=form.encoding, newline="") as file:
        reader = csv.reader(file, delimiter=form.delimiter, strict=True)
        try:
            yield reader
        except csv.Error as error:
            raise _problem(reader.line_num, "invalid_table", str(error)) from error
        except UnicodeError:
            raise _bad_encoding(path, form.encoding) from None


def _bad_encoding(path: Path, encoding: str) -> InputError:
    message = "it is not valid UTF-16" if encoding == "utf-16" else "it is not UTF-8: save the table as 'CSV UTF-8'"
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return _problem(None if encoding == "utf-16" else number, "invalid_encoding", message)
    return _problem(None, "invalid_encoding", message)


def read_header(path: Path, form: Format) -> list[str]:
    """Return the names of a table's columns.

    Raises:
        InputError: The file is not a valid table.
        OSError: The file cannot be read.
    """
    with _reading(path, form) as reader:
        return list(next(reader, []))


def read_rows(path: Path, table: Table, form: Format) -> Iterator[TableRow]:
    """Yield the rows of a table whose first line names its columns. Blank lines are skipped.

    Raises:
        InputError: The file is not a valid table, or lacks a column of the template.
        OSError: The file cannot be read.
    """
    columns = read_header(path, form)
    for name in fields_of(table.template):
        find_column(columns, name)
    of_id = None if table.id_column is None else find_column(columns, table.id_column)
    number = 0
    with _reading(path, form) as reader:
        next(reader, None)
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader, None)
            except csv.Error as error:
                raise _problem(line, "invalid_table", str(error)) from error
            if cells is None:
                return
            if not cells:
                continue
            if len(cells) != len(columns):
                message = f"the row has {len(cells)} fields, and the header {len(columns)} columns"
                raise _problem(line, "invalid_row", message)
            number += 1
            yield TableRow(line, f"row-{number}" if of_id is None else cells[of_id], cells)


def find_column(columns: Sequence[str], name: str) -> int:
    """Return the index of a column from its name, or from its number such as `#2`.

    Raises:
        InputError: No column has the name, or several columns have it.
    """
    if columns.count(name) == 1:
        return columns.index(name)
    if name in columns:
        places = " and ".join(f"#{at}" for at, column in enumerate(columns, 1) if column == name)
        raise _problem(1, "ambiguous_column", f"several columns are named '{name}': name one by its number, {places}")
    if (found := _POSITION.fullmatch(name)) and int(found[1]) <= len(columns):
        return int(found[1]) - 1
    there = ", ".join(f"'{column}'" for column in columns) or "none"
    raise _problem(1, "unknown_column", f"there is no column '{name}'; the columns are: {there}")


# -- requests ---------------------------------------------------------------------------------------------------------


def _tokens(template: str) -> Iterator[tuple[str, str | None]]:
    """Yield the parts of a template: a literal, and the field after it."""
    at = 0
    for token in _TOKEN.finditer(template):
        literal, at = template[at : token.start()], token.end()
        if token[0] in {"{{", "}}"}:
            yield literal + token[0][0], None
        elif token["field"] is None:
            message = "a field is a column's name in braces, or its number as in {#2}; '{{' is a brace"
            raise _problem(None, "invalid_template", f"--template: {message}")
        else:
            yield literal, token["field"]
    yield template[at:], None


def fields_of(template: str) -> list[str]:
    """Return the columns that a template names.

    Raises:
        InputError: The template is not valid.
    """
    return [field for _, field in _tokens(template) if field is not None]


def fill(template: str, columns: Sequence[str], cells: Sequence[str]) -> str:
    """Return a template filled with the cells of a row."""
    return "".join(
        literal + ("" if field is None else cells[find_column(columns, field)]) for literal, field in _tokens(template)
    )


def render_row(row: TableRow, columns: Sequence[str], table: Table) -> dict[str, Any]:
    """Return the request of a row, as a line of a batch's input."""
    messages = [{"role": "user", "content": fill(table.template, columns, row.cells)}]
    if table.system is not None:
        messages.insert(0, {"role": "system", "content": table.system})
    body: dict[str, Any] = {"model": table.model, "messages": messages}
    if table.max_tokens is not None:
        body["max_completion_tokens"] = table.max_tokens
    return {"custom_id": row.custom_id, "method": "POST", "url": DEFAULT_ENDPOINT, "body": body}


# -- answers ----------------------------------------------------------------------------------------------------------


def write_answers(
    path: Path, table: Table, form: Format, outputs: Sequence[IO[bytes]], target: IO[bytes], *, delimiter: str
) -> None:
    """Write a copy of a table with two more columns for answers and errors, from a batch's output files.

    The output files are in the order of the rows, so neither they nor the table are held in memory. The columns are
    named `answer` and `error`, with a number (`answer_2`) if the table already has such a column.
    """
    results = [_results(file) for file in outputs]
    waiting = [next(rest, None) for rest in results]
    columns = read_header(path, form)
    text = io.TextIOWrapper(target, encoding=form.encoding, errors="replace", newline="")
    writer = csv.writer(_Lines(text, form.line_end), delimiter=delimiter)
    writer.writerow([*columns, _free("answer", columns), _free("error", columns)])
    for row in read_rows(path, table, form):
        answer, error = "", "not run"
        for at, result in enumerate(waiting):
            if result is not None and result["custom_id"] == row.custom_id:
                answer, error = _outcome(result)
                waiting[at] = next(results[at], None)
        writer.writerow([*row.cells, answer, error])
    text.flush()
    text.detach()


class _Lines:
    """A file that gives rows the table's own line end.

    The csv module ends rows with CR LF here, as only then does it quote every cell with a CR or LF.
    """

    def __init__(self, file: io.TextIOWrapper, line_end: str) -> None:
        self._file = file
        self._line_end = line_end

    def write(self, row: str) -> int:
        return self._file.write(row.removesuffix("\r\n") + self._line_end)


def output_delimiter(source: Path, output: Path, form: Format) -> str:
    """Return the delimiter for the table at `output`: that of the source if both have the same suffix."""
    kind = output.suffix.lower()
    return form.delimiter if kind == source.suffix.lower() else _DELIMITERS[kind][0]


def _free(name: str, columns: Sequence[str]) -> str:
    """Return a column name that the table does not have, not even in another case."""
    taken = {column.strip().casefold() for column in columns}
    number = 1
    free = name
    while free in taken:
        number += 1
        free = f"{name}_{number}"
    return free


def _results(file: IO[bytes]) -> Iterator[dict[str, Any]]:
    for line in file:
        yield json.loads(line)


def _outcome(result: Mapping[str, Any]) -> tuple[str, str]:
    """Return the answer and the error of a line."""
    response = result["response"]
    if response is None:
        return "", str((result["error"] or {}).get("message", ""))
    if response["status_code"] != 200:
        return "", str(response["body"].get("error", {}).get("message", ""))
    message = response["body"]["choices"][0]["message"]
    return str(message.get("content") or ""), str(message.get("refusal") or "")
