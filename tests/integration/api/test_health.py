"""What `/readyz` costs the stores when many ask it."""

from __future__ import annotations

import asyncio

import pytest

from api.resources.health import StoresCheck
from headrace.dev.valkey import EmbeddedValkey
from headrace.runtime import fresh
from headrace.stores.database import Database
from headrace.stores.redis import connect_redis
from headrace.telemetry.metrics import STORE_SECONDS
from tests.metrics import Rise


@pytest.mark.parametrize("url", [None, "postgresql://headrace@127.0.0.1:1/none"], ids=["postgres", "no postgres"])
async def test_many_requests_at_once_ask_the_stores_as_one_does(
    database: Database, valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch, url: str | None
) -> None:
    monkeypatch.setattr(fresh, "_FRESH_SECONDS", 3600)  # a busy machine may need longer than a second for them
    database = database if url is None else Database.connect(url)
    async with connect_redis(valkey.url) as redis:
        check, asked = StoresCheck(database, redis), Rise(STORE_SECONDS)
        state = await check.state()
        assert state == ("ok" if url is None else "unavailable", True)
        by_one = asked()
        assert by_one["redis",] == 1
        assert set(await asyncio.gather(*(check.state() for _ in range(1000)))) == {state}
        assert asked() == by_one
        by_many, check = Rise(STORE_SECONDS), StoresCheck(database, redis)
        assert set(await asyncio.gather(*(check.state() for _ in range(1000)))) == {state}
        assert by_many() == by_one
    await database.close()
