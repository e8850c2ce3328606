"""A database on each kind of loop: services run on uvloop, commands on asyncio's own."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from headrace.stores.database import Database
from tests.loops import pytest_asyncio_loop_factories

__all__ = ["pytest_asyncio_loop_factories"]


@pytest.fixture
async def one(database_url: str) -> AsyncIterator[Database]:
    """One connection of each kind."""
    database = Database.connect(database_url, connections=1)
    yield database
    await database.close()
