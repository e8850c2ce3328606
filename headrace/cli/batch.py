"""`headrace batch`: batches of requests from files and tables, as a client of any Headrace."""

from __future__ import annotations

import contextlib
import errno
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from rich.table import Column, Table

from headrace.cli.batch_client import FINAL
from headrace.cli.batch_output import OUTPUT_PATH, check_outputs, save, written
from headrace.cli.batch_progress import bars, duration, summary, watch
from headrace.cli.batch_run import run
from headrace.cli.printing import cell, json_option, moment, show, show_fields
from headrace.cli.server import connected, say, server_options


@click.group()
def batch() -> None:
    """Run thousands of requests from a file, and fetch the results."""


batch.add_command(run)


@batch.command(name="list")
@click.option("--limit", type=click.IntRange(1, 100), default=20, show_default=True, help="Batches to list at most.")
@server_options
@json_option
def list_(url: str, key: str, limit: int, as_json: bool) -> None:
    """List your batches, newest first."""
    with connected(url, key) as client:
        found = client.get("/batches", {"limit": limit})["data"]
    if as_json:
        click.echo(json.dumps(found))
        return
    table = Table(
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
            moment(one["created_at"]),
            cell(one["cost"] or ""),
        )
    show(table)


@batch.command(name="show")
@click.argument("batch_id")
@click.option("--follow", is_flag=True, help="Watch the batch until it ends.")
@server_options
@json_option
def show_(url: str, key: str, batch_id: str, follow: bool, as_json: bool) -> None:
    """Show a batch."""
    with connected(url, key) as client:
        found = client.get(f"/batches/{batch_id}")
        if follow and found["status"] not in FINAL:
            found = watch(client, batch_id, bars())
    if as_json:
        click.echo(json.dumps(found))
        return
    show_fields(found)


@batch.command()
@click.argument("batch_id")
@server_options
@json_option
def cancel(url: str, key: str, batch_id: str, as_json: bool) -> None:
    """Cancel a batch. The results of its ended requests can still be fetched."""
    with connected(url, key) as client:
        found = client.post(f"/batches/{batch_id}/cancel")
    click.echo(json.dumps(found) if as_json else f"{found['id']} is {found['status']}.")


@batch.command()
@click.argument("batch_id")
@click.option("-o", "--output", type=OUTPUT_PATH, help="Default: standard output.")
@click.option("--errors", type=OUTPUT_PATH, help="File for requests without an answer.")
@click.option("--follow", is_flag=True, help="Go on until the batch has ended.")
@server_options
def results(*, url: str, key: str, batch_id: str, output: Path | None, errors: Path | None, follow: bool) -> None:
    """Fetch the results of a batch. A running batch has those so far, in the order in which its requests ended.

    The results replace an existing file. If the batch has ended already, a file for which it has no results is removed.
    """
    check_outputs({option: path for option, path in (("--output", output), ("--errors", errors)) if path is not None})
    try:
        with connected(url, key) as client:
            found = client.get(f"/batches/{batch_id}")
            if found["status"] in FINAL and output is not None:
                save(client, found, "output_file_id", output)
                if errors is not None:
                    save(client, found, "error_file_id", errors)
                say(summary(found))
                return
            began = time.monotonic()
            answered, failed = _write_results(client.results(batch_id, follow=follow), output, errors)
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise
        raise click.ClickException(f"{error.filename}: {error.strerror}") from error
    say(f"{answered:,} answers and {failed:,} errors in {duration(time.monotonic() - began)}.")


def _write_results(lines: Iterator[dict[str, Any]], output: Path | None, errors: Path | None) -> tuple[int, int]:
    """Write answers and errors to their files, and return how many of each there were."""
    counts = [0, 0]
    with contextlib.ExitStack() as stack:
        answers = stack.enter_context(written(output or Path("-")))
        streams = [answers, None if errors is None else stack.enter_context(written(errors))]
        for line in lines:
            response = line["response"]
            at = 0 if response is not None and response["status_code"] == 200 else 1
            counts[at] += 1
            if (stream := streams[at]) is not None:
                # UTF-8 has no half of a surrogate pair: it is written as JSON's escape.
                stream.write((json.dumps(line, ensure_ascii=False) + "\n").encode(errors="backslashreplace"))
                stream.flush()
    return counts[0], counts[1]
