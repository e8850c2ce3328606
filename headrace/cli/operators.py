"""What operators' commands share: the database connection, and printing."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import TypeVar

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from headrace.cli.parts import plain_errors
from headrace.dev.embedded import locate
from headrace.settings import Settings
from headrace.stores.database import Database

Result = TypeVar("Result")

# Columns of a table that does not go to a terminal, so that no cell is cut.
_WIDE = 200

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")


def with_database(settings: Settings, work: Callable[[Database], Awaitable[Result]]) -> Result:
    """Connect to the database of the settings, do some work, and disconnect."""

    async def connected() -> Result:
        database = Database.connect(locate(settings, redis=False).database_url)
        try:
            return await work(database)
        finally:
            await database.close()

    with plain_errors():
        return asyncio.run(connected())


def cell(text: object) -> Text:
    """Return foreign text in a form that a table can show: without effect of rich's markup or a terminal's codes."""
    return Text(
        "".join(char if char.isprintable() or char == "\n" else "\N{REPLACEMENT CHARACTER}" for char in str(text))
    )


def show(shown: Table | Text) -> None:
    """Print a table or a line. In a terminal it is as wide as the terminal."""
    Console(width=None if sys.stdout.isatty() else _WIDE, highlight=False).print(shown)
