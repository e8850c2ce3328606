"""What operators' commands share: the database connection."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from headrace.cli.parts import plain_errors
from headrace.dev.embedded import locate
from headrace.settings import Settings
from headrace.stores.database import Database

Result = TypeVar("Result")


def with_database(settings: Settings, work: Callable[[Database], Awaitable[Result]]) -> Result:
    """Connect to the database of the settings, do some work, and disconnect."""

    async def connected() -> Result:
        database = Database.connect(locate(settings, redis=False).database_url)
        try:
            return await work(database)
        finally:
            await database.close()

    with plain_errors():
        return asyncio.run(connected())
