"""`headrace jobs`: lists, shows and cancels jobs of any account, directly in the database."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

import click
import orjson
from rich.table import Column, Table

from headrace.cli.operators import get_account, with_database
from headrace.cli.printing import cell, json_option, moment, show, show_fields
from headrace.dev.embedded import locate
from headrace.ids import is_id
from headrace.jobs.job_object import no_such_job, render_job
from headrace.jobs.records import MovedJob
from headrace.jobs.sql.read import get_anyones_job, list_anyones_jobs
from headrace.jobs.state import State
from headrace.settings import Settings
from headrace.stores.connections import Row
from headrace.stores.database import Database
from headrace.usage.queries import render_cost

if TYPE_CHECKING:
    from headrace.events.publisher import Publisher


@click.group()
def jobs() -> None:
    """List, show and cancel jobs of any account."""


@jobs.command(name="list")
@click.option("--account", help="Only this account's jobs.")
@click.option("--status", "state", type=click.Choice(State, case_sensitive=False), help="Only jobs in this state.")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="Jobs to list at most.")
@json_option
@click.pass_obj
def list_(settings: Settings, account: str | None, state: State | None, limit: int, as_json: bool) -> None:
    """List jobs, newest first."""

    async def work(database: Database) -> Sequence[Row]:
        account_id = None if account is None else (await get_account(database, account)).id
        return await list_anyones_jobs(database, account_id=account_id, state=state, limit=limit)

    rows = with_database(settings, work)
    if as_json:
        click.echo(json.dumps([_document(row) for row in rows]))
        return
    table = Table(
        Column("id", no_wrap=True),
        "account",
        "model",
        "status",
        Column("attempt", justify="right"),
        Column("created", no_wrap=True),
        Column("seconds", justify="right"),
        Column("tokens", justify="right"),
        Column("cost, USD", justify="right"),
        box=None,
        header_style="bold",
    )
    for row in rows:
        table.add_row(
            row.id,
            cell(row.account),
            cell(row.model),
            row.state,
            str(row.attempt),
            moment(row.created_at),
            "" if row.finished_at is None else str(row.finished_at - row.created_at),
            "" if row.prompt_tokens is None else f"{row.prompt_tokens + row.completion_tokens:,}",
            "" if row.cost is None else render_cost(row.cost),
        )
    show(table)


@jobs.command(name="show")
@click.argument("job_id")
@json_option
@click.pass_obj
def show_(settings: Settings, job_id: str, as_json: bool) -> None:
    """Show a job, with its result or its error."""
    document = _document(with_database(settings, lambda database: _get(database, job_id)))
    if as_json:
        click.echo(json.dumps(document))
        return
    if document["result"] is not None:
        document["result"] = _texts(document["result"])
    document["attempts"] = "\n".join(map(_attempt, document["attempts"])) or None
    show_fields(document)


@jobs.command()
@click.argument("job_id")
@click.pass_obj
def cancel(settings: Settings, job_id: str) -> None:
    """Cancel a job: a queued job at once, a running job and its call when its worker gets the message."""
    from headrace.jobs.cancellation import cancel_job
    from headrace.stores.deployment import read_namespace

    async def work(database: Database) -> MovedJob:
        row = await _get(database, job_id)
        redis_url = locate(settings, redis=False).redis_url
        async with _publisher(redis_url, await read_namespace(settings, database)) as publisher:
            job = await cancel_job(database, publisher, job_id, row.account_id)
        if job is None:
            raise no_such_job(job_id)
        return job

    job = with_database(settings, work)
    if job.state is State.RUNNING:
        click.echo(f"{job_id} is running: its worker will cancel it.")
    elif job.state is State.CANCELLED:
        click.echo(f"Cancelled {job_id}.")
    else:
        raise click.ClickException(f"{job_id} has ended already: {job.state}.")


async def _get(database: Database, job_id: str) -> Row:
    row = await get_anyones_job(database, job_id) if is_id(job_id, "job") else None
    if row is None:
        raise no_such_job(job_id)
    return row


@contextlib.asynccontextmanager
async def _publisher(redis_url: str, namespace: str) -> AsyncIterator[Publisher | None]:
    """Yield a publisher, or None without a URL: workers and readers then learn of the cancellation from Postgres.

    Raises:
        SettingError: `headrace.stores.redis_url` does not understand the URL.
    """
    from headrace.events.publisher import Publisher
    from headrace.stores.redis import connect_redis

    if not redis_url:
        yield None
        return
    async with connect_redis(redis_url, namespace) as redis:
        publisher = Publisher(redis, interval_seconds=0)
        yield publisher
        await publisher.flush()


def _attempt(attempt: dict[str, Any]) -> str:
    """Return a line with an attempt's number, route, status, start, seconds and error, as far as they are known."""
    parts = [attempt["status"]]
    if attempt["provider"] is not None:
        parts.insert(0, f"{attempt['provider']}/{attempt['model']}")
    if (started_at := attempt["started_at"]) is not None:
        parts += [moment(int(started_at)), f"{attempt['ended_at'] - started_at:.3f} s"]
    if (error := attempt["error"]) is not None:
        parts.append(error["code"] or error["type"])
    return f"{attempt['attempt']}: {', '.join(parts)}"


def _texts(result: dict[str, Any]) -> str:
    """Return the texts of a result: of a completion's choices, or of a response's items."""
    if "choices" in result:
        return "\n".join(_answer(choice["message"]) for choice in result["choices"])
    return "\n".join(_item(item) for item in result["output"])


def _item(item: dict[str, Any]) -> str:
    """Return the text of a response's message, or another item as JSON."""
    if item["type"] != "message":
        return json.dumps(item, ensure_ascii=False)
    return "".join(part.get("text") or part.get("refusal") or "" for part in item["content"])


def _answer(message: dict[str, Any]) -> str:
    """Return the text of a message, and its other fields, such as tool calls, as JSON."""
    text = message.get("content") or ""
    rest = {name: value for name, value in message.items() if name not in {"role", "content"} and value}
    return "\n".join([str(text), *([json.dumps(rest, ensure_ascii=False)] if rest else [])]).strip()


def _document(row: Row) -> dict[str, Any]:
    """Return the job as the API renders it, with its account."""
    return {"account": row.account, **orjson.loads(orjson.dumps(render_job(row)))}
