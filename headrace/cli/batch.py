"""`headrace batch`: batches of requests from files and tables, as a client of any Headrace."""

from __future__ import annotations

import contextlib
import errno
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import IO, Any, NoReturn, TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, Task, TextColumn, TransferSpeedColumn
from rich.table import Column
from rich.table import Table as RichTable
from rich.text import Text

from headrace.cli.batch_client import FINAL, BatchClient
from headrace.cli.batch_input import Prepared, Rows, prepare
from headrace.cli.batch_output import STANDARD_OUTPUT, check_outputs, descriptor_of, written
from headrace.cli.batch_table import InputError, Table, is_table, output_delimiter, write_answers
from headrace.cli.operators import cell, json_option, show

Command = TypeVar("Command", bound=Callable[..., Any])

_OUTPUT = click.Path(dir_okay=False, allow_dash=True, path_type=Path)
_DELIMITER_NAMES = {"\\t": "\t", "tab": "\t"}
_DIGEST = "headrace_input"
_INTERRUPTED = 130
_BAD_INPUT = 2


def _server_options(command: Command) -> Command:
    command = click.option(
        "--url",
        envvar="HEADRACE_URL",
        show_envvar=True,
        default="http://127.0.0.1:8700",
        show_default=True,
        help="The server.",
    )(command)
    return click.option("--key", envvar="HEADRACE_API_KEY", show_envvar=True, required=True, help="Your API key.")(
        command
    )


@contextlib.contextmanager
def _connected(url: str, key: str) -> Iterator[BatchClient]:
    client = BatchClient(url, key, say=_say)
    try:
        yield client
    finally:
        client.close()


def _say(text: str) -> None:
    click.echo(text, err=True)


@click.group()
def batch() -> None:
    """Run thousands of requests from a file, and fetch what came of them."""


# -- run --------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Run:
    """One `headrace batch run`: what to do about a batch, and what to say of it."""

    file: Path
    output: Path
    errors: Path
    table: Table | None
    window: str
    metadata: dict[str, str]
    as_json: bool
    batch_id: str | None = None
    prepared: Prepared | None = None
    console: Console = field(default_factory=lambda: Console(stderr=True, highlight=False))

    def find(self, client: BatchClient, prepared: Prepared) -> dict[str, Any] | None:
        """Return the batch of an earlier run with the same input, if it is of any use."""
        page = client.get("/batches", {f"metadata[{_DIGEST}]": prepared.digest, "limit": 20})
        for found in page["data"]:
            if found["status"] in {"validating", "in_progress", "finalizing", "completed"}:
                earlier: dict[str, Any] = found
                return earlier
        return None

    def submit(self, client: BatchClient, prepared: Prepared) -> dict[str, Any]:
        """Upload the input and start a batch of it."""
        size = prepared.path.stat().st_size
        with Progress(
            TextColumn("Uploading"), BarColumn(), DownloadColumn(), _SpeedColumn(), console=self._bars()
        ) as progress:
            task = progress.add_task("", total=size)
            name = "stdin.jsonl" if str(self.file) == "-" else f"{self.file.stem}.jsonl"
            file_id = client.upload(prepared.path, name, lambda read: progress.update(task, completed=read))
        return client.post(
            "/batches",
            {
                "input_file_id": file_id,
                "endpoint": "/v1/chat/completions",
                "completion_window": self.window,
                "metadata": {**self.metadata, _DIGEST: prepared.digest},
            },
        )

    def _bars(self) -> Console:
        """Return where bars are drawn: nowhere, where nobody looks."""
        return self.console if self.console.is_terminal and not self.as_json else Console(quiet=True)

    def watch(self, client: BatchClient, batch_id: str) -> dict[str, Any]:
        """Show how far a batch is until it has ended, and return it."""
        return _watch(client, batch_id, self._bars())

    def outputs(self) -> dict[str, Path]:
        """Return where results go, by the options. A table is written with the errors in it."""
        if self.table is not None and is_table(self.output):
            return {"--output": self.output}
        return {"--output": self.output, "--errors": self.errors}

    def save(self, client: BatchClient, prepared: Prepared, ended: dict[str, Any]) -> dict[str, str | None]:
        """Write what came of a batch to where it was asked for, each file whole or not at all."""
        if self.table is not None and prepared.rows is not None and is_table(self.output):
            return {"output": self._save_table(client, ended, self.table, prepared.rows), "errors": None}
        return {
            "output": _save(client, ended["output_file_id"], self.output),
            "errors": _save(client, ended["error_file_id"], self.errors),
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


@batch.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path))
@click.option("-o", "--output", type=_OUTPUT, help="Default: FILE with .out.jsonl; - is standard output.")
@click.option("--errors", type=_OUTPUT, help="Default: FILE with .errors.jsonl.")
@click.option("--template", help="Of a table: the prompt, with columns in braces, as in 'Summarise: {text}' or '{#2}'.")
@click.option("--model", help="Of a table: the model to ask.")
@click.option("--system", help="Of a table: what the model is told before.")
@click.option("--max-tokens", type=click.IntRange(1), help="Of a table: the longest answer.")
@click.option("--id-column", help="Of a table: the column with each row's name. Default: row-1, row-2 …")
@click.option("--delimiter", help="Of a table: what divides its cells. Default: found from the header.")
@click.option("--window", default="24h", show_default=True, help="How long it may take: 30m, 6h, 7d.")
@click.option("--metadata", multiple=True, metavar="KEY=VALUE", help="To find the batch by (repeatable).")
@click.option("--new", is_flag=True, help="Submit, even if the same input was submitted before.")
@_server_options
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
    """Run every request of FILE, a .jsonl or a table (.csv, .tsv), and save what came of it.

    FILE may be a pipe, or - for standard input; then say with --output and --errors where results go. With --output as
    a .csv or .tsv, a table is written again with two more columns, answer and error. Results replace a file when all of
    them are written.

    Ctrl-C leaves the batch running. The same command again goes on watching it, and submits nothing twice.

    It exits with 0 if every request was answered, 1 if not, 2 if FILE or an option is not valid.
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
        with prepare(file, table) as prepared, _connected(url, key) as client:
            ended, paths = _run(task, client, prepared, new=new)
    except InputError as error:
        _refuse(file, error)
    except OSError as error:
        _fail(task, error)
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
        _say(f"{done} {current['id']}.")
    ended = task.watch(client, current["id"])
    return ended, task.save(client, prepared, ended)


def _check_places(task: _Run, *, given: bool) -> None:
    """Check where results go, before anything is sent."""
    outputs = task.outputs()
    if not task.file.is_file() and not given and "--errors" in outputs:
        raise click.UsageError(f"'{task.file}' is no regular file: say with --output and --errors where results go.")
    if task.as_json and STANDARD_OUTPUT in map(descriptor_of, outputs.values()):
        raise click.UsageError("--json prints to standard output: let results go to a file.")
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
        _say(cell(f"{_place(file, problem.line)}: {problem.message}").plain)
    _say("Nothing was submitted.")
    sys.exit(_BAD_INPUT)


def _fail(task: _Run, error: OSError) -> NoReturn:
    if error.errno == errno.EPIPE:
        raise error  # click ends the command as the reader of its output has ended
    told = f"{error.filename or task.file}: {error.strerror or error}"
    if task.batch_id is not None:
        told += f"\nThe results are kept: headrace batch results {task.batch_id} -o FILE"
    raise click.ClickException(told) from error


def _leave(task: _Run) -> NoReturn:
    if task.batch_id is None:
        _say("\nNothing was submitted.")
    else:
        _say(
            f"\n{task.batch_id} runs on. To come back, run the same command again, or:\n"
            f"  headrace batch show --follow {task.batch_id}\n"
            f"  headrace batch results {task.batch_id} -o {task.output}\n"
            f"  headrace batch cancel {task.batch_id}"
        )
    sys.exit(_INTERRUPTED)


def _report(task: _Run, ended: dict[str, Any], paths: dict[str, str | None]) -> None:
    if task.as_json:
        click.echo(json.dumps({**ended, **paths}))
        return
    _say(_summary(ended))
    for problem in (ended["errors"] or {"data": []})["data"]:
        line = problem["line"] if task.prepared is None else task.prepared.line_of(problem["line"])
        _say(cell(f"{_place(task.file, line)}: {problem['message']}").plain)
    for name, path in paths.items():
        if path is not None:
            _say(f"{name}: {path}")


def _summary(found: dict[str, Any]) -> str:
    counts, usage = found["request_counts"], found["usage"]
    end = next((found[name] for name in ("completed_at", "expired_at", "cancelled_at") if found[name]), None)
    seconds = f" in {_duration(end - found['created_at'])}" if end else ""
    cost = f", {found['cost']} USD" if found["cost"] is not None else ""
    return (
        f"{found['id']} {found['status']}{seconds}: {counts['completed']:,} of {counts['total']:,} answered, "
        f"{counts['failed']:,} failed; {usage['input_tokens']:,} tokens in, {usage['output_tokens']:,} out{cost}"
    )


def _save(client: BatchClient, file_id: str | None, path: Path) -> str | None:
    if file_id is None:
        return None
    with written(path) as target:
        client.download(file_id, target)
    return str(path)


# -- progress ---------------------------------------------------------------------------------------------------------


class _SpeedColumn(TransferSpeedColumn):
    """The speed, once it is known: a small file is sent before it is."""

    def render(self, task: Task) -> Text:
        return Text() if task.finished_speed is None and task.speed is None else super().render(task)


def _watch(client: BatchClient, batch_id: str, console: Console) -> dict[str, Any]:
    last: dict[str, Any] = {}
    columns = (
        TextColumn("{task.fields[status]}"),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[told]}", table_column=Column(no_wrap=True)),
    )
    with Progress(*columns, console=console, expand=True) as progress:
        task = progress.add_task("", total=None, status="", told="")
        for last in client.watch(batch_id):
            counts = last["request_counts"]
            progress.update(
                task,
                total=counts["total"] or None,
                completed=counts["completed"] + counts["failed"],
                status=last["status"],
                told=progress_text(last),
            )
    return last


def progress_text(progress: dict[str, Any]) -> str:
    """Return how far a batch is, as the line beside its bar says it."""
    counts = progress["request_counts"]
    ended = counts["completed"] + counts["failed"]
    parts = [f"{counts['completed']:,}/{counts['total']:,}"]
    if counts["failed"]:
        parts.append(f"{counts['failed']:,} failed")
    if pace := progress.get("requests_per_second"):
        parts += [f"{pace:,.0f} req/s", f"{progress['tokens_per_second']:,.0f} tok/s"]
    if (cost := progress.get("cost")) is not None and ended:
        spent = Decimal(cost)
        whole = spent / ended * counts["total"]
        parts.append(f"{spent:.4f} USD" if ended == counts["total"] else f"{spent:.4f} of about {whole:.4f} USD")
    if (seconds := progress.get("seconds_left")) is not None:
        parts.append(f"{_duration(seconds)} left")
    return " · ".join(parts)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


# -- list, show, cancel, results --------------------------------------------------------------------------------------


@batch.command(name="list")
@click.option("--limit", type=click.IntRange(1, 100), default=20, show_default=True, help="At most so many.")
@_server_options
@json_option
def list_(url: str, key: str, limit: int, as_json: bool) -> None:
    """List your batches, newest first."""
    with _connected(url, key) as client:
        found = client.get("/batches", {"limit": limit})["data"]
    if as_json:
        click.echo(json.dumps(found))
        return
    table = RichTable(
        Column("id", no_wrap=True),
        "model",
        "status",
        Column("done", justify="right"),
        Column("failed", justify="right"),
        Column("total", justify="right"),
        Column("created", no_wrap=True),
        Column("cost, USD", justify="right"),
        box=None,
        header_style="bold",
    )
    for one in found:
        counts = one["request_counts"]
        table.add_row(
            cell(one["id"]),
            cell(one["model"] or ""),
            cell(one["status"]),
            f"{counts['completed']:,}",
            f"{counts['failed']:,}",
            f"{counts['total']:,}",
            f"{datetime.fromtimestamp(one['created_at'], UTC):%Y-%m-%d %H:%M:%S}",
            cell(one["cost"] or ""),
        )
    show(table)


@batch.command(name="show")
@click.argument("batch_id")
@click.option("--follow", is_flag=True, help="Watch it to its end.")
@_server_options
@json_option
def show_(url: str, key: str, batch_id: str, follow: bool, as_json: bool) -> None:
    """Show a batch."""
    with _connected(url, key) as client:
        found = client.get(f"/batches/{batch_id}")
        if follow and found["status"] not in FINAL:
            console = Console(stderr=True, highlight=False)
            found = _watch(client, batch_id, console if console.is_terminal else Console(quiet=True))
    if as_json:
        click.echo(json.dumps(found))
        return
    table = RichTable("", "", box=None, show_header=False)
    for name, value in found.items():
        if value is None or name == "object":
            continue
        shown = f"{datetime.fromtimestamp(value, UTC):%Y-%m-%d %H:%M:%S}" if name.endswith("_at") else value
        table.add_row(name, cell(json.dumps(shown, ensure_ascii=False) if isinstance(shown, dict) else shown))
    show(table)


@batch.command()
@click.argument("batch_id")
@_server_options
@json_option
def cancel(url: str, key: str, batch_id: str, as_json: bool) -> None:
    """Run no more of a batch. What is done can be fetched."""
    with _connected(url, key) as client:
        found = client.post(f"/batches/{batch_id}/cancel")
    click.echo(json.dumps(found) if as_json else f"{found['id']} is {found['status']}.")


@batch.command()
@click.argument("batch_id")
@click.option("-o", "--output", type=_OUTPUT, help="Default: standard output.")
@click.option("--errors", type=_OUTPUT, help="Where lines without an answer go.")
@click.option("--follow", is_flag=True, help="Go on until the batch has ended.")
@_server_options
def results(*, url: str, key: str, batch_id: str, output: Path | None, errors: Path | None, follow: bool) -> None:
    """Fetch what has come of a batch: of one that runs, what there is by now, in the order in which it came."""
    check_outputs({option: path for option, path in (("--output", output), ("--errors", errors)) if path is not None})
    try:
        with _connected(url, key) as client:
            found = client.get(f"/batches/{batch_id}")
            if found["status"] in FINAL and output is not None:
                _save(client, found["output_file_id"], output)
                if errors is not None:
                    _save(client, found["error_file_id"], errors)
                _say(_summary(found))
                return
            began = time.monotonic()
            answered, failed = _write_results(client.results(batch_id, follow=follow), output, errors)
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise
        raise click.ClickException(f"{error.filename}: {error.strerror}") from error
    _say(f"{answered:,} answers and {failed:,} errors in {_duration(time.monotonic() - began)}.")


def _write_results(lines: Iterator[dict[str, Any]], output: Path | None, errors: Path | None) -> tuple[int, int]:
    """Write results where they belong, and return how many answers and errors there were."""
    counts = [0, 0]
    with contextlib.ExitStack() as stack:
        answers = stack.enter_context(written(output or Path("-")))
        streams = [answers, None if errors is None else stack.enter_context(written(errors))]
        for line in lines:
            response = line["response"]
            at = 0 if response is not None and response["status_code"] == 200 else 1
            counts[at] += 1
            if (stream := streams[at]) is not None:
                # Half of a surrogate pair, which UTF-8 lacks, is written as the escape that JSON has for it.
                stream.write((json.dumps(line, ensure_ascii=False) + "\n").encode(errors="backslashreplace"))
                stream.flush()
    return counts[0], counts[1]
