"""The client of Redis that every process uses."""

from __future__ import annotations

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from headrace.stores import redis_url
from headrace.stores.namespace import NamespacedRedis, prefix_in
from headrace.stores.redis_url import AWAY

_CHECK_KEY = "headrace:check"


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
    """Whether Redis takes writes. One that is full, read-only or loading counts as unavailable."""
    try:
        await redis.set(prefix_in(redis) + _CHECK_KEY, 1, ex=60)
    except AWAY:
        return False
    return True
