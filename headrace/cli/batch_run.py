"""`headrace batch run`: submits a file or a table as a batch, waits for its end, and saves the results."""

from __future__ import annotations

import contextlib
import errno
import json
import signal
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

import click

from headrace.cli.batch_client import BatchClient, ServerError
from headrace.cli.batch_input import Prepared, Rows, prepare
from headrace.cli.batch_output import OUTPUT_PATH, STANDARD_OUTPUT, check_outputs, descriptor_of, save, written
from headrace.cli.batch_progress import bars, summary, upload, watch
from headrace.cli.batch_table import InputError, Table, is_table, output_delimiter, write_answers
from headrace.cli.printing import cell, json_option
from headrace.cli.server import connected, say, server_options

_DELIMITER_NAMES = {"\\t": "\t", "tab": "\t"}
# The metadata key with the digest of a batch's input, by which a later run finds the batch.
_DIGEST = "headrace_input"
# Exit codes.
_INTERRUPTED = 130
_BAD_INPUT = 2
# Problems of a refused input that are printed.
_PROBLEMS = 10


@dataclass(slots=True)
class _Run:
    """One `headrace batch run`: its options, and the batch once it is known."""

    file: Path
    output: Path
    errors: Path
    table: Table | None
    window: str
    metadata: dict[str, str]
    as_json: bool
    batch_id: str | None = None
    has_ended: bool = False
    prepared: Prepared | None = None

    def find(self, client: BatchClient, prepared: Prepared) -> dict[str, Any] | None:
        """Return the batch of an earlier run with the same input, if it is under way or completed."""
        page = client.get("/batches", {f"metadata[{_DIGEST}]": prepared.digest, "limit": 20})
        for found in page["data"]:
            if found["status"] in {"validating", "in_progress", "finalizing", "completed"}:
                earlier: dict[str, Any] = found
                return earlier
        return None

    def submit(self, client: BatchClient, prepared: Prepared) -> dict[str, Any]:
        """Upload the input and start a batch of it."""
        name = "stdin.jsonl" if str(self.file) == "-" else f"{self.file.stem}.jsonl"
        file_id = upload(client, prepared.path, name, bars(hidden=self.as_json))
        return client.post(
            "/batches",
            {
                "input_file_id": file_id,
                "endpoint": prepared.endpoint,
                "completion_window": self.window,
                "metadata": {**self.metadata, _DIGEST: prepared.digest},
            },
        )

    def way_back(self) -> str:
        """Return how to come back to the batch, which runs on without the command and keeps its results."""
        if self.has_ended:
            return f"The results are kept: headrace batch results {self.batch_id} -o FILE"
        return (
            f"{self.batch_id} keeps running. To come back, run the same command again, or:\n"
            f"  headrace batch show --follow {self.batch_id}\n"
            f"  headrace batch results {self.batch_id} -o {self.output}\n"
            f"  headrace batch cancel {self.batch_id}"
        )

    def outputs(self) -> dict[str, Path]:
        """Return the files of the results by their options. A table has the errors in it."""
        if self.table is not None and is_table(self.output):
            return {"--output": self.output}
        return {"--output": self.output, "--errors": self.errors}

    def save(self, client: BatchClient, prepared: Prepared, ended: dict[str, Any]) -> dict[str, str | None]:
        """Write the results of a batch, each file whole or not at all. Returns the paths.

        A batch that failed has none: its input was refused. The files of an earlier batch stay.
        """
        if ended["status"] == "failed":
            return {}
        if self.table is not None and prepared.rows is not None and is_table(self.output):
            return {"output": self._save_table(client, ended, self.table, prepared.rows), "errors": None}
        return {
            "output": save(client, ended, "output_file_id", self.output),
            "errors": save(client, ended, "error_file_id", self.errors),
        }

    def _save_table(self, client: BatchClient, ended: dict[str, Any], table: Table, rows: Rows) -> str:
        with contextlib.ExitStack() as stack:
            files: list[IO[bytes] | None] = []
            for name in ("output_file_id", "error_file_id"):
                file = None
                if ended[name] is not None:
                    file = stack.enter_context(tempfile.TemporaryFile())
                    client.download(ended[name], file)
                    file.seek(0)
                files.append(file)
            delimiter = output_delimiter(self.file, self.output, rows.form)
            answers = [file for file in files if file is not None]
            with written(self.output) as target:
                write_answers(rows.path, table, rows.form, answers, target, delimiter=delimiter)
        return str(self.output)


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path))
@click.option("-o", "--output", type=OUTPUT_PATH, help="Default: FILE with .out.jsonl; - is standard output.")
@click.option("--errors", type=OUTPUT_PATH, help="Default: FILE with .errors.jsonl.")
@click.option("--template", help="For a table: the prompt, columns in braces, as in 'Summarise: {text}' or '{#2}'.")
@click.option("--model", help="For a table: the model.")
@click.option("--system", help="For a table: the system message.")
@click.option("--max-tokens", type=click.IntRange(1), help="For a table: the longest answer, in tokens.")
@click.option("--id-column", help="For a table: the column with each row's id. Default: row-1, row-2 …")
@click.option("--delimiter", help="For a table: the character between cells. Default: found from the header.")
@click.option("--window", default="24h", show_default=True, help="How long the batch may take: 30m, 6h, 7d.")
@click.option("--metadata", multiple=True, metavar="KEY=VALUE", help="The batch's metadata (repeatable).")
@click.option("--new", is_flag=True, help="Submit the input even if it was submitted before.")
@server_options
@json_option
def run(
    *,
    url: str,
    key: str,
    file: Path,
    output: Path | None,
    errors: Path | None,
    template: str | None,
    model: str | None,
    system: str | None,
    max_tokens: int | None,
    id_column: str | None,
    delimiter: str | None,
    window: str,
    metadata: tuple[str, ...],
    new: bool,
    as_json: bool,
) -> None:
    """Run every request of FILE, a .jsonl or a table (.csv, .tsv), and save the results.

    All lines of a .jsonl have one `url`, which is the batch's endpoint.

    FILE may be a pipe, or - for standard input; --output and --errors then have to name the files of the results. If
    --output is a .csv or .tsv, it gets the table with two more columns, answer and error. The results replace an
    existing file when all of them are written. A file for which the batch has no results is removed.

    Ctrl-C leaves the batch running. The same command then watches it again, and submits nothing twice.

    The exit code is 0 if every request was answered, 1 if not, 2 if FILE or an option is not valid.
    """
    table = _table(
        file, template, model, system=system, max_tokens=max_tokens, id_column=id_column, delimiter=delimiter
    )
    task = _Run(
        file=file,
        output=output or file.with_suffix(".out.jsonl"),
        errors=errors or file.with_suffix(".errors.jsonl"),
        table=table,
        window=window,
        metadata=dict(map(_pair, metadata)),
        as_json=as_json,
    )
    _check_places(task, given=output is not None and errors is not None)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with prepare(file, table) as prepared, connected(url, key) as client:
            ended, paths = _run(task, client, prepared, new=new)
    except InputError as error:
        _refuse(file, error)
    except OSError as error:
        _fail(task, error)
    except ServerError as error:
        _give_up(task, error)
    except KeyboardInterrupt:
        _leave(task)
    _report(task, ended, paths)
    good = ended["status"] == "completed" and not ended["request_counts"]["failed"]
    sys.exit(0 if good else 1)


def _run(
    task: _Run, client: BatchClient, prepared: Prepared, *, new: bool
) -> tuple[dict[str, Any], dict[str, str | None]]:
    found = None if new else task.find(client, prepared)
    current = found or task.submit(client, prepared)
    task.batch_id = current["id"]
    task.prepared = prepared
    if not task.as_json:
        done = "Going on with" if found else f"Submitted {prepared.lines:,} requests as"
        say(f"{done} {current['id']}.")
    ended = watch(client, current["id"], bars(hidden=task.as_json))
    task.has_ended = True
    return ended, task.save(client, prepared, ended)


def _check_places(task: _Run, *, given: bool) -> None:
    """Check that the results can be written, before anything is sent."""
    outputs = task.outputs()
    if not task.file.is_file() and not given and "--errors" in outputs:
        raise click.UsageError(f"'{task.file}' is not a regular file: name the results with --output and --errors.")
    if task.as_json and STANDARD_OUTPUT in map(descriptor_of, outputs.values()):
        raise click.UsageError("--json prints to standard output, so results have to go to files.")
    check_outputs(outputs, task.file)


def _table(file: Path, template: str | None, model: str | None, **options: Any) -> Table | None:
    if is_table(file):
        if template is None or model is None:
            raise click.UsageError("A table needs --template and --model.")
        if (delimiter := options["delimiter"]) is not None:
            options["delimiter"] = delimiter = _DELIMITER_NAMES.get(delimiter, delimiter)
            if len(delimiter) != 1 or delimiter in '"\r\n':
                raise click.UsageError("--delimiter is one character, or \\t for a tab.")
        return Table(template, model, **options)
    if template is not None or model is not None or any(value is not None for value in options.values()):
        raise click.UsageError(
            "--template, --model, --system, --max-tokens, --id-column and --delimiter are for tables."
        )
    return None


def _pair(text: str) -> tuple[str, str]:
    name, found, value = text.partition("=")
    if not found or not name:
        raise click.UsageError(f"--metadata is KEY=VALUE, not '{text}'.")
    return name, value


def _place(file: Path, line: int | None) -> str:
    return str(file) if line is None else f"{file}:{line}"


def _refuse(file: Path, error: InputError) -> NoReturn:
    for problem in error.problems:
        say(cell(f"{_place(file, problem.line)}: {problem.message}").plain)
    say("Nothing was submitted.")
    sys.exit(_BAD_INPUT)


def _fail(task: _Run, error: OSError) -> NoReturn:
    if error.errno == errno.EPIPE:
        raise error  # click ends the command, as the reader of its output has ended
    message = f"{error.filename or task.file}: {error.strerror or error}"
    if task.batch_id is not None:
        message += f"\n{task.way_back()}"
    raise click.ClickException(message) from error


def _give_up(task: _Run, error: ServerError) -> NoReturn:
    if task.batch_id is None:
        raise error
    raise ServerError(f"{error.message}\n{task.way_back()}") from error


def _leave(task: _Run) -> NoReturn:
    say("\nNothing was submitted." if task.batch_id is None else f"\n{task.way_back()}")
    sys.exit(_INTERRUPTED)


def _report(task: _Run, ended: dict[str, Any], paths: dict[str, str | None]) -> None:
    if task.as_json:
        click.echo(json.dumps({**ended, **paths}))
        return
    if ended["status"] == "failed":
        _tell_refusal(task, ended)
        return
    say(summary(ended))
    for name, path in paths.items():
        if path is not None:
            say(f"{name}: {path}")


def _tell_refusal(task: _Run, ended: dict[str, Any]) -> None:
    """Say why a batch was not started, with the line and the field of each problem."""
    say(f"{ended['id']} is not started: the input is not valid.")
    problems = (ended["errors"] or {"data": []})["data"]
    for problem in problems[:_PROBLEMS]:
        line = problem["line"] if task.prepared is None else task.prepared.line_of(problem["line"])
        parts = [_place(task.file, line), problem["param"], problem["message"]]
        say(cell(": ".join(part for part in parts if part is not None)).plain)
    if (more := len(problems) - _PROBLEMS) > 0:
        say(f"{more:,} more: headrace batch show {ended['id']}")
