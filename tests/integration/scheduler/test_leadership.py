"""One scheduler leads; another waits on one connection, and leads once the first is gone."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any

import pytest

from headrace.runtime.chores import going_on
from headrace.stores.database import Database
from scheduler.leadership import leadership
from tests.integration.databases import fetch
from tests.waiting import eventually

ASKING = """
    SELECT pid, query_start FROM pg_stat_activity
    WHERE datname = current_database() AND query LIKE '%THEN pg_try_advisory_lock%' AND pid <> pg_backend_pid()
        AND pid NOT IN (SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted)
"""


@pytest.fixture
async def other(database_url: str) -> AsyncIterator[Database]:
    """The connections of another scheduler."""
    other = Database.connect(database_url)
    yield other
    await other.close()


async def test_a_scheduler_that_waits_keeps_its_connection_and_leads_next(
    database: Database, other: Database, database_url: str
) -> None:
    leads = asyncio.Event()

    async def wait() -> None:
        async with leadership(other.relaxed) as keep:
            leads.set()
            await keep()

    def asked() -> list[tuple[Any, ...]]:
        return list(fetch(database_url, ASKING))

    async with leadership(database.relaxed) as keep, going_on(keep):
        waiting = asyncio.create_task(wait())
        asks: dict[int, set[Any]] = defaultdict(set)

        def asks_again() -> bool:
            for pid, began in asked():
                asks[pid].add(began)
            return any(len(times) > 1 for times in asks.values())

        await eventually(asks_again, "the other to ask for the lead twice on one connection")
        assert not leads.is_set()
    await eventually(leads.is_set, "the other to lead")
    waiting.cancel()
