"""`headrace config`: checks headrace.toml, and compares the configuration of running processes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click
from rich.table import Table

from headrace.catalogue.load import ConfigurationError, read_catalogue
from headrace.cli.operators import with_database
from headrace.cli.printing import cell, json_option, moment, show
from headrace.settings import Settings


@click.group()
def config() -> None:
    """Check and compare the configuration."""


@config.command()
@click.argument("path", type=click.Path(path_type=Path), required=False)
@json_option
@click.pass_obj
def check(settings: Settings, path: Path | None, as_json: bool) -> None:
    """Show the problems of the file at PATH, or of the file that the service would use, each with its line.

    The exit code is 1 if the file is not valid, 2 if it cannot be read. Warnings leave it at 0.
    """
    path = path or settings.config or Path("headrace.toml")
    try:
        catalogue, problems = read_catalogue(path)
    except ConfigurationError as error:
        raise click.UsageError(str(error)) from error
    if as_json:
        rows = [
            {
                "line": problem.line,
                "column": problem.column,
                "path": problem.path,
                "message": problem.message,
                "suggestion": problem.suggestion,
                "warning": not problem.fatal,
            }
            for problem in problems
        ]
        click.echo(json.dumps({"file": str(path), "valid": catalogue is not None, "problems": rows}))
    else:
        for problem in problems:
            click.echo(problem.render(path))
        if catalogue is not None:
            click.echo(f"{path}: {len(catalogue.providers)} providers, {len(catalogue.models)} models")
    sys.exit(catalogue is None)


@config.command()
@json_option
@click.pass_obj
def compare(settings: Settings, as_json: bool) -> None:
    """Show the running processes with digests of their configuration and secret key, which should be equal.

    The exit code is 1 if they differ. A process that was killed is shown for two and a half minutes more.
    """
    from headrace.runtime.fingerprints import read_fingerprints

    rows = with_database(settings, read_fingerprints)
    configurations = {row.configuration for row in rows}
    secret_keys = {row.secret_key for row in rows if row.secret_key is not None}
    if as_json:
        click.echo(json.dumps([row._asdict() for row in rows]))
    else:
        table = Table("part", "process", "configuration", "secret key", "last seen", box=None)
        for row in rows:
            table.add_row(row.part, cell(row.process), row.configuration, row.secret_key or "", moment(row.seen_at))
        show(table)
    sys.exit(len(configurations) > 1 or len(secret_keys) > 1)
