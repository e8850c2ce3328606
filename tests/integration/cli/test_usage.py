"""`headrace usage`: its output for scripts and in terminals, its corrections, and its refusals."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from click.testing import CliRunner

import headrace.cli.usage
from headrace.cli import main
from headrace.stores.database import Database, execute
from headrace.usage.queries import known_metadata_keys
from headrace.usage.rollups import fold_usage
from tests.integration.databases import fetch
from tests.integration.job_rows import Owner
from tests.integration.ledger import Entry, write

FORMULA = "=cmd|x"

Run = Callable[..., str]


def work(url: str, *steps: Callable[[Database], Awaitable[object]]) -> None:
    """Do something with the database, as another process would."""

    async def connected() -> None:
        database = Database.connect(url)
        for step in steps:
            await step(database)
        await database.close()

    asyncio.run(connected())


@pytest.fixture
def spend(database_url: str) -> Callable[..., None]:
    """Empties the ledger and puts these rows there."""

    def put(*entries: Entry) -> None:
        async def empty(database: Database) -> None:
            await execute(database.durable, "TRUNCATE usage, usage_rollups, usage_latencies, usage_mark")

        work(database_url, empty, lambda database: write(database, entries))

    return put


@pytest.fixture
def run(database_url: str) -> Run:
    """Runs `headrace usage` to its end and returns its output, errors too."""

    def command(*arguments: str, code: int = 0, metadata_keys: str = "") -> str:
        environment = {"DATABASE_URL": database_url, "HEADRACE_USAGE_METADATA_KEYS": metadata_keys}
        result = CliRunner().invoke(main, ["usage", *arguments], env=environment)
        assert result.exit_code == code, result.output
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result.output

    return command


def now() -> datetime:
    return datetime.now(UTC)


def rows_of(printed: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(printed)))


def test_no_spreadsheet_takes_a_name_for_a_formula_and_money_for_a_text(
    spend: Callable[..., None], run: Run, owner: Owner
) -> None:
    counted = Entry(owner.account_id, now(), end_user=FORMULA, model=FORMULA, cost=Decimal("0.00000001875"))
    taken = Entry(
        owner.account_id, now(), "correction", end_user="ann", cost=Decimal("-0.0001000000"), note="a mistake"
    )
    spend(counted, taken)
    rows = rows_of(run("--by", "user", "--csv"))
    assert {row["user"]: Decimal(row["cost"]) for row in rows} == {
        "'" + FORMULA: Decimal("0.00000001875"),
        "ann": Decimal("-0.0001"),
    }
    lines = rows_of(run("statement", f"{now():%Y-%m}"))
    assert {line["model"] for line in lines} == {"'" + FORMULA, "fake"}
    assert sum(Decimal(line["cost"]) for line in lines) == Decimal("-0.00009998125")


def test_csv_without_rows_has_its_line_of_names(spend: Callable[..., None], run: Run) -> None:
    spend()
    assert run("--by", "user", "--csv").splitlines() == ["start_time,end_time,user"]
    assert run("statement", "2026-11").startswith("account,key,key_name,model,")


def test_what_clients_name_their_users_does_nothing_to_the_drawing(
    spend: Callable[..., None], run: Run, owner: Owner
) -> None:
    spend(Entry(owner.account_id, now(), end_user="\x1b]0;owned\x07\x1b[31m[red]ann"))
    drawn = run("--by", "user", "--per", "day")
    assert "█" in drawn
    assert drawn.count("[red]ann") == 2  # the legend, and the table below
    assert "\x1b" not in drawn
    assert "\x07" not in drawn


def test_more_rows_than_it_prints_are_refused_and_not_left_out(
    spend: Callable[..., None], run: Run, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(headrace.cli.usage, "_MOST_ROWS", 2)
    entries = [Entry(owner.account_id, now(), model=model) for model in ("a", "b", "c")]
    spend(*entries[:2])
    assert len(rows_of(run("--csv"))) == 2
    spend(*entries)
    assert "more than 2 rows" in run("--csv", code=2)


def test_every_sort_of_token_is_corrected(
    spend: Callable[..., None], run: Run, owner: Owner, database_url: str
) -> None:
    entry = Entry(owner.account_id, now(), key_id=owner.key_id)
    spend(entry)
    amounts = {
        "--prompt-tokens": ("prompt_tokens", -1),
        "--completion-tokens": ("completion_tokens", 2),
        "--cached-tokens": ("cached_tokens", -3),
        "--cache-write-tokens": ("cache_write_tokens", 4),
        "--reasoning-tokens": ("reasoning_tokens", -5),
        "--audio-prompt-tokens": ("prompt_audio_tokens", 1_000_000_000),
        "--audio-completion-tokens": ("completion_audio_tokens", -1_000_000_000),
    }
    options = [part for option, (_, amount) in amounts.items() for part in (option, str(amount))]
    run("correct", entry.job_id, *options, "--cost", "-0.00000001875", "--note", "miscounted")
    columns = ", ".join(column for column, _ in amounts.values())
    [row] = fetch(database_url, f"SELECT {columns}, cost, note FROM usage WHERE kind = 'correction'")
    assert row == (*(amount for _, amount in amounts.values()), Decimal("-0.00000001875"), "miscounted")
    for option in amounts:
        for amount in ("1000000001", "-1000000001", "much"):
            assert option in run("correct", entry.job_id, option, amount, "--note", "x", code=2)


@pytest.mark.parametrize(
    "cost",
    [
        *("much", "", "nan", "sNaN", "inf", "-Infinity"),
        *("1000000000.01", "-1000000001", "1e10", "1e999999999", "1e-999999999", "0e999999999", "0." + "0" * 21),
    ],
)
def test_a_cost_that_makes_no_sense_is_refused(run: Run, cost: str) -> None:
    assert "--cost: expected " in run("correct", "job_1", "--cost", cost, "--note", "x", code=2)


@pytest.mark.parametrize("cost", ["1000000000", "-1e9", "1e-20", "-0.00000000000000000001"])
def test_a_cost_is_taken_to_the_last_digit(
    spend: Callable[..., None], run: Run, owner: Owner, database_url: str, cost: str
) -> None:
    entry = Entry(owner.account_id, now())
    spend(entry)
    run("correct", entry.job_id, "--cost", cost, "--note", "x")
    assert fetch(database_url, "SELECT cost FROM usage WHERE kind = 'correction'") == [(Decimal(cost),)]


def test_a_month_that_is_not_in_the_ledger_is_named_and_not_compared(
    spend: Callable[..., None], run: Run, owner: Owner, database_url: str
) -> None:
    spend(Entry(owner.account_id, datetime(2026, 3, 5, tzinfo=UTC)))

    async def take_out(database: Database) -> None:
        await fold_usage(database, metadata_keys=[])
        await execute(database.durable, "TRUNCATE usage")

    work(database_url, take_out)
    assert run("verify", "--repair").splitlines()[1] == "Not compared, as the ledger has no rows of them: 2026-03."
    assert json.loads(run("verify", "--json"))["detached_months"] == ["2026-03"]


def test_sums_are_repaired_with_the_metadata_keys_that_they_have(
    spend: Callable[..., None], run: Run, owner: Owner, database_url: str
) -> None:
    spend(Entry(owner.account_id, now(), metadata={"team": "a"}))

    async def break_sums(database: Database) -> None:
        await fold_usage(database, metadata_keys=["team"])
        await execute(database.durable, "UPDATE usage_rollups SET requests = 2")

    work(database_url, break_sums)
    run("verify", code=1, metadata_keys="customer")
    run("verify", "--repair", metadata_keys="customer")
    run("verify")
    kept: list[Any] = []

    async def look(database: Database) -> None:
        kept.extend(await known_metadata_keys(database, otherwise=["customer"]))
        await execute(database.durable, "TRUNCATE usage_mark")
        kept.extend(await known_metadata_keys(database, otherwise=["customer"]))

    work(database_url, look)
    assert kept == ["team", "customer"]
