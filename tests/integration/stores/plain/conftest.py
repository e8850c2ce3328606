"""A database on each kind of loop: services run on uvloop, commands on asyncio's own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping

import pytest
import uvloop

from headrace.stores.database import Database


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run each test on both loops."""
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture
async def one(database_url: str) -> AsyncIterator[Database]:
    """One connection of each kind."""
    database = Database.connect(database_url, connections=1)
    yield database
    await database.close()
