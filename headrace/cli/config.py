"""`headrace config`: what is wrong in headrace.toml."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from headrace.catalogue import ConfigurationError, read_catalogue
from headrace.cli.operators import json_option
from headrace.settings import Settings


@click.group()
def config() -> None:
    """Look at the configuration file."""


@config.command()
@click.argument("path", type=click.Path(path_type=Path), required=False)
@json_option
@click.pass_obj
def check(settings: Settings, path: Path | None, as_json: bool) -> None:
    """Tell all that is wrong in the file at PATH, or in the one that would be used, each with its line.

    Exits with 1 if the file is not valid, with 2 if it cannot be read. A warning is no error.
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
