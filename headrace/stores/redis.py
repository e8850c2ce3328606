"""The client of Redis that every process uses."""

from __future__ import annotations

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from headrace.stores import redis_url
from headrace.stores.redis_url import AWAY

_CHECK_KEY = "headrace:check"


def connect_redis(url: str) -> Redis:
    """Return a client that waits 2 s at most, so that an unavailable Redis slows no caller down for long."""
    return redis_url.connect(
        url,
        socket_timeout=2,
        socket_connect_timeout=1,
        health_check_interval=5,
        max_connections=64,
        retry=Retry(NoBackoff(), 0),
    )


async def redis_takes_writes(redis: Redis) -> bool:
    """Whether Redis takes writes. One that is full, read-only or loading counts as unavailable."""
    try:
        await redis.set(_CHECK_KEY, 1, ex=60)
    except AWAY:
        return False
    return True
