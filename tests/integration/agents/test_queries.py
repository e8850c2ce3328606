"""Stored agents: how many an account has, how large a page is, and which columns a list reads."""

from __future__ import annotations

import asyncio
import time

import orjson
import pytest

from api.resources import health
from api.resources.health import StoresCheck
from headrace.agents import queries
from headrace.ids import new_id
from headrace.stores.database import Database, execute
from headrace.stores.redis import connect_redis
from headrace.stores.schema import current_revision
from tests.integration.job_rows import Owner
from tests.service import Stores


@pytest.fixture(autouse=True)
async def no_agents(database: Database) -> None:
    await execute(database.durable, "TRUNCATE agents, agent_versions CASCADE")


async def create(database: Database, owner: Owner, *, model: str = "m", size: int = 10) -> str:
    agent_id = new_id("agent")
    definition = orjson.dumps({"name": "\0", "model": model, "bio": "x" * size}).decode()
    await queries.create_agent(database, agent_id, owner.account_id, definition=definition, model=model)
    return agent_id


async def test_an_account_has_so_many_agents_and_no_more(
    database: Database, owner: Owner, stranger: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "MOST_AGENTS", 3)
    made = [await create(database, owner) for _ in range(4)]
    found = [await queries.find_agent(database, agent, owner.account_id) is not None for agent in made]
    assert found == [True, True, True, False]
    assert await queries.delete_agent(database, made[0], owner.account_id)
    again = await create(database, owner)
    assert await queries.find_agent(database, again, owner.account_id) is not None
    other = await create(database, stranger)
    assert await queries.find_agent(database, other, stranger.account_id) is not None


@pytest.mark.parametrize("descending", [False, True])
async def test_a_page_ends_where_it_has_enough_to_read(
    database: Database, owner: Owner, monkeypatch: pytest.MonkeyPatch, descending: bool
) -> None:
    monkeypatch.setattr(queries, "_PAGE_BYTES", 2500)
    made = [await create(database, owner, size=1000) for _ in range(7)]
    seen: list[str] = []
    more = True
    while more:
        page, more = await queries.list_agents(
            database, owner.account_id, after=seen[-1] if seen else None, limit=5, descending=descending
        )
        assert 1 <= len(page) <= 3
        seen += [agent.id for agent in page]
    assert seen == sorted(made, reverse=descending)


async def test_versions_are_paged_likewise(database: Database, owner: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = await create(database, owner)
    for version in range(1, 5):
        definition = orjson.dumps({"model": "m", "version": version}).decode()
        assert await queries.update_agent(
            database, agent, owner.account_id, version=version, definition=definition, model="m"
        )
    page, more = await queries.list_versions(database, agent, owner.account_id, limit=3)
    assert ([found.version for found in page], more) == ([5, 4, 3], True)
    monkeypatch.setattr(queries, "_PAGE_BYTES", 1)
    page, more = await queries.list_versions(database, agent, owner.account_id, limit=3)
    assert ([found.version for found in page], more) == ([5], True)


async def test_a_list_of_models_knows_them_without_the_definitions(database: Database, owner: Owner) -> None:
    one = await create(database, owner, model="a")
    two = await create(database, owner, model="b")
    await execute(database.durable, "UPDATE agent_versions SET model = NULL WHERE agent_id = %(id)s", {"id": two})
    models = await queries.list_agent_models(database, owner.account_id)
    assert [(agent.id, agent.model) for agent in models] == [(two, "b"), (one, "a")]


async def test_stores_are_asked_once_however_many_want_to_know(
    database: Database, stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0

    async def counted(connected: Database) -> str | None:
        nonlocal asked
        asked += 1
        return await current_revision(connected)

    monkeypatch.setattr(health, "current_revision", counted)
    redis = connect_redis(stores.redis_url)
    check = StoresCheck(database, redis)
    begun = time.monotonic()
    assert set(await asyncio.gather(*(check.state() for _ in range(50)))) == {("ok", True)}
    assert asked <= 1 + (time.monotonic() - begun)  # once a second, on a machine as slow as can be
    await redis.aclose()
