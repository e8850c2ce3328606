"""The queue of calls for a route whose limit is unknown: `worker/adaptive.py` finds it from how the calls end.

Far below the limit a call starts at once: it costs a few comparisons here, and the worker reports its calls to Redis
once a second. Near the limit, and while calls wait at another worker, a call asks for its permit as in every queue, or
takes over that of a call that ends here: then the provider has its next call without a round trip to Redis. The limit
itself travels with the questions, of which there are some every second, so a cut by one worker soon reaches the others.

Lines of batches and other background jobs are the first to wait. Calls with a waiting client come before those of all
workers. On a route that has refused nothing lately they do not wait at all.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from headrace.errors import UpstreamBusyError, UpstreamError, UpstreamOverloadedError, UpstreamRateLimitError
from worker.adaptive import AdaptiveLimit, Limit
from worker.permits import Arbiter, PendingPermit, PermitQueue
from worker.slowness import Slowness
from worker.window import ALONE, NOTHING, Cost, Decision, ProviderLimits

# Seconds between two reports of the calls under way: far below the limit, and where calls wait at another worker.
_CALM_SECONDS = 1.0
_CROWDED_SECONDS = 0.01
# Seconds until calls that wait ask again, at least: a place that another worker leaves to them may be empty as long.
_LOOK_SECONDS = 0.015
# Permits that a question asks for beyond those that seem to be free: other workers' calls may have ended.
_SPARE = 8
# Milliseconds by which calls of background jobs come later in the order of all workers: longer than any call waits.
_BEHIND_MS = 3_600_000
# The code of a refusal that fewer calls at once cannot cure.
_QUOTA = "insufficient_quota"


class AdaptivePermit(PendingPermit):
    """A permit that shows the queue how its call ended."""

    __slots__ = ("known", "level", "queue", "started")

    def __init__(self, queue: AdaptiveQueue, account: str, background: bool, calls: int, patience: float) -> None:
        super().__init__(queue, account, background, Cost(calls, 0), patience)
        self.queue = queue
        self.started = 0.0
        """When the call began, by `time.monotonic`."""
        self.level = 0
        """How many calls all workers had under way then, with this one."""
        self.known = False
        """Whether the queue knows whether the provider took the call, or need not know any more."""

    def began(self, seconds: float) -> None:  # noqa: D102
        self.queue.began(self, seconds)

    async def __aenter__(self) -> Self:
        if not self.queue.take(self):
            await super().__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.queue.ended(self, error)
        finally:
            self.queue.give_back(self, NOTHING)


class AdaptiveQueue(PermitQueue):
    """One route's queue in this worker."""

    def __init__(self, arbiter: Arbiter, name: str, window_seconds: float) -> None:
        """Know nothing of the route."""
        super().__init__(arbiter, name, window_seconds)
        self.limit = AdaptiveLimit()
        self._slowness = Slowness()
        self._others = 0
        self._others_wait = self._others_first = self._asking = False
        self._young: deque[AdaptivePermit] = deque()
        """Calls near the limit that may yet be refused, and some that have ended, in the order of their starts."""
        self._report_seconds = _CALM_SECONDS
        self._soonest_look_seconds = _LOOK_SECONDS
        self._apply()

    @property
    def idle(self) -> bool:
        """Whether the queue has no calls, and knows no more of its route than a new one."""
        return not self._held and self._task is None and not self.limit.current.cuts

    @property
    def busy(self) -> bool:
        """Whether calls are under way or wait here."""
        return bool(self._held or self._waiting)

    def take(self, permit: AdaptivePermit) -> bool:
        """Start a call at once if the route is far from its limit; return whether it did."""
        now = time.monotonic()
        level = self._others + self._held + permit.cost.calls
        if permit.background or self.limit.known(now):
            crowded = self._others_wait or self._waiting
            if crowded or level * 2 > self.limit.current.calls:
                return False
        self._held += permit.cost.calls
        self._begin(permit, now, level)
        self._news = True
        if self._task is None:
            self._wake()
        return True

    def ended(self, permit: AdaptivePermit, error: BaseException | None) -> None:
        """Learn from how a call ended; it still counts as under way."""
        if isinstance(error, UpstreamError) and _is_overload(error):
            pause = error.retry_after or 0
            if self.limit.overloaded(permit.started, permit.level, now=time.monotonic(), pause=pause):
                self._share_cut()
        elif error is None:
            self._accept(permit, time.monotonic())
        permit.known = True

    def began(self, permit: AdaptivePermit, seconds: float) -> None:
        """Learn after how many seconds a call's first text came."""
        if self._slowness.add(seconds) and self.limit.slowed(permit.started, permit.level, now=time.monotonic()):
            self._share_cut()

    def leave(self, permit: PendingPermit) -> None:
        """Forget a call that was cancelled while it waited. It made no call that the provider could take."""
        if isinstance(permit, AdaptivePermit):
            permit.known = True
        super().leave(permit)

    def give_back(self, permit: PendingPermit, change: Cost) -> None:
        """End a call, whose permit the first call that waits here gets at once if no worker's call comes before it."""
        if not self._waiting or change != NOTHING or not self._pass_on(permit):
            super().give_back(permit, change)

    def _pass_on(self, permit: PendingPermit) -> bool:
        """Give a call's permit to the next call without a question: Redis counts as many calls here as before."""
        beyond = self._others + self._held > self.limit.current.calls
        if beyond or self._others_first or self._asking or self._closing:
            return False
        [first] = self._waiting.first(1)
        if first.future.done() or first.cost.calls != permit.cost.calls or not isinstance(first, AdaptivePermit):
            return False
        self._waiting.remove([first])
        first.future.set_result(None)
        self._begin(first, time.monotonic(), self._others + self._held)
        return True

    def _begin(self, permit: AdaptivePermit, now: float, level: int) -> None:
        permit.started, permit.level = now, level
        if level * 2 >= self.limit.current.calls:
            self._young.append(permit)

    def _accept(self, permit: AdaptivePermit, now: float) -> None:
        if permit.known:
            return
        permit.known = True
        if self.limit.accepted(permit.started, permit.level, share=self._share, now=now):
            self._apply()
            if self._waiting:
                self._news = True
                self._wake()

    @property
    def _share(self) -> float:
        """This worker's part of the calls under way, of which it has some."""
        return self._held / (self._held + self._others)

    def _share_cut(self) -> None:
        self._apply()
        self._report_seconds = 0
        self._news = True
        self._wake()

    def _apply(self) -> None:
        self.limits = ProviderLimits(self.limit.current.calls, None, None)

    # -- as the queue asks ---------------------------------------------------------------------------------------------

    async def _round(self) -> float | None:
        now = time.monotonic()
        proven = now - self.limit.proof_seconds
        while self._young and (self._young[0].known or self._young[0].started < proven):
            self._accept(self._young.popleft(), now)
        if self.limit.step(now):
            self._apply()
        self._asking = True
        try:
            return await super()._round()
        finally:
            self._asking = False

    def _most_at_once(self) -> int:
        """Return how many permits may be free, and some more: each one takes its time, here and in Redis."""
        free = self.limit.current.calls - self._held - self._others
        return min(super()._most_at_once(), max(free, 0) + _SPARE)

    def _place(self, asking: Sequence[PendingPermit]) -> tuple[int, int, int]:
        age, calls, tokens = super()._place(asking)
        if asking and asking[0].background:
            return age - _BEHIND_MS, calls, tokens
        # Other workers leave room for the calls that clients wait for, and not for those behind them.
        return age, sum(permit.cost.calls for permit in asking if not permit.background), tokens

    async def _put(self, question: Sequence[int]) -> Decision:
        decision = await self._arbiter.ask(self._name, self.limits, question, self.limit.current.pack())
        self._others, self._others_wait = decision.others, decision.others_wait
        self._others_first = decision.others_first
        self._report_seconds = _CROWDED_SECONDS if decision.others_wait else _CALM_SECONDS
        if decision.newer and self.limit.learn(Limit.unpack(decision.newer), time.monotonic()):
            self._apply()
        return decision

    async def _decide(self, asking: Sequence[PendingPermit]) -> Decision:
        decision = await super()._decide(asking)
        if decision.slot == ALONE:
            self._others, self._report_seconds = 0, _CALM_SECONDS
            self._others_wait = self._others_first = False
        return decision

    def _grant(self, permit: PendingPermit, slot: int) -> None:
        before = self._held
        super()._grant(permit, slot)
        if self._held > before and isinstance(permit, AdaptivePermit):
            self._begin(permit, time.monotonic(), self._others + self._held)


def _is_overload(error: UpstreamError) -> bool:
    """Return whether a provider refused a call because it had too many."""
    if isinstance(error, UpstreamRateLimitError):
        return not isinstance(error, UpstreamBusyError) and error.code != _QUOTA
    return isinstance(error, UpstreamOverloadedError)
