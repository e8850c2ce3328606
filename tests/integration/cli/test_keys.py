"""`headrace keys`, in this process: which webhook receives budget alerts, and the bootstrap key."""

from __future__ import annotations

import fcntl
import json
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result

from headrace.cli import main

SECRET = {"HEADRACE_SECRET_KEY": "s" * 32}
URL = "https://receiver.example/hook"

Run = Callable[..., Result]


@pytest.fixture
def run(database_url: str, tmp_path: Path) -> Run:
    """Runs a command on the database, with variables; without `DATABASE_URL`, a `headrace dev` seems to run."""

    def run(*arguments: str, **environment: str) -> Result:
        given = {"DATABASE_URL": database_url, "HEADRACE_DATA_DIR": str(tmp_path), **environment}
        return CliRunner().invoke(main, ["keys", *arguments], env=given)

    return run


@pytest.fixture
def account() -> str:
    return f"account-{secrets.token_hex(4)}"


def secrets_of(database_url: str, account: str) -> int:
    query = "SELECT count(*) FROM webhook_secrets JOIN accounts ON accounts.id = account_id WHERE name = %s"
    with psycopg.connect(database_url) as connection:
        row = connection.execute(query, [account]).fetchone()
    assert row is not None
    return int(row[0])


def printed(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def refused(result: Result, why: str) -> None:
    assert result.exit_code == 1
    assert why in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize("command", ["create", "update", "limit-account"])
def test_an_account_that_gets_budget_alerts_has_a_secret(
    run: Run, database_url: str, account: str, command: str
) -> None:
    key = printed(run("create", "--account", account, "--json", **SECRET))
    assert secrets_of(database_url, account) == 0
    whose = {"create": ["--account", account], "update": [key["id"]], "limit-account": [account]}[command]
    limits = printed(run(command, *whose, "--alert-webhook", URL, "--json", **SECRET))["limits"]
    assert limits == {"alert_webhook": URL}
    assert secrets_of(database_url, account) == 1


def test_the_secret_key_that_dev_keeps_is_found(run: Run, database_url: str, tmp_path: Path, account: str) -> None:
    store = tmp_path / "postgres"
    store.mkdir()
    (store / "url").write_text(database_url)
    arguments = ("create", "--account", account, "--alert-webhook", URL, "--json")
    with (store / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused(run(*arguments, DATABASE_URL=""), "HEADRACE_SECRET_KEY")
        (tmp_path / "secret-key").write_text("s" * 32)
        printed(run(*arguments, DATABASE_URL=""))
    assert secrets_of(database_url, account) == 1


@pytest.mark.parametrize(
    ("url", "why", "environment"),
    [
        (URL, "HEADRACE_SECRET_KEY", {}),
        ("http://127.0.0.1/hook", "Invalid '--alert-webhook': webhooks may not go to '127.0.0.1'.", SECRET),
        ("http://[::1/hook", "Invalid '--alert-webhook': it is not a valid URL.", SECRET),
    ],
)
def test_an_alert_webhook_that_cannot_be_sent_is_refused(
    run: Run, account: str, url: str, why: str, environment: dict[str, str]
) -> None:
    key = printed(run("create", "--account", account, "--json"))
    for arguments in (("create", "--account", account), ("update", key["id"]), ("limit-account", account)):
        refused(run(*arguments, "--alert-webhook", url, **environment), why)
    assert printed(run("show", key["id"], "--json"))["limits"] == {}


@pytest.mark.parametrize(
    ("option", "value", "what"),
    [
        ("--daily-budget", "much", "a number of USD, 0 or more"),
        ("--monthly-budget", "-5", "a number of USD, 0 or more"),
        ("--alert-webhook", "ftp://x", "an http or https address"),
    ],
)
def test_a_limit_that_makes_no_sense_is_told_by_its_option(
    run: Run, account: str, option: str, value: str, what: str
) -> None:
    for command, whose in (("create", ("--account", account)), ("limit-account", (account,))):
        result = run(command, *whose, option, value)
        assert result.exit_code == 2
        assert result.output.splitlines()[-1] == f"Error: Invalid value for '{option}': '{value}' is not {what}."


def test_other_limits_need_no_secret_key(run: Run, account: str) -> None:
    key = printed(run("create", "--account", account, "--alert-webhook", URL, "--json", **SECRET))
    assert printed(run("update", key["id"], "--rpm", "5", "--json"))["limits"]["alert_webhook"] == URL


def test_the_bootstrap_key_is_its_variables(run: Run, database_url: str, account: str) -> None:
    key_id = printed(run("create", "--account", account, "--json"))["id"]
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("UPDATE api_keys SET bootstrap = true WHERE id = %s", [key_id])
    for arguments in (
        ("revoke", key_id),
        ("rotate", key_id),
        ("update", key_id, "--scope", "admin"),
        ("update", key_id, "--days", "1"),
    ):
        refused(run(*arguments), "change HEADRACE_BOOTSTRAP_KEY instead")
    changed = printed(run("update", key_id, "--name", "first", "--rpm", "5", "--json"))
    assert (changed["name"], changed["status"], changed["scopes"]) == ("first", "active", [])


def test_a_key_is_made_read_only_and_listed_as_such(run: Run, account: str) -> None:
    made = printed(run("create", "--account", account, "--read-only", "--scope", "usage:read", "--json"))
    plain = printed(run("create", "--account", account, "--json"))
    assert (made["read_only"], plain["read_only"]) == (True, False)
    listed = run("list", "--account", account).output.splitlines()
    assert [("usage:read read-only" in line, "read-only" in line) for line in listed[1:]] == [
        (True, True),
        (False, False),
    ]
    assert "read_only" in run("show", made["id"]).output
    assert "read_only" not in run("show", plain["id"]).output
    assert printed(run("update", made["id"], "--no-read-only", "--json"))["read_only"] is False
