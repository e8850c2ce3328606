"""`headrace keys`: create, list and revoke API keys."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import click
from rich.table import Column, Table

from headrace.cli.operators import cell, json_option, show, with_database
from headrace.errors import NotFoundError
from headrace.keys import queries
from headrace.settings import Settings


@click.group()
def keys() -> None:
    """Create, list and revoke API keys."""


@keys.command()
@click.option("--account", default=queries.DEFAULT_ACCOUNT, show_default=True, help="Whose key; made if it is new.")
@click.option("--name", default="", help="What the key is for.")
@click.option("--admin", is_flag=True, help="Let the key administer.")
@click.option("--days", type=click.FloatRange(min=0, min_open=True), help="Let the key expire after so many days.")
@json_option
@click.pass_obj
def create(  # noqa: PLR0917  (click passes them by name)
    settings: Settings, account: str, name: str, admin: bool, days: float | None, as_json: bool
) -> None:
    """Create a key and show it, this once."""
    expires_at = None if days is None else datetime.now(UTC) + timedelta(days=days)
    key_id, key = with_database(
        settings,
        lambda database: queries.create_key(
            database, account=account, name=name, scopes=["admin"] if admin else [], expires_at=expires_at
        ),
    )
    if as_json:
        click.echo(json.dumps({"id": key_id, "key": key, "account": account}))
    else:
        click.echo(key)
        click.echo(f"This is key {key_id} of account {account}. It is shown only now: keep it.", err=True)


@keys.command(name="list")
@click.option("--account", help="Only this account's keys.")
@json_option
@click.pass_obj
def list_(settings: Settings, account: str | None, as_json: bool) -> None:
    """List keys, without the keys themselves."""
    rows = with_database(settings, lambda database: queries.list_keys(database, account=account))
    if as_json:
        click.echo(json.dumps([row._asdict() for row in rows], default=str))
        return
    table = Table(
        Column("id", no_wrap=True),
        "account",
        "name",
        "key",
        "scopes",
        "created",
        "status",
        box=None,
        header_style="bold",
    )
    for row in rows:
        expired = row.expires_at is not None and row.expires_at <= datetime.now(UTC)
        status = "revoked" if row.revoked_at else "expired" if expired else "valid"
        created = f"{row.created_at:%Y-%m-%d %H:%M}"
        table.add_row(row.id, cell(row.account), cell(row.name), row.hint + "…", " ".join(row.scopes), created, status)
    show(table)


@keys.command()
@click.argument("key_id")
@click.pass_obj
def revoke(settings: Settings, key_id: str) -> None:
    """Revoke a key; it stops working within a second."""
    try:
        with_database(settings, lambda database: queries.revoke_key(database, key_id))
    except NotFoundError as error:
        raise click.ClickException(error.message) from error
    click.echo(f"Revoked {key_id}.")
