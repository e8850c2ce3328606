"""The input of `headrace batch run`: a file of requests, checked line by line before it is uploaded."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from headrace.batches.endpoints import DEFAULT_ENDPOINT, ENDPOINTS
from headrace.batches.lines import LineProblem, LineReader, RawLine, parse_line
from headrace.cli.batch_table import Format, InputError, Table, find_format, read_header, read_rows, render_row
from headrace.errors import InvalidRequestError, shorten

# Problems that are reported at most.
MOST_PROBLEMS = 20
# Bytes of the input that are read at a time.
_PIECE_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Rows:
    """A copy of a table from when its requests were made, its format, and the line of each request's row."""

    path: Path
    form: Format
    lines: Sequence[int]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A checked input: the file to upload, its requests, and the digest by which a later run knows it."""

    path: Path
    endpoint: str
    """Of every request."""
    lines: int
    digest: str
    rows: Rows | None = None

    def line_of(self, number: int | None) -> int | None:
        """Return the line in the user's file for a line in the uploaded file."""
        return number if number is None or self.rows is None else self.rows.lines[number - 1]


@contextmanager
def prepare(path: Path, table: Table | None) -> Iterator[Prepared]:
    """Yield a checked input; `-` is standard input. Temporary files are removed afterwards.

    A table is copied, as it is read again for the answers, perhaps a day later. A pipe is copied, as it can be read
    only once.

    Raises:
        InputError: The input is not valid; it has the first `MOST_PROBLEMS` problems.
        OSError: The input cannot be read.
    """
    with ExitStack() as stack:
        source = path
        if table is not None or not path.is_file():
            source = Path(_copy(path, stack.enter_context(tempfile.NamedTemporaryFile())).name)
        if table is None:
            yield _check(source)
            return
        form = find_format(source, table, path.suffix.lower())
        target = stack.enter_context(tempfile.NamedTemporaryFile(suffix=".jsonl"))
        lines = _write_requests(source, form, table, target)
        yield _check(Path(target.name), Rows(source, form, lines))


def _copy(path: Path, target: IO[bytes]) -> IO[bytes]:
    with open(0 if str(path) == "-" else path, "rb", closefd=str(path) != "-") as file:
        shutil.copyfileobj(file, target)
    target.flush()
    return target


def _write_requests(source: Path, form: Format, table: Table, target: IO[bytes]) -> Sequence[int]:
    """Write the request of each row, and return the rows' lines."""
    columns = read_header(source, form)
    lines = array("L")
    for row in read_rows(source, table, form):
        lines.append(row.line)
        target.write(json.dumps(render_row(row, columns, table), ensure_ascii=False).encode() + b"\n")
    target.flush()
    return lines


def _check(path: Path, rows: Rows | None = None) -> Prepared:
    problems: list[LineProblem] = []
    digest = hashlib.sha256()
    reader = LineReader()
    endpoint: str | None = None
    seen: dict[str, int] = {}

    def check(lines: Iterator[RawLine]) -> None:
        nonlocal endpoint
        for raw in lines:
            endpoint = endpoint or _endpoint(raw.text)
            line = raw.number if rows is None else rows.lines[raw.number - 1]
            try:
                _note(seen, parse_line(raw.text, endpoint=endpoint).custom_id, line)
            except InvalidRequestError as error:
                problems.append(LineProblem.of(line, error))

    with path.open("rb") as file:
        while (piece := file.read(_PIECE_BYTES)) and len(problems) < MOST_PROBLEMS:
            digest.update(piece)
            check(reader.feed(piece))
    check(reader.close())
    if not seen and not problems:
        problems.append(LineProblem(None, "empty_file", "the input has no request", None))
    if problems:
        raise InputError(problems[:MOST_PROBLEMS])
    return Prepared(path, endpoint or DEFAULT_ENDPOINT, len(seen), digest.hexdigest(), rows)


def _endpoint(text: bytes | None) -> str:
    """Return the endpoint that the first line names, or the default if it names none that a batch can have."""
    try:
        url = json.loads(text or b"{}")["url"]
    except (ValueError, LookupError, TypeError):
        return DEFAULT_ENDPOINT
    return url if isinstance(url, str) and url in ENDPOINTS else DEFAULT_ENDPOINT


def _note(seen: dict[str, int], custom_id: str, number: int) -> None:
    if (first := seen.setdefault(custom_id, number)) != number:
        raise InvalidRequestError(
            f"Duplicate 'custom_id': '{shorten(custom_id)}' is that of line {first}.",
            param="custom_id",
            code="duplicate_custom_id",
        )
