"""How workers tell each other about their paths to providers, over one hash in Redis.

Each worker writes a field of its own, every second or two and whenever it has news, and reads all of them in the same
round trip: which tiers it serves, which circuits are open on its own paths or have failures, and where it has had an
answer while a circuit is open elsewhere. Pauses that providers asked for are fields too, as they bind every worker. A
worker changes its own field alone, so no field has to be compared or locked. A worker that has not written for a while
does not count. `headrace/runtime/presence.py` has the format of a field.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from redis.asyncio import Redis

from headrace.events.wire import CALLS_BEGIN, calls_channel
from headrace.runtime.machine import machine_id
from headrace.runtime.presence import KEY, PRESENT_MS, View
from headrace.stores.lua import read_script
from headrace.stores.namespace import prefix_in

_TELL = read_script(__package__, "peers.lua")


@dataclass(frozen=True, slots=True)
class News:
    """What a worker reads."""

    forgotten: bool
    """Whether this worker's field is missing: it was never written, or an operator or Redis has dropped the hash."""
    others: Sequence[View]
    pauses: Mapping[str, float]
    """Seconds until each paused route may be called again."""


class Peers:
    """The hash, as one worker reads and writes it."""

    def __init__(self, redis: Redis, worker: str) -> None:
        """Write as this worker, by a name that no other worker has."""
        self._worker = worker
        self._key = prefix_in(redis) + KEY
        self._channel = calls_channel(machine_id(), prefix_in(redis))
        self._tell = redis.register_script(_TELL)

    async def tell(self, view: View, pauses: Iterable[tuple[str, float]] = (), *, at_once: bool = False) -> News:
        """Write this worker's view and the pauses, in seconds, that providers asked it for; return all others.

        With `at_once`, the workers of this machine that run lines of batches read it at once.

        Raises:
            REDIS_UNAVAILABLE: Redis is unavailable.
        """
        arguments = [argument for route, seconds in pauses for argument in (route, int(seconds * 1000))]
        said = [self._worker, view.pack(), PRESENT_MS, CALLS_BEGIN if at_once else b"", *arguments]
        known, views, kept = await self._tell(keys=[self._key, self._channel], args=said)
        return News(
            forgotten=not known,
            others=[View.unpack(text) for text in views],
            pauses={kept[at].decode(): kept[at + 1] / 1000 for at in range(0, len(kept), 2)},
        )
