"""What the subscribers of a batch cost Postgres, and how their streams end."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from starlette.types import Message

from api import watched_batches
from api.http import authentication
from api.http.authentication import Authenticator
from api.http.request import ApiRequest
from api.http.sse import EventStream
from api.http.subscribers import Subscribers
from api.resources import batches
from api.watched_batches import WatchedBatches
from headrace.batches.queries import cancel_batch
from headrace.events.hub import Hub
from headrace.keys.queries import create_key, revoke_key
from headrace.runtime.chores import going_on
from headrace.settings import Settings
from headrace.stores.database import Database, execute
from headrace.stores.redis import connect_redis
from headrace.telemetry.metrics import STORE_SECONDS
from tests.integration.batches.test_queries import create
from tests.integration.job_rows import Owner
from tests.metrics import Rise
from tests.waiting import eventually


class Watcher:
    """A client that reads the events of a batch."""

    def __init__(self, state: dict[str, Any], key: str) -> None:
        self.looks = 0
        """How often the server has looked whether the client is there."""
        self.told = b""
        headers = [(b"authorization", f"Bearer {key}".encode())]
        scope: dict[str, Any] = {
            "type": "http",
            "method": "GET",
            "headers": headers,
            "query_string": b"",
            "state": dict(state),
        }
        self.request = ApiRequest(scope, self._receive)

    async def _receive(self) -> Message:
        self.looks += 1
        await asyncio.Event().wait()
        raise AssertionError

    async def write(self, events: list[bytes]) -> None:
        self.told += b"".join(events)

    async def watch(self, batch_id: str) -> None:
        principal = await authentication.authenticate(self.request)
        answer = await batches.watch_batch(self.request, principal, batch_id)
        assert isinstance(answer, EventStream)
        await answer._tell(self.write)


@pytest.fixture
async def state(database: Database) -> AsyncIterator[dict[str, Any]]:
    async with connect_redis("redis://127.0.0.1:1") as redis:
        settings = Settings()
        hub = Hub(redis, buffer_bytes=settings.subscriber_buffer_bytes, patience_seconds=settings.ping_seconds)
        yield {
            "database": database,
            "settings": settings,
            "hub": hub,
            "subscribers": Subscribers(1000),
            "authenticator": Authenticator(database),
            "watched_batches": WatchedBatches(database),
        }


@asynccontextmanager
async def watching(watchers: list[Watcher], batch_id: str) -> AsyncIterator[list[asyncio.Task[None]]]:
    """Have clients watch a batch, and yield once each has had its first event."""
    tasks = [asyncio.create_task(watcher.watch(batch_id)) for watcher in watchers]
    try:
        await eventually(lambda: all(watcher.told for watcher in watchers), "the first event of each")
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_many_subscribers_of_a_batch_ask_postgres_as_one_does(
    database: Database, owner: Owner, state: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(watched_batches, "_FRESH_SECONDS", 3600)
    _, key = await create_key(database, account_id=owner.account_id)
    watchers = [Watcher(state, key) for _ in range(100)]
    async with watching(watchers, await create(database, owner, total=5)):
        seen, asked = [watcher.looks for watcher in watchers], Rise(STORE_SECONDS)
        await eventually(
            lambda: all(watcher.looks >= looks + 5 for watcher, looks in zip(watchers, seen, strict=True)),
            "five looks of each",
        )
        assert sum(asked().values()) <= 1
    assert state["subscribers"].number == 0

    def is_forgotten() -> bool:
        gc.collect()
        return not state["watched_batches"]._batches

    await eventually(is_forgotten, "the batch to be forgotten")


async def test_subscribers_get_each_change_and_the_end(database: Database, owner: Owner, state: dict[str, Any]) -> None:
    _, key = await create_key(database, account_id=owner.account_id)
    watchers = [Watcher(state, key) for _ in range(3)]
    batch_id = await create(database, owner, total=5)
    async with watching(watchers, batch_id) as tasks:
        await cancel_batch(database, batch_id, owner.account_id)
        await eventually(lambda: all(b'"cancelling"' in watcher.told for watcher in watchers), "the change")
        end = "UPDATE batches SET state = 'cancelled', cancelled_at = now() WHERE id = %(id)s"
        await execute(database.durable, end, {"id": batch_id})
        await asyncio.gather(*tasks)
    assert all(b"event: batch.cancelled" in watcher.told for watcher in watchers)


async def test_a_stream_ends_when_its_key_is_revoked(
    database: Database, owner: Owner, state: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(authentication, "_RECHECK_SECONDS", 0.05)
    keys = [await create_key(database, account_id=owner.account_id) for _ in range(2)]
    revoked, other = (Watcher(state, key) for _, key in keys)
    async with (
        going_on(state["authenticator"].run),
        watching([revoked, other], await create(database, owner, total=5)) as (ending, going),
    ):
        await revoke_key(database, keys[0][0])
        await ending
        assert b"event: error" in revoked.told
        assert b"invalid_api_key" in revoked.told
        assert not going.done()
    assert not state["authenticator"]._held
