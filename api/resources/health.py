"""Whether the process lives, and whether it can do its work."""

from __future__ import annotations

import asyncio
import math
import time
from typing import Literal

import orjson
from fastapi import APIRouter, Request
from pydantic import BaseModel
from redis.asyncio import Redis
from sqlalchemy.exc import SQLAlchemyError
from starlette.responses import Response

from headrace.stores.database import Database
from headrace.stores.redis import redis_takes_writes
from headrace.stores.schema import current_revision, is_fit

router = APIRouter(tags=["Health"])

DatabaseState = Literal["ok", "not migrated", "away"]

# Seconds for which an answer is as good as new.
_FRESH_SECONDS = 1.0


class Health(BaseModel):
    """That the process answers."""

    status: Literal["ok"]


class Readiness(BaseModel):
    """Whether jobs can be accepted, and what of that which it takes is there."""

    status: Literal["ready", "not ready"]
    database: DatabaseState
    redis: Literal["ok", "refuses writes", "away"]


class StoresCheck:
    """Whether Postgres and Redis can be used: asked once a second, however many want to know without a key."""

    def __init__(self, database: Database, redis: Redis) -> None:
        """Ask nothing yet."""
        self._database = database
        self._redis = redis
        self._turn = asyncio.Lock()
        self._state: tuple[DatabaseState, bool] = "away", False
        self._until = -math.inf

    async def state(self) -> tuple[DatabaseState, bool]:
        """Return what Postgres is like, and whether Redis takes writes, or was and did within the last second."""
        async with self._turn:
            if time.monotonic() >= self._until:
                database, takes_writes = await asyncio.gather(self._look(), redis_takes_writes(self._redis))
                self._state = database, takes_writes
                self._until = time.monotonic() + _FRESH_SECONDS
        return self._state

    async def _look(self) -> DatabaseState:
        try:
            async with asyncio.timeout(5):
                revision = await current_revision(self._database)
        except (SQLAlchemyError, TimeoutError):
            return "away"
        return "ok" if is_fit(revision) else "not migrated"


@router.get("/healthz", summary="Is the process alive?", responses={200: {"model": Health}})
async def healthz() -> Response:
    """Answer while this process works, whether or not the stores are available."""
    return Response(b'{"status":"ok"}', media_type="application/json")


@router.get(
    "/readyz",
    summary="Can it accept jobs?",
    responses={200: {"model": Readiness}, 503: {"model": Readiness, "description": "Postgres is away or not migrated"}},
)
async def readyz(request: Request) -> Response:
    """Tell whether Postgres has this release's schema or a later one, and whether the live wire and Redis work.

    Without Redis jobs are accepted all the same, so it alone does not make the answer 503.
    """
    database, takes_writes = await request.state.stores_check.state()
    redis = "away"
    if request.state.hub.connected:
        redis = "ok" if takes_writes else "refuses writes"
    ready = database == "ok"
    body = {"status": "ready" if ready else "not ready", "database": database, "redis": redis}
    return Response(orjson.dumps(body), 200 if ready else 503, media_type="application/json")
