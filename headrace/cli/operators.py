"""What operators' commands share: the database of all accounts, and how they print."""

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

# Where nobody looks, nothing is cut to fit.
_WIDE = 200

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")


def with_database(settings: Settings, work: Callable[[Database], Awaitable[Result]]) -> Result:
    """Do something with the database that the settings name, and disconnect."""

    async def connected() -> Result:
        database = Database.connect(locate(settings, redis=False).database_url, connections=1)
        try:
            return await work(database)
        finally:
            await database.close()

    with plain_errors():
        return asyncio.run(connected())


def cell(text: object) -> Text:
    """Return what somebody else wrote as a table may show it: neither rich's markup nor the terminal's codes work."""
    return Text(
        "".join(char if char.isprintable() or char == "\n" else "\N{REPLACEMENT CHARACTER}" for char in str(text))
    )


def show(shown: Table | Text) -> None:
    """Print a table or a line, in a terminal as wide as that is."""
    Console(width=None if sys.stdout.isatty() else _WIDE, highlight=False).print(shown)
