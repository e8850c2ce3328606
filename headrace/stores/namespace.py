"""The namespace of a deployment in Redis: what all its keys, queues and channels begin with.

The deployment's own database holds it (`headrace/stores/deployment.py`), so two deployments may share one Redis. A
database that was in use before namespaces existed has an empty one: its names have no prefix, because processes of the
previous release use them without a prefix.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from headrace.stores.redis_pipe import RedisPipe
from headrace.telemetry.stores import REDIS


class NamespacedRedis(Redis):
    """A client that knows the prefix of its deployment's names. It leaves the names in its commands as they are.

    Its commands share one connection (`headrace/stores/redis_pipe.py`), so none may block. Pipelines, channels and the
    queues that workers read have connections of their own.
    """

    prefix: str = ""
    _pipe: RedisPipe | None = None
    _opening: asyncio.Task[RedisPipe] | None = None

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Run one command, and measure its round trip."""
        options.pop("keys", None)  # which redis-py's cache alone reads
        if options:  # of commands that redis-py reads the answers of in another way
            return await _measured(super().execute_command(*args, **options))  # type: ignore[no-untyped-call]  # redis-py's
        answer = await _measured(self._ask_all((args,)))
        parse = self.response_callbacks.get(args[0])
        return answer if parse is None else parse(answer)

    async def publish_all(self, messages: Mapping[str, bytes]) -> None:
        """Publish a message on each of some channels, in one round trip.

        Raises:
            REDIS_UNAVAILABLE: Redis is unavailable. Some of the messages may have been published.
        """
        await _measured(self._ask_all([("PUBLISH", channel, message) for channel, message in messages.items()]))

    async def _ask_all(self, commands: Sequence[tuple[Any, ...]]) -> Any:
        pipe = self._pipe
        if pipe is None or pipe.closed:
            if self._opening is None or self._opening.done():
                self._opening = asyncio.create_task(self._open_pipe())
            pipe = await asyncio.shield(self._opening)  # which other commands wait for
        return await pipe.ask_all(commands)

    async def _open_pipe(self) -> RedisPipe:
        pool = self.connection_pool
        self._pipe = await RedisPipe.open(pool, patience_seconds=pool.connection_kwargs["socket_timeout"])
        return self._pipe

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Close every connection."""
        if self._opening is not None:
            self._opening.cancel()
        if self._pipe is not None:
            self._pipe.close()
        await super().aclose(close_connection_pool)

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
