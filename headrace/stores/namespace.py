"""The namespace of a deployment in Redis: what all its keys, queues and channels begin with.

The deployment's own database holds it (`headrace/stores/deployment.py`), so two deployments may share one Redis. A
database that was in use before namespaces existed has an empty one: its names have no prefix, because processes of the
previous release use them without a prefix.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from headrace.telemetry.stores import REDIS


class NamespacedRedis(Redis):
    """A client that knows the prefix of its deployment's names. It leaves the names in its commands as they are."""

    prefix: str = ""

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Run one command, and measure its round trip."""
        return await _measured(super().execute_command(*args, **options))  # type: ignore[no-untyped-call]

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        """Return a pipeline, whose commands are measured as one round trip."""
        return _MeasuredPipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)


class _MeasuredPipeline(Pipeline):
    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Run the commands, and measure their round trip."""
        answers: list[Any] = await _measured(super().execute(raise_on_error))
        return answers


async def _measured(answer: Awaitable[Any]) -> Any:
    """Return what Redis answers, and note how long it took, or that Redis is unavailable."""
    began = time.monotonic()
    try:
        answered = await answer
    except (RedisConnectionError, RedisTimeoutError, OSError):
        REDIS.unavailable()
        raise
    REDIS.answered(time.monotonic() - began)
    return answered


def prefix_of(namespace: str | None) -> str:
    """Return what names in a namespace begin with."""
    return f"{namespace}:" if namespace else ""


def prefix_in(redis: Redis) -> str:
    """Return what the names of a client's deployment begin with."""
    return redis.prefix if isinstance(redis, NamespacedRedis) else ""
