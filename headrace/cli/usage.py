"""`headrace usage`: usage and its cost over all accounts."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Any
from zoneinfo import ZoneInfo

import click
from rich.table import Table
from rich.text import Text

from headrace.cli.operators import get_account, with_database
from headrace.cli.printing import cell, json_option, show
from headrace.errors import HeadraceError
from headrace.settings import Settings
from headrace.stores.database import Database
from headrace.usage.queries import (
    STATEMENT_COLUMNS,
    ask,
    correct_usage,
    known_metadata_keys,
    render_amounts,
    render_cost,
    statement_of_month,
)
from headrace.usage.question import Bucket, Question, parse_groups, parse_zone
from headrace.usage.rollups import rebuild_rollups, verify_rollups
from headrace.usage.spreadsheet import render_rows

# Days of the past that are asked for at most: a hundred years.
_LONGEST_DAYS = 36_500
# Rows of an answer, at most.
_MOST_ROWS = 100_000
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
# The options of corrections, and their columns in the ledger.
_TOKENS = {
    "--prompt-tokens": "prompt_tokens",
    "--completion-tokens": "completion_tokens",
    "--cached-tokens": "cached_tokens",
    "--cache-write-tokens": "cache_write_tokens",
    "--reasoning-tokens": "reasoning_tokens",
    "--audio-prompt-tokens": "prompt_audio_tokens",
    "--audio-completion-tokens": "completion_audio_tokens",
}
# Tokens, or USD, of one correction at most.
_MOST_CORRECTED = 1_000_000_000
# Digits of USD after the point at most.
_MOST_PLACES = 20
_COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "red")
# Characters of the longest bar.
_BAR = 48
_OTHERS = "others"


@click.group(invoke_without_command=True)
@click.option(
    "--days",
    type=click.IntRange(1, _LONGEST_DAYS),
    default=30,
    show_default=True,
    help="Count the jobs that ended in this many days up to now.",
)
@click.option(
    "--by",
    "groups",
    multiple=True,
    default=["model"],
    show_default="model",
    help="Group by this: model, key, user, account, metadata.KEY … (repeatable).",
)
@click.option("--per", type=click.Choice(["hour", "day", "month"]), help="Also group by time, and draw a bar for each.")
@click.option("--zone", help="Time zone of hours, days and months, such as Europe/Berlin.  [default: UTC]")
@click.option(
    "--of", "measure", type=click.Choice(["cost", "tokens", "requests"]), default="cost", help="What to draw."
)
@click.option("--account", help="Only this account's usage.")
@json_option
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV for scripts.")
@click.pass_context
def usage(  # noqa: PLR0917  (click passes them by name)
    context: click.Context,
    days: int,
    groups: Sequence[str],
    per: str | None,
    zone: str | None,
    measure: str,
    account: str | None,
    as_json: bool,
    as_csv: bool,
) -> None:
    """Show usage by model, key, account and more. Costs are in USD."""
    if context.invoked_subcommand is not None:
        return
    end = int(time.time()) + 1

    async def answer(database: Database) -> tuple[Question, list[dict[str, Any]]]:
        question = Question(
            account_ids=await _account_ids(database, account),
            start=end - days * 86_400,
            end=end,
            bucket=None if per is None else Bucket(per),
            zone=parse_zone(zone),
            groups=parse_groups([name.strip() for text in groups for name in text.split(",")]),
            metadata_keys=await known_metadata_keys(database),
        )
        question.check()
        return question, await ask(database, question, limit=_MOST_ROWS + 1)

    question, rows = _with_database(context.obj, answer)
    if len(rows) > _MOST_ROWS:
        raise click.UsageError(f"That has more than {_MOST_ROWS:,} rows. Ask for fewer --days, or group --by less.")
    data = [render_amounts(row) for row in rows]
    if as_json:
        click.echo(json.dumps(data))
    elif as_csv:
        click.echo(render_rows(data, names=["start_time", "end_time", *question.groups]).encode(), nl=False)
    else:
        if per is not None:
            _draw(question, rows, measure)
        _show_table(question, rows)


async def _account_ids(database: Database, account: str | None) -> list[str] | None:
    return None if account is None else [(await get_account(database, account)).id]


def _with_database(settings: Settings, answer: Any) -> Any:
    try:
        return with_database(settings, answer)
    except HeadraceError as error:
        raise click.UsageError(error.message) from error


def _show_table(question: Question, rows: Sequence[dict[str, Any]]) -> None:
    groups = question.groups
    summed: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        key = tuple(row[name] for name in groups)
        total = summed.setdefault(key, dict.fromkeys([*_AMOUNTS, "cost"], 0))
        for name in (*_AMOUNTS, "cost"):
            total[name] += _amount(row, name)
    ordered = sorted(summed.items(), key=lambda item: (-item[1]["cost"], -item[1]["total_tokens"], str(item[0])))
    table = Table(box=None, header_style="bold", show_footer=True, footer_style="bold")
    for index, group in enumerate(groups):
        table.add_column(group, "" if index else "total", no_wrap=group == "key")
    for amount, heading in _AMOUNTS.items():
        table.add_column(heading, f"{sum(total[amount] for _, total in ordered):,}", justify="right")
    cost = sum((total["cost"] for _, total in ordered), start=Decimal())
    table.add_column("cost, USD", render_cost(cost), justify="right")
    for key, total in ordered:
        amounts = (f"{total[amount]:,}" for amount in _AMOUNTS)
        table.add_row(*map(cell, key), *amounts, render_cost(Decimal(total["cost"])))
    show(table)


def _amount(row: dict[str, Any], name: str) -> Any:
    return row["prompt_tokens"] + row["completion_tokens"] if name in {"total_tokens", "tokens"} else row[name]


def _draw(question: Question, rows: Sequence[dict[str, Any]], measure: str) -> None:
    """Draw a bar for each bucket of time, divided into the largest groups."""
    sizes: defaultdict[str, Decimal] = defaultdict(Decimal)
    bars: defaultdict[int, defaultdict[str, Decimal]] = defaultdict(lambda: defaultdict(Decimal))
    for row in rows:
        name = " ".join(str(row[group] or "-") for group in question.groups) or "all"
        sizes[name] += _amount(row, measure)
        bars[row["start_time"]][name] += _amount(row, measure)
    largest = sorted(sizes, key=lambda name: -sizes[name])[: len(_COLOURS)]
    colours = dict(zip(largest, _COLOURS, strict=False))
    longest = max((sum(bar.values()) for bar in bars.values()), default=Decimal()) or Decimal(1)
    table = Table(box=None, show_header=False, pad_edge=False)
    for start in sorted(bars):
        text = Text()
        for name in (*largest, _OTHERS):
            parts = [
                size
                for group, size in bars[start].items()
                if group == name or (name == _OTHERS and group not in colours)
            ]
            text.append("█" * round(_BAR * sum(parts) / longest), colours.get(name, "bright_black"))
        total = sum(bars[start].values(), start=Decimal())
        table.add_row(_when(start, question.bucket, question.zone), text, _figure(total, measure))
    show(table)
    legend = Text("  ").join(Text.assemble(("█ ", colour), cell(name)) for name, colour in colours.items())
    if len(sizes) > len(colours):
        legend.append_text(Text.assemble("  ", ("█ ", "bright_black"), _OTHERS))
    show(legend)
    click.echo()


def _when(start: int, bucket: Bucket | None, zone: ZoneInfo) -> str:
    form = {Bucket.HOUR: "%Y-%m-%d %H:%M", Bucket.MONTH: "%Y-%m"}.get(bucket or Bucket.DAY, "%Y-%m-%d")
    return f"{datetime.fromtimestamp(start, zone):{form}}"


def _figure(total: Decimal, measure: str) -> str:
    return f"{total:,.4f} USD" if measure == "cost" else f"{total:,.0f}"


@usage.command()
@click.option("--repair", is_flag=True, help="Rebuild the roll-ups from the ledger if they differ.")
@json_option
@click.pass_obj
def verify(settings: Settings, repair: bool, as_json: bool) -> None:
    """Sum up the ledger and compare it with the roll-ups. The exit code is 1 if they differ.

    Months that were detached from the ledger are not compared, and keep their roll-ups.
    """
    found = with_database(settings, verify_rollups)
    wrong = bool(found.differences or found.counted_twice)
    if as_json:
        click.echo(json.dumps({**found._asdict(), "equal": not wrong}))
    else:
        click.echo(f"{found.rows:,} rows, {found.cells:,} cells: ", nl=False)
        click.echo("all equal." if not wrong else f"{found.differences:,} differ.")
        if found.counted_twice:
            click.echo(f"{found.counted_twice:,} jobs are counted more than once.")
        if found.detached_months:
            click.echo(f"Not compared, as the ledger has no rows of them: {', '.join(found.detached_months)}.")
    if found.differences and repair:

        async def rebuild(database: Database) -> int:
            # The scheduler's keys: with those of this shell, the scheduler would rebuild everything again.
            keys = await known_metadata_keys(database, otherwise=settings.usage_metadata_keys)
            return await rebuild_rollups(database, metadata_keys=keys)

        click.echo(f"Rebuilt from {with_database(settings, rebuild):,} rows.", err=True)
        wrong = bool(found.counted_twice)
    if wrong:
        raise SystemExit(1)


def _token_options(command: Callable[..., None]) -> Callable[..., None]:
    for option, column in reversed(_TOKENS.items()):
        within = click.IntRange(-_MOST_CORRECTED, _MOST_CORRECTED)
        command = click.option(option, column, type=within, default=0, help="Tokens to add; negative to subtract.")(
            command
        )
    return command


@usage.command()
@click.argument("job_id")
@_token_options
@click.option("--cost", default="0", help="USD to add; negative to subtract.")
@click.option("--note", required=True, help="The reason.")
@click.pass_obj
def correct(settings: Settings, /, job_id: str, cost: str, note: str, **tokens: int) -> None:
    """Correct the usage of a job by another row of the ledger, with the present time."""
    amount = _parse_cost(cost)

    async def add(database: Database) -> bool:
        return await correct_usage(database, job_id, cost=amount, note=note, **tokens)

    if not with_database(settings, add):
        raise click.ClickException(f"The ledger has no job {job_id}.")
    click.echo(f"Corrected {job_id}.")


def _parse_cost(text: str) -> Decimal:
    try:
        amount = Decimal(text)
    except InvalidOperation as error:
        raise click.BadParameter("expected a number of USD", param_hint="--cost") from error
    exponent = amount.as_tuple().exponent
    if not isinstance(exponent, int):  # infinite, or not a number
        raise click.BadParameter("expected a number of USD", param_hint="--cost")
    if not -_MOST_CORRECTED <= amount <= _MOST_CORRECTED:
        message = f"expected {-_MOST_CORRECTED:,} to {_MOST_CORRECTED:,} USD"
        raise click.BadParameter(message, param_hint="--cost")
    # The same bound on zeros before the point, of which 0E+999999999 has a billion.
    if not -_MOST_PLACES <= exponent <= _MOST_PLACES:
        raise click.BadParameter(f"expected at most {_MOST_PLACES} digits after the point", param_hint="--cost")
    return amount


@usage.command()
@click.argument("month")
@click.option("--account", help="Only this account's usage.")
@click.pass_obj
def statement(settings: Settings, month: str, account: str | None) -> None:
    """Print the usage of a MONTH, such as 2026-11 (UTC), as CSV. Its sums are those of the ledger."""
    try:
        datetime.strptime(month, "%Y-%m")  # noqa: DTZ007  (a month has no zone)
    except ValueError as error:
        raise click.BadParameter("expected a month such as 2026-11", param_hint="MONTH") from error

    async def answer(database: Database) -> list[dict[str, Any]]:
        return await statement_of_month(database, month, await _account_ids(database, account))

    click.echo(render_rows(with_database(settings, answer), names=STATEMENT_COLUMNS).encode(), nl=False)
