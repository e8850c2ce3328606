"""How `headrace keys` prints keys and limits."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import click
from rich.table import Column, Table

from headrace.cli.printing import cell, show
from headrace.keys.key_object import render_key
from headrace.stores.connections import Row

_SHORT = {
    "requests_per_minute": "{:,} rpm",
    "tokens_per_minute": "{:,} tpm",
    "jobs_in_flight": "{:,} in flight",
    "jobs_queued": "{:,} queued",
    "daily_budget": "{} USD a day",
    "monthly_budget": "{} USD a month",
    "alert_webhook": "alerts to {}",
}


def show_keys(rows: Sequence[Row]) -> None:
    """Print a table of keys."""
    table = Table(
        Column("id", no_wrap=True),
        "account",
        "name",
        "key",
        "scopes",
        "limits",
        Column("created", no_wrap=True),
        Column("last used", no_wrap=True),
        "status",
        box=None,
        header_style="bold",
    )
    for row in rows:
        table.add_row(
            row.id,
            cell(row.account),
            cell(row.name),
            row.hint + "…",
            " ".join([*row.scopes, "read-only"] if row.read_only else row.scopes),
            cell(short(row.limits)),
            _time(row.created_at),
            "never" if row.last_used_at is None else _time(row.last_used_at),
            row.status,
        )
    show(table)


def show_once(row: Row, key: str, *, as_json: bool) -> None:
    """Print a key that was just created or rotated."""
    if as_json:
        click.echo(json.dumps({**render_key(row), "key": key}))
        return
    click.echo(key)
    click.echo(f"This is key {row.id} of account {row.account}. It is not shown again: keep it.", err=True)
    if row.previous_expires_at is not None and row.previous_expires_at > time.time():
        click.echo(f"The previous key works until {_time(row.previous_expires_at)} UTC.", err=True)


def show_key(row: Row, *, as_json: bool) -> None:
    """Print a key's properties, without the key itself."""
    document = render_key(row)
    if as_json:
        click.echo(json.dumps(document))
        return
    document |= {"scopes": " ".join(row.scopes), "limits": short(row.limits)}
    document["read_only"] = "yes" if row.read_only else None
    table = Table("", "", box=None, show_header=False)
    for name, value in document.items():
        if value in (None, "") or name == "object":
            continue
        table.add_row(name, cell(_time(value) if name.endswith("_at") else value))
    show(table)


def short(limits: dict[str, Any]) -> str:
    """Return limits as a short text, such as `60 rpm, 25 USD a month, only demo gpt-*`."""
    parts = [text.format(limits[name]) for name, text in _SHORT.items() if limits.get(name) is not None]
    if limits.get("models") is not None:
        parts.append(f"only {' '.join(limits['models'])}")
    if limits.get("wait"):
        parts.append("waits")
    return ", ".join(parts)


def _time(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M}"
