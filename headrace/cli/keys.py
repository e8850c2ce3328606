"""`headrace keys`: creates, lists, changes, rotates and revokes API keys of any account, directly in the database."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar, get_args

import click
import orjson
from pydantic import SecretStr, ValidationError

from headrace.cli.key_table import short, show_key, show_keys, show_once
from headrace.cli.operators import get_account, with_database
from headrace.cli.printing import json_option
from headrace.dev.embedded import secret_key_file
from headrace.errors import InvalidRequestError
from headrace.formats.chat.validation import parse_body
from headrace.keys import accounts, queries
from headrace.keys.key_object import MOST_OVERLAP_SECONDS, no_such_key, render_key
from headrace.keys.principal import KeyScope
from headrace.keys.queries import KeyChanges
from headrace.quotas.rules import Limits
from headrace.settings import Settings
from headrace.stores.connections import Row
from headrace.stores.database import Database
from headrace.webhooks.acceptance import accept_webhook

Command = TypeVar("Command", bound=Callable[..., Any])

_HOUR_SECONDS = 3600
# Days until a key expires, at most: a hundred years.
_LONGEST_DAYS = 36_500
_ONE_OR_MORE = click.IntRange(min=1)


def _limit(what: str) -> Callable[[click.Context, click.Parameter, str | None], str | None]:
    """Return a callback that checks an option as the limit of its name, and otherwise says what the value is not."""

    def check(_: click.Context, option: click.Parameter, value: str | None) -> str | None:
        try:
            Limits.model_validate({str(option.name): value})
        except ValidationError:
            raise click.BadParameter(f"'{value}' is not {what}.") from None
        return value

    return check


_usd = _limit("a number of USD, 0 or more")
_LIMIT_OPTIONS = (
    click.option("--model", "models", multiple=True, help="Allow only this model or glob (repeatable)."),
    click.option("--rpm", "requests_per_minute", type=_ONE_OR_MORE, help="Requests in a minute."),
    click.option("--tpm", "tokens_per_minute", type=_ONE_OR_MORE, help="Tokens in a minute."),
    click.option("--in-flight", "jobs_in_flight", type=_ONE_OR_MORE, help="Foreground requests at one time."),
    click.option("--queued", "jobs_queued", type=_ONE_OR_MORE, help="Background jobs at one time, queued or running."),
    click.option("--daily-budget", metavar="USD", callback=_usd, help="Budget of a day, by UTC."),
    click.option("--monthly-budget", metavar="USD", callback=_usd, help="Budget of a month, by UTC."),
    click.option("--wait/--no-wait", default=None, help="Let background jobs beyond a rate wait rather than fail."),
    click.option(
        "--alert-webhook",
        metavar="URL",
        callback=_limit("an http or https address"),
        help="URL that is notified when a budget is nearly or wholly spent.",
    ),
)

_scopes = click.option(
    "--scope",
    "scopes",
    type=click.Choice(get_args(KeyScope)),
    multiple=True,
    help="What the key may do beyond using models (repeatable).",
)
_days = click.option(
    "--days",
    type=click.FloatRange(min=0, min_open=True, max=_LONGEST_DAYS),
    help="Days until the key expires.",
)
_read_only = click.option(
    "--read-only/--no-read-only", default=None, help="Allow only requests that change nothing, such as GET."
)
_unlimited = click.option("--unlimited", is_flag=True, help="Remove the present limits first.")


def _limit_options(command: Command) -> Command:
    for option in reversed(_LIMIT_OPTIONS):
        command = option(command)
    return command


@click.group()
def keys() -> None:
    """Create, list, change, rotate and revoke API keys, and limit accounts."""


@keys.command()
@click.option(
    "--account",
    default=accounts.DEFAULT_ACCOUNT,
    show_default=True,
    help="The key's account; created if it does not exist.",
)
@click.option("--name", default="", help="What the key is for.")
@click.option("--admin", is_flag=True, help="Make an administrator's key: `--scope admin`.")
@_scopes
@_read_only
@_days
@_limit_options
@json_option
@click.pass_obj
def create(  # noqa: PLR0917  (click passes them by name)
    settings: Settings,
    /,
    account: str,
    name: str,
    admin: bool,
    scopes: Sequence[KeyScope],
    read_only: bool | None,
    days: float | None,
    as_json: bool,
    **limits: Any,
) -> None:
    """Create a key and show it. It is not shown again."""
    if not account:
        raise click.BadParameter("an account needs a name.", param_hint="--account")
    changes = _changes(name, (*scopes, "admin") if admin else scopes, read_only, days)
    changes["limits"] = _merge({}, limits)

    async def work(database: Database) -> tuple[Row, str]:
        account_id = await accounts.ensure_account(database, account)
        await _accept_alerts(settings, database, account_id, limits)
        key_id, key = await queries.create_key(database, account_id=account_id, **changes)
        return await _get(database, key_id), key

    show_once(*with_database(settings, work), as_json=as_json)


@keys.command(name="list")
@click.option("--account", help="Only this account's keys.")
@click.option("--all", "include_revoked", is_flag=True, help="Include revoked keys.")
@json_option
@click.pass_obj
def list_(settings: Settings, account: str | None, include_revoked: bool, as_json: bool) -> None:
    """List keys, without the keys themselves, oldest first."""

    async def work(database: Database) -> Sequence[Row]:
        account_id = None if account is None else (await get_account(database, account)).id
        return await queries.list_keys(database, account_id=account_id, include_revoked=include_revoked)

    rows = with_database(settings, work)
    if as_json:
        click.echo(json.dumps([render_key(row) for row in rows]))
        return
    show_keys(rows)


@keys.command(name="show")
@click.argument("key_id")
@json_option
@click.pass_obj
def show_(settings: Settings, key_id: str, as_json: bool) -> None:
    """Show a key's properties, without the key itself."""
    show_key(with_database(settings, lambda database: _get(database, key_id)), as_json=as_json)


@keys.command()
@click.argument("key_id")
@click.option("--name", help="What the key is for.")
@_scopes
@_read_only
@_days
@_unlimited
@_limit_options
@json_option
@click.pass_obj
def update(  # noqa: PLR0917  (click passes them by name)
    settings: Settings,
    /,
    key_id: str,
    name: str | None,
    scopes: Sequence[KeyScope],
    read_only: bool | None,
    days: float | None,
    unlimited: bool,
    as_json: bool,
    **limits: Any,
) -> None:
    """Change the properties of a key that the options name. It takes effect within a second."""
    changes = _changes(name, scopes, read_only, days)

    async def work(database: Database) -> Row:
        row = await _get(database, key_id)
        if row.status == "revoked":
            raise click.ClickException(f"{key_id} is revoked.")
        if changes.keys() & {"scopes", "expires_at", "read_only"}:
            _refuse_bootstrap(row)
        if unlimited or _given(limits):
            changes["limits"] = _merge({} if unlimited else row.limits, limits)
            await _accept_alerts(settings, database, row.account_id, limits)
        await queries.update_key(database, key_id, changes)
        return await _get(database, key_id)

    show_key(with_database(settings, work), as_json=as_json)


@keys.command()
@click.argument("key_id")
@click.option(
    "--overlap-hours",
    type=click.FloatRange(0, MOST_OVERLAP_SECONDS / _HOUR_SECONDS),
    default=24,
    show_default=True,
    help="Hours for which the old key still works.",
)
@json_option
@click.pass_obj
def rotate(settings: Settings, key_id: str, overlap_hours: float, as_json: bool) -> None:
    """Replace a key by a new one with the same id, limits and usage, and show it. It is not shown again."""

    async def work(database: Database) -> tuple[Row, str]:
        row = await _get(database, key_id)
        _refuse_bootstrap(row)
        if row.status != "active":
            raise click.ClickException(f"{key_id} is {row.status}.")
        key = await queries.rotate_key(database, key_id, overlap_seconds=overlap_hours * _HOUR_SECONDS)
        return await _get(database, key_id), key

    show_once(*with_database(settings, work), as_json=as_json)


@keys.command()
@click.argument("key_id")
@click.option(
    "--children/--no-children",
    default=None,
    help="Also revoke the keys that it created over HTTP, and theirs. Default: unless it is an administrator's.",
)
@click.pass_obj
def revoke(settings: Settings, key_id: str, children: bool | None) -> None:
    """Revoke a key. It stops working within a second."""

    async def work(database: Database) -> None:
        _refuse_bootstrap(await _get(database, key_id))
        await queries.revoke_key(database, key_id, children=children)

    with_database(settings, work)
    click.echo(f"Revoked {key_id}.")


@keys.command(name="limit-account")
@click.argument("name")
@_unlimited
@_limit_options
@json_option
@click.pass_obj
def limit_account(settings: Settings, /, name: str, unlimited: bool, as_json: bool, **limits: Any) -> None:
    """Limit all keys of an account together, in addition to each key's own limits; without options, show the limits."""

    async def work(database: Database) -> Limits:
        account = await get_account(database, name)
        merged = _merge({} if unlimited else account.limits, limits)
        if unlimited or _given(limits):
            await _accept_alerts(settings, database, account.id, limits)
            await accounts.limit_account(database, account.id, merged)
        return merged

    document = with_database(settings, work).render()
    click.echo(json.dumps({"name": name, "limits": document}) if as_json else short(document) or "no limits")


def _changes(name: str | None, scopes: Sequence[KeyScope], read_only: bool | None, days: float | None) -> KeyChanges:
    changes = KeyChanges()
    if name is not None:
        changes["name"] = name
    if scopes:
        changes["scopes"] = list(dict.fromkeys(scopes))
    if read_only is not None:
        changes["read_only"] = read_only
    if days is not None:
        changes["expires_at"] = datetime.now(UTC) + timedelta(days=days)
    return changes


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value not in (None, ())}


def _merge(present: dict[str, Any], options: dict[str, Any]) -> Limits:
    """Return the present limits with the changes that the options name.

    Raises:
        click.ClickException: A limit is not valid.
    """
    try:
        return parse_body(Limits, orjson.dumps({**present, **_given(options)}))
    except InvalidRequestError as error:
        raise click.ClickException(error.message) from error


async def _accept_alerts(settings: Settings, database: Database, account_id: str, options: dict[str, Any]) -> None:
    """Check the alert webhook that the options name, and prepare the account's secret for it.

    Raises:
        click.ClickException: The URL is not allowed, or the service sends no webhooks.
    """
    url = options["alert_webhook"]
    if url is None:
        return
    try:
        await accept_webhook(_with_secret_key(settings), database, account_id, url, param="--alert-webhook")
    except InvalidRequestError as error:
        raise click.ClickException(error.message) from error


def _with_secret_key(settings: Settings) -> Settings:
    """Return the settings with the secret key: the configured one, or that of `headrace dev` with its own Postgres."""
    path = secret_key_file(settings.data_dir)
    if settings.secret_key is not None or settings.database_url or not path.exists():
        return settings
    return settings.model_copy(update={"secret_key": SecretStr(path.read_text())})


def _refuse_bootstrap(row: Row) -> None:
    """Refuse to change the bootstrap key, which a variable sets.

    Raises:
        click.ClickException: The row is the bootstrap key.
    """
    if row.bootstrap:
        raise click.ClickException(f"{row.id} is the bootstrap key: change HEADRACE_BOOTSTRAP_KEY instead.")


async def _get(database: Database, key_id: str) -> Row:
    row = await queries.find_key(database, key_id)
    if row is None:
        raise no_such_key(key_id)
    return row
