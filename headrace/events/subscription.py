"""One process's subscription to channels of Redis, which survives reconnections."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Collection, Iterator
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.client import PubSub

from headrace.events.wire import CANCEL_CHANNEL
from headrace.stores.namespace import prefix_in

log = logging.getLogger(__name__)

# Channels in one command.
_MOST_CHANNELS = 1000


class Subscription:
    """A pub/sub connection that reconnects by itself and subscribes to its channels again."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._pubsub: PubSub | None = None
        self._channels: dict[str, asyncio.Event] = {}
        self.connected = False

    async def subscribe(self, channel: str) -> None:
        """Subscribe, and wait until Redis confirms it; while Redis is unavailable, return at once."""
        confirmed = self._channels.setdefault(channel, asyncio.Event())
        if (pubsub := self._alive()) is not None and not confirmed.is_set():
            with _lost_meanwhile():
                await pubsub.subscribe(channel)
                async with asyncio.timeout(2):
                    await confirmed.wait()

    async def unsubscribe(self, channel: str) -> None:
        """Unsubscribe from a channel."""
        self._channels.pop(channel, None)
        if (pubsub := self._alive()) is not None:
            with _lost_meanwhile():
                await pubsub.unsubscribe(channel)

    def _alive(self) -> PubSub | None:
        """Return the connection unless it broke: redis-py would replace it without `messages` noticing."""
        pubsub = self._pubsub
        connection: Any = pubsub and pubsub.connection
        return pubsub if self.connected and connection is not None and connection.is_connected else None

    async def messages(self) -> AsyncIterator[bytes | None]:
        """Yield the messages; None after each reconnection, as messages may have been missed before it."""
        while True:
            try:
                async with self._redis.pubsub() as self._pubsub:
                    before = set(self._channels)
                    for channels in _batches(before):
                        await self._pubsub.subscribe(*channels)
                    self.connected = True
                    for channels in _batches(self._channels.keys() - before):
                        await self._pubsub.subscribe(*channels)
                    for channels in _batches(before - self._channels.keys()):
                        await self._pubsub.unsubscribe(*channels)
                    yield None
                    while True:
                        message: dict[str, Any] | None = await self._pubsub.get_message(timeout=5)
                        if message is None:
                            continue
                        if message["type"] == "message":
                            yield message["data"]
                        elif message["type"] == "subscribe":
                            self._confirm(message["channel"].decode())
            except Exception as error:  # noqa: BLE001  # whatever it is, the answer is to connect again
                if self.connected:
                    log.warning("lost the live wire: %r", error)
                self._disconnected()
                await asyncio.sleep(0.5)

    def _confirm(self, channel: str) -> None:
        if channel in self._channels:
            self._channels[channel].set()

    def _disconnected(self) -> None:
        self.connected = False
        self._pubsub = None
        for confirmed in self._channels.values():
            confirmed.clear()


def _batches(channels: Collection[str]) -> list[list[str]]:
    """Return the channels in commands of a bounded size: Redis serves nothing else while it runs one."""
    listed = list(channels)
    return [listed[start : start + _MOST_CHANNELS] for start in range(0, len(listed), _MOST_CHANNELS)]


@contextlib.contextmanager
def _lost_meanwhile() -> Iterator[None]:
    """Let `messages` deal with a connection that breaks, which then fails in more ways than redis-py has errors for."""
    try:
        yield
    except Exception as error:  # noqa: BLE001
        log.debug("the live wire broke under a subscription: %r", error)


async def cancelled_jobs(redis: Redis) -> AsyncIterator[str]:
    """Yield the ids of jobs as clients cancel them, for as long as the caller asks."""
    subscription = Subscription(redis)
    await subscription.subscribe(prefix_in(redis) + CANCEL_CHANNEL)
    async for message in subscription.messages():
        if message is not None:
            yield message.decode()
