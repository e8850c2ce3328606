"""What operators' commands share: the database connection, and accounts by their names."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import click

from headrace.cli.parts import plain_errors
from headrace.dev.embedded import locate
from headrace.errors import NotFoundError
from headrace.keys.accounts import find_account
from headrace.keys.key_object import no_such_account
from headrace.settings import Settings
from headrace.stores.connections import Row
from headrace.stores.database import Database

Result = TypeVar("Result")


def with_database(settings: Settings, work: Callable[[Database], Awaitable[Result]]) -> Result:
    """Connect to the database of the settings, do some work, and disconnect.

    Raises:
        click.ClickException: The key, account or job that the work is about does not exist.
    """

    async def connected() -> Result:
        database = Database.connect(locate(settings, redis=False).database_url)
        try:
            return await work(database)
        finally:
            await database.close()

    with plain_errors():
        try:
            return asyncio.run(connected())
        except NotFoundError as error:
            raise click.ClickException(error.message) from error


async def get_account(database: Database, name: str) -> Row:
    """Return the account of this name, as `find_account` does.

    Raises:
        NotFoundError: There is no such account.
    """
    row = await find_account(database, name=name)
    if row is None:
        raise no_such_account(name)
    return row
