"""The client of Redis that every process uses."""

from __future__ import annotations

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from headrace.stores import redis_url
from headrace.stores.namespace import NamespacedRedis, prefix_in

REDIS_UNAVAILABLE = (RedisError, OSError, TimeoutError, RuntimeError)
"""Errors of redis-py while Redis is unavailable. RuntimeError is uvloop's, of a transport that was closed meanwhile."""

_CHECK_KEY = "headrace:check"


def is_bad_data(error: Exception) -> bool:
    """Return whether a command failed because of what its keys hold, and not because of the state of Redis.

    A Redis that is full, read-only, loading, busy, or lacks a permission refuses any keys.
    """
    return type(error) is ResponseError and str(error).startswith(("WRONGTYPE", "ERR", "user_script"))


def connect_redis(url: str, namespace: str | None = None) -> NamespacedRedis:
    """Return a client of a deployment's namespace that waits 2 s at most, so an unavailable Redis slows no caller."""
    return redis_url.connect(
        url,
        namespace=namespace,
        socket_timeout=2,
        socket_connect_timeout=1,
        health_check_interval=5,
        max_connections=64,
        retry=Retry(NoBackoff(), 0),
    )


async def redis_takes_writes(redis: Redis) -> bool:
    """Return whether Redis takes writes. One that is full, read-only or loading counts as unavailable."""
    try:
        await redis.set(prefix_in(redis) + _CHECK_KEY, 1, ex=60)
    except REDIS_UNAVAILABLE:
        return False
    return True
