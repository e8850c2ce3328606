"""`headrace usage`: who used what, over all accounts."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from decimal import Decimal

import click
from rich.table import Table

from headrace.cli.operators import cell, json_option, show, with_database
from headrace.settings import Settings
from headrace.usage.queries import Group, all_usage, render_cost

_LONGEST_DAYS = 36_500
_AMOUNTS = {
    "requests": "requests",
    "prompt_tokens": "prompt",
    "cached_tokens": "cached",
    "completion_tokens": "completion",
    "reasoning_tokens": "reasoning",
    "total_tokens": "total",
    "discarded_tokens": "discarded",
    "estimated_requests": "estimated",
    "unpriced_requests": "unpriced",
}


@click.command()
@click.option(
    "--days",
    type=click.IntRange(1, _LONGEST_DAYS),
    default=30,
    show_default=True,
    help="Count the jobs that ended in so many days up to now.",
)
@click.option(
    "--by",
    "groups",
    type=click.Choice(Group, case_sensitive=False),
    multiple=True,
    default=[Group.MODEL],
    show_default="model",
    help="What to tell apart; may be given several times.",
)
@click.option("--account", help="Only this account's usage.")
@json_option
@click.pass_obj
def usage(settings: Settings, days: int, groups: Sequence[Group], account: str | None, as_json: bool) -> None:
    """Show who used what. Costs are in USD."""
    columns = list(dict.fromkeys(groups))
    start = int(time.time()) - days * 86_400
    rows = with_database(settings, lambda database: all_usage(database, start=start, group_by=columns, account=account))
    if as_json:
        click.echo(json.dumps([{**row._asdict(), "cost": render_cost(row.cost)} for row in rows]))
        return
    table = Table(box=None, header_style="bold", show_footer=True, footer_style="bold")
    for index, group in enumerate(columns):
        table.add_column(group.value, "" if index else "total", no_wrap=group is Group.KEY)
    for amount, heading in _AMOUNTS.items():
        table.add_column(heading, f"{sum(getattr(row, amount) for row in rows):,}", justify="right")
    table.add_column("cost, USD", render_cost(sum((row.cost for row in rows), start=Decimal())), justify="right")
    for row in rows:
        amounts = (f"{getattr(row, amount):,}" for amount in _AMOUNTS)
        table.add_row(*(cell(getattr(row, group)) for group in columns), *amounts, render_cost(row.cost))
    show(table)
