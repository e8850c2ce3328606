"""Health: whether the process is alive, and whether it can accept jobs."""

from __future__ import annotations

import asyncio
from typing import Literal

import orjson
from fastapi import APIRouter
from pydantic import BaseModel
from redis.asyncio import Redis
from sqlalchemy.exc import SQLAlchemyError
from starlette.responses import Response

from api.http.request import ApiRequest
from headrace.runtime.fresh import Fresh
from headrace.stores.database import Database
from headrace.stores.redis import redis_takes_writes
from headrace.stores.schema import current_revision, is_fit

router = APIRouter(tags=["Health"])

DatabaseState = Literal["ok", "not migrated", "unavailable"]


class Health(BaseModel):
    """The answer of a process that is alive."""

    status: Literal["ok"]


class Readiness(BaseModel):
    """Whether the process can accept jobs, and the state of each store."""

    status: Literal["ready", "not ready"]
    database: DatabaseState
    redis: Literal["ok", "refuses writes", "unavailable"]


class StoresCheck:
    """Checks Postgres and Redis, at most once a second: `/readyz` needs no key, so anyone may ask often."""

    def __init__(self, database: Database, redis: Redis) -> None:
        """Take the stores; `state` checks them."""
        self._database = database
        self._redis = redis
        self._fresh = Fresh(self._look)

    async def state(self) -> tuple[DatabaseState, bool]:
        """Return the state of Postgres, and whether Redis accepts writes. The result may be a second old."""
        return await self._fresh.get()

    async def _look(self) -> tuple[DatabaseState, bool]:
        database, takes_writes = await asyncio.gather(self._look_at_postgres(), redis_takes_writes(self._redis))
        return database, takes_writes

    async def _look_at_postgres(self) -> DatabaseState:
        try:
            async with asyncio.timeout(5):
                revision = await current_revision(self._database)
        except (SQLAlchemyError, TimeoutError):
            return "unavailable"
        return "ok" if is_fit(revision) else "not migrated"


@router.get("/healthz", summary="Is the process alive?", responses={200: {"model": Health}})
async def healthz() -> Response:
    """Answer while the process is alive, even if the stores are unavailable."""
    return Response(b'{"status":"ok"}', media_type="application/json")


@router.get(
    "/readyz",
    summary="Can it accept jobs?",
    responses={
        200: {"model": Readiness},
        503: {"model": Readiness, "description": "Postgres is unavailable or not migrated"},
    },
)
async def readyz(request: ApiRequest) -> Response:
    """Return whether Postgres has the schema of this release or a later one, and whether Redis works.

    Jobs are accepted without Redis, so the answer is 503 only because of Postgres.
    """
    database, takes_writes = await request.state["stores_check"].state()
    redis = "unavailable"
    if request.state["hub"].connected:
        redis = "ok" if takes_writes else "refuses writes"
    ready = database == "ok"
    body = {"status": "ready" if ready else "not ready", "database": database, "redis": redis}
    return Response(orjson.dumps(body), 200 if ready else 503, media_type="application/json")
