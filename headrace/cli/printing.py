"""What commands print: tables, lines, and JSON for scripts."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

# Columns of a table that does not go to a terminal, so that no cell is cut.
_WIDE = 200

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")


def cell(text: object) -> Text:
    """Return foreign text in a form that a table can show: without effect of rich's markup or a terminal's codes."""
    return Text(
        "".join(char if char.isprintable() or char == "\n" else "\N{REPLACEMENT CHARACTER}" for char in str(text))
    )


def moment(seconds: int) -> str:
    """Return a time in Unix seconds as a date and a time of day, in UTC."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}"


def show(shown: Table | Text) -> None:
    """Print a table or a line. In a terminal it is as wide as the terminal."""
    Console(width=None if sys.stdout.isatty() else _WIDE, highlight=False).print(shown)


def show_fields(document: Mapping[str, Any]) -> None:
    """Print the fields of an object of the API as a table, without empty ones."""
    table = Table("", "", box=None, show_header=False)
    for name, value in document.items():
        if value is None or name == "object":
            continue
        shown = moment(value) if name.endswith("_at") else value
        table.add_row(name, cell(json.dumps(shown, ensure_ascii=False) if isinstance(shown, dict) else shown))
    show(table)
