"""`headrace providers`: checks that the providers work."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys

import click
from rich.table import Column, Table

from headrace.catalogue.demo import DEMO, with_demo
from headrace.catalogue.load import load_catalogue
from headrace.cli.parts import plain_errors
from headrace.cli.printing import cell, json_option, show
from headrace.settings import Settings


@click.group()
def providers() -> None:
    """Check the providers of the configuration."""


@providers.command()
@click.argument("names", nargs=-1)
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), default=60, show_default=True, help="Seconds.")
@json_option
@click.pass_obj
def check(settings: Settings, names: tuple[str, ...], timeout: float, as_json: bool) -> None:
    """Call each provider once, or only the providers of NAMES, and show which work. It costs a few tokens each.

    A NAME is that of a provider, or PROVIDER/MODEL. The exit code is 1 if a provider does not work.
    """
    with plain_errors():
        catalogue = load_catalogue(settings.config)
    if not catalogue.providers and settings.demo:
        catalogue, names = with_demo(catalogue), names or (DEMO,)  # the other demo models fail on purpose
    for name in names:
        if name.partition("/")[0] not in catalogue.providers:
            raise click.UsageError(
                f"Provider '{name.partition('/')[0]}' does not exist; these do: {', '.join(catalogue.providers)}."
            )
    from headrace.providers.check import check_providers

    checks = asyncio.run(check_providers(catalogue, names, patience=timeout))
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(check) for check in checks]))
    else:
        table = Table("provider", "format", "model", "result", Column("time", justify="right"), box=None)
        for result in checks:
            verdict = result.problem or result.unchecked or f"works, {result.tokens or '?'} tokens"
            seconds = "" if result.seconds is None else f"{result.seconds:.2f} s"
            table.add_row(cell(result.provider), result.kind, cell(result.model or ""), cell(verdict), seconds)
        show(table)
    sys.exit(any(result.problem is not None for result in checks))
