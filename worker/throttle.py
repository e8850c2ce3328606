"""The throttle of providers: how many calls and tokens each takes at once and in a minute, over all workers together.

One script in Redis decides on all three limits at once: calls under way, calls in a minute, tokens in a minute. A
permit that is not granted costs nothing. Calls that ask together, or while another question is under way, share a round
trip, which also reports the calls that have ended meanwhile.

* Calls under way: each worker reports how many it has, with every question and every heartbeat, and its report holds
  for a lease. So the slots of a killed worker come back by themselves, the next question corrects an answer that was
  lost on its way, and a Redis that was emptied has the whole count again after a heartbeat.
* A minute is any sixty seconds: the last of them are counted in thirty slots of two seconds each, and a slot counts
  until all of it is a minute old. A call's tokens are estimated when its permit is granted, and corrected when it ends.
* Within a worker accounts take turns, and calls with a waiting client come first (`worker/fair_queue.py`). Between
  workers the order is that of arrival, by the oldest waiting call. A worker that asks reports how many calls wait
  there, and the others leave free capacity to calls that came earlier.

A route of a provider without limits has a limit that adapts (`worker/adaptive_queue.py`): calls under way alone.

While Redis is unavailable, each worker applies the whole limits by itself: it cannot know how many others there are.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from redis.asyncio import Redis

from headrace.formats.chat.usage import estimate_usage, longest_answer
from headrace.ids import new_id
from headrace.runtime.chores import next_tick
from headrace.stores.lua import read_script
from headrace.stores.namespace import prefix_in
from headrace.telemetry.metrics import ADAPTIVE_LIMIT
from worker.adaptive_queue import AdaptivePermit, AdaptiveQueue
from worker.crowds import Crowd
from worker.permits import UNLIMITED, PendingPermit, Permit, PermitQueue
from worker.window import Cost, Decision, ProviderLimits

log = logging.getLogger(__name__)

_ADMIT = read_script(__package__, "throttle.lua")
# Seconds for which other workers leave room for the calls that wait in a worker, after it last asked.
_PLACE_SECONDS = 3.0
# Seconds between two looks for a Redis that is unavailable.
_COME_BACK_SECONDS = 1.0
# Heartbeats in the time of a lease.
_HEARTBEATS = 5
# Tokens of an answer that are reserved at most: the limits of requests are often far beyond what their answers use.
_MOST_RESERVED_OUTPUT = 4096
# Queues of one worker: a route by a glob takes any model's name, so clients can name many.
_MOST_QUEUES = 1000


class LimitedProvider(Protocol):
    """The limits of a provider; None is no limit."""

    @property
    def max_concurrency(self) -> int | None: ...  # noqa: D102
    @property
    def requests_per_minute(self) -> int | None: ...  # noqa: D102
    @property
    def tokens_per_minute(self) -> int | None: ...  # noqa: D102
    @property
    def adaptive_concurrency(self) -> bool: ...  # noqa: D102


def estimate_tokens(request: Mapping[str, Any]) -> int:
    """Return how many tokens to reserve for a chat completion: those of its prompt, and the limit of its answer."""
    limit = longest_answer(request) or 0
    return estimate_usage(request, "").prompt_tokens + min(limit, _MOST_RESERVED_OUTPUT) * (request.get("n") or 1)


class Throttle:
    """The limits of all providers, which one worker keeps together with the others."""

    def __init__(
        self,
        redis: Redis,
        *,
        lease_seconds: float,
        window_seconds: float = 60.0,
        measured: Callable[[str], bool] = lambda route: False,  # noqa: ARG005
    ) -> None:
        """Keep this worker's slots for `lease_seconds` after its last report; a minute has `window_seconds`.

        `measured` tells whether a route's adaptive limit has a metric.
        """
        self._queues: dict[str, PermitQueue] = {}
        """By provider, and by route where the limit adapts."""
        self._measured = measured
        self._window_seconds = window_seconds
        self._lease_seconds = lease_seconds
        self._worker = new_id("worker")
        self._prefix = f"{prefix_in(redis)}headrace:limits:"
        self._script = redis.register_script(_ADMIT)
        self._shared = True

    @property
    def shared(self) -> bool:
        """Whether this worker keeps the limits with the others; while Redis is unavailable, it keeps them alone."""
        return self._shared

    def permit(
        self,
        name: str,
        provider: LimitedProvider,
        request: Mapping[str, Any],
        *,
        route: str = "",
        account: str = "",
        background: bool = False,
        calls: int = 1,
        more: int = 0,
        patience_seconds: float = math.inf,
        crowd: Crowd | None = None,
    ) -> AbstractAsyncContextManager[Permit]:
        """Return a context that is entered when the provider may be called for this request.

        It may be called `calls` times at once, and `more` times as those end. Where a limit leaves room for fewer at
        once, the permit says for how many. Leaving the context gives it back. A call that is cancelled while it waits
        costs nothing. Where the provider has no limits, the limit of `route` adapts to how the calls end. Entering
        raises UpstreamBusyError when it would take, or has taken, longer than `patience_seconds`; `retry_after` says
        when to ask again. While the call waits it belongs to its `crowd`.
        """
        limits = ProviderLimits(provider.max_concurrency, provider.requests_per_minute, provider.tokens_per_minute)
        if limits == (None, None, None):
            adaptive = self._adaptive(route) if route and provider.adaptive_concurrency else None
            if adaptive is None:
                return UNLIMITED
            permit: PendingPermit = AdaptivePermit(adaptive, account, background, calls, patience_seconds)
        else:
            queue = self._queues.get(name)
            if queue is None:
                queue = self._queues[name] = PermitQueue(self, name, self._window_seconds)
            queue.limits = limits
            tokens = 0 if limits.tokens is None else estimate_tokens(request)
            permit = PendingPermit(queue, account, background, Cost(calls, tokens, more), patience_seconds)
        permit.crowd = crowd
        return permit

    def adaptive_limits(self) -> dict[str, int]:
        """Return the limits of the routes that have calls here, where they adapt."""
        queues = ((name, queue) for name, queue in self._queues.items() if isinstance(queue, AdaptiveQueue))
        return {name: queue.limit.current.calls for name, queue in queues if queue.busy}

    async def run(self) -> None:
        """Keep this worker's slots, and share the limits again once Redis is back; until cancelled."""
        heartbeat = self._lease_seconds / _HEARTBEATS
        while True:
            await next_tick(heartbeat if self._shared else min(heartbeat, _COME_BACK_SECONDS))
            if self._shared:
                for queue in self._queues.values():
                    queue.heartbeat()
            else:
                await self._come_back()

    async def close(self) -> None:
        """Report the calls that have ended here to the other workers."""
        await asyncio.gather(*(queue.close() for queue in self._queues.values()))

    # -- for queues ----------------------------------------------------------------------------------------------------

    async def ask(self, name: str, limits: ProviderLimits, question: Sequence[int], adaptive: str = "") -> Decision:
        """Put a queue's question to the script."""
        times = (self._window_seconds, self._lease_seconds, _PLACE_SECONDS)
        most = (-1 if limit is None else limit for limit in limits)
        said = " ".join(map(str, (*most, *(round(seconds * 1000) for seconds in times), *question)))
        granted, wait, slot, others, wanted, ahead, newer = await self._script(
            keys=[self._prefix + name], args=[self._worker, said, adaptive]
        )
        return Decision(granted, wait / 1000, slot, others, wanted > 0, ahead > 0, newer.decode())

    def lost(self, error: Exception) -> None:
        """Keep the limits without the other workers from here on."""
        if self._shared:
            log.warning("Redis is unavailable, this worker keeps the providers' limits by itself: %r", error)
        self._shared = False

    def _adaptive(self, route: str) -> AdaptiveQueue | None:
        """Return the queue of a route whose limit adapts, or None where there are too many such routes."""
        queue = self._queues.get(route)
        if isinstance(queue, AdaptiveQueue):
            return queue
        if len(self._queues) >= _MOST_QUEUES:
            self._queues = {name: queue for name, queue in self._queues.items() if not _is_idle(queue)}
            if len(self._queues) >= _MOST_QUEUES:
                return None
        adaptive = self._queues[route] = AdaptiveQueue(self, route, self._window_seconds)
        if self._measured(route):
            limit = adaptive.limit
            ADAPTIVE_LIMIT.labels(route).set_function(lambda: limit.current.calls)
        return adaptive

    async def _come_back(self) -> None:
        try:
            for queue in list(self._queues.values()):
                await queue.introduce()
        except Exception as error:  # noqa: BLE001  (Redis is unavailable, whatever the error is)
            log.debug("Redis is still unavailable: %r", error)
            return
        log.info("Redis is back, the providers' limits are shared again")
        self._shared = True


def _is_idle(queue: PermitQueue) -> bool:
    return isinstance(queue, AdaptiveQueue) and queue.idle
