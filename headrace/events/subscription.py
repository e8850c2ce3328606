"""One process's subscription to channels of Redis, which survives reconnections."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Collection
from typing import Any

from redis.asyncio import Redis

from headrace.events.wire import CALLS_BEGIN, CANCEL_CHANNEL, WORK_CHANNEL, calls_channel
from headrace.runtime.chores import until_tick, wait_for
from headrace.runtime.machine import machine_id
from headrace.stores.namespace import prefix_in
from headrace.stores.redis_pipe import RedisPipe

log = logging.getLogger(__name__)

# Channels in one command.
_MOST_CHANNELS = 1000
# Seconds of silence after which a connection is tried, and seconds that Redis has to answer.
_QUIET_SECONDS = 4
_ANSWER_SECONDS = 2
# Seconds between a connection that broke, or could not be had, and the next.
_AGAIN_SECONDS = 0.5


class Subscription:
    """A pub/sub connection that reconnects by itself and subscribes to its channels again."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._pipe: RedisPipe | None = None
        self._channels: dict[str, asyncio.Event] = {}
        self._heard = False
        """Whether anything came since the last look."""

    @property
    def connected(self) -> bool:
        """Whether messages come."""
        return self._pipe is not None and not self._pipe.closed

    async def subscribe(self, channel: str) -> None:
        """Subscribe, and wait until Redis confirms it; while Redis is unavailable, return at once."""
        confirmed = self._channels.setdefault(channel, asyncio.Event())
        if self._pipe is not None and not self._pipe.closed and not confirmed.is_set():
            self._pipe.tell("SUBSCRIBE", channel)
            await wait_for(confirmed, _ANSWER_SECONDS)

    def unsubscribe(self, channel: str) -> None:
        """Unsubscribe from a channel."""
        self._channels.pop(channel, None)
        if self._pipe is not None:
            self._pipe.tell("UNSUBSCRIBE", channel)

    async def run(self, take: Callable[[bytes | None], None]) -> None:
        """Call `take` with each message, until cancelled; with None once connected, as messages may have been missed.

        It is called as the message comes, so it may not wait.
        """
        while True:
            try:
                await self._serve(take)
            except Exception as error:  # noqa: BLE001  # whatever it is, the answer is to connect again
                if self._pipe is not None:
                    log.warning("lost the live wire: %r", error)
            finally:
                self._disconnect()
            await asyncio.sleep(_AGAIN_SECONDS)

    async def _serve(self, take: Callable[[bytes | None], None]) -> None:
        """Serve one connection until it ends, and raise the reason."""
        pool = self._redis.connection_pool
        push = functools.partial(self._push, take)
        pipe = await RedisPipe.open(pool, patience_seconds=_ANSWER_SECONDS, on_push=push)
        self._pipe = pipe
        for channels in _batches(self._channels):
            pipe.tell("SUBSCRIBE", *channels)
        take(None)
        while not pipe.closed:
            self._heard = False
            await asyncio.wait([pipe.ended], timeout=until_tick(_QUIET_SECONDS))
            if not self._heard and not pipe.closed:
                await pipe.ask("PING")
        raise pipe.ended.result()

    def _push(self, take: Callable[[bytes | None], None], pushed: Any) -> None:
        self._heard = True
        if isinstance(pushed, list) and len(pushed) == 3:
            kind, channel, content = pushed
            if kind == b"message":
                take(content)
            elif kind == b"subscribe" and (confirmed := self._channels.get(channel.decode())) is not None:
                confirmed.set()

    def _disconnect(self) -> None:
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None
        for confirmed in self._channels.values():
            confirmed.clear()


def _batches(channels: Collection[str]) -> list[list[str]]:
    """Return the channels in commands of a bounded size: Redis serves nothing else while it runs one."""
    listed = list(channels)
    return [listed[start : start + _MOST_CHANNELS] for start in range(0, len(listed), _MOST_CHANNELS)]


async def hear_cancellations(
    redis: Redis, hear: Callable[[str], None], *, on_calls: Callable[[], None] | None = None
) -> None:
    """Call `hear` with the ids of jobs as clients cancel them, until cancelled.

    `on_calls` is called when a worker of this machine that was quiet makes a call.
    """

    def take(message: bytes | None) -> None:
        if message == CALLS_BEGIN and on_calls is not None:
            on_calls()
        elif message is not None:
            hear(message.decode())

    subscription = Subscription(redis)
    await subscription.subscribe(prefix_in(redis) + CANCEL_CHANNEL)
    if on_calls is not None:
        await subscription.subscribe(calls_channel(machine_id(), prefix_in(redis)))
    await subscription.run(take)


async def hear_work(redis: Redis, look: Callable[[], None]) -> None:
    """Call `look` when a batch or a webhook waits for the scheduler, and once connected, until cancelled."""
    subscription = Subscription(redis)
    await subscription.subscribe(prefix_in(redis) + WORK_CHANNEL)
    await subscription.run(lambda _: look())
