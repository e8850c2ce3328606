"""Permits to call a provider: a call waits in its worker's queue for one, holds it while it runs, and gives it back.

Each provider with limits has one queue in a worker. The queue alone asks for permits, one question at a time: of the
workers' shared count in Redis, or while Redis is unavailable of this worker's own count (`worker/window.py`).
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Protocol, Self

from headrace.errors import UpstreamBusyError, UpstreamUnavailableError
from worker.crowds import Crowd
from worker.fair_queue import FairQueue
from worker.window import ALONE, NOTHING, Cost, Decision, ProviderLimits, Window

# Permits that one question asks for at most.
_MOST_AT_ONCE = 200
# Seconds in which a worker that asked for more than one permit lets more calls come together before it asks again.
_LINGER_SECONDS = 0.002
# Seconds after which ended calls are reported: they travel together, or with a question.
_REPORT_SECONDS = 0.01
# Seconds until a worker asks again: at least, as another worker's call may end at any time, and at most.
_SOONEST_LOOK_SECONDS = 0.05
_LATEST_LOOK_SECONDS = 1.0


class Permit(Protocol):
    """The permission to make a call. The call holds it while it runs."""

    @property
    def calls(self) -> float:
        """How many calls may be under way at once."""

    def used(self, tokens: int, *, calls: int) -> None:
        """Note what was used, before the permit is given back: tokens, and calls in all. Else the estimate counts."""

    def began(self, seconds: float) -> None:
        """Note after how many seconds the first text of a streamed answer came."""


class Arbiter(Protocol):
    """The count that all workers share."""

    @property
    def shared(self) -> bool:
        """Whether Redis keeps the count; else each worker decides alone."""

    async def ask(self, name: str, limits: ProviderLimits, question: Sequence[int], adaptive: str = "") -> Decision:
        """Return how many permits of a provider a question gets; any error means that Redis is unavailable.

        `adaptive` is the packed limit of a route whose limit adapts.
        """

    def lost(self, error: Exception) -> None:
        """Note that Redis is unavailable."""


class _Unlimited:
    """The permit to call a provider without limits."""

    calls = math.inf

    def used(self, tokens: int, *, calls: int) -> None:
        """Do nothing: no limit counts them."""

    def began(self, seconds: float) -> None:
        """Do nothing: no limit follows the time."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


UNLIMITED = _Unlimited()


class PendingPermit:
    """A permit that a call waits for in a provider's queue, and holds once it is granted."""

    __slots__ = (
        "_patience", "_queue", "_used", "account", "background", "cost", "crowd", "deadline", "future", "since",
        "slots",
    )  # fmt: skip

    def __init__(self, queue: PermitQueue, account: str, background: bool, cost: Cost, patience: float) -> None:
        self._queue = queue
        self.account = account
        self.background = background
        self._patience = patience
        self._used: Cost | None = None
        self.cost = cost
        self.crowd: Crowd | None = None
        """The lines of batches like this one, if it is the call of a line."""
        self.slots = (0, 0)

    @property
    def calls(self) -> int:  # noqa: D102
        return self.cost.calls

    def used(self, tokens: int, *, calls: int) -> None:  # noqa: D102
        self._used = Cost(calls, tokens)

    def began(self, seconds: float) -> None:
        """Do nothing: the limit is fixed."""

    async def __aenter__(self) -> Self:
        self.since = time.monotonic()
        self.deadline = self.since + self._patience
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.join(self)
        if self.crowd is not None:
            self.crowd.join()
        granted = False
        try:
            await self.future
            granted = True
        except asyncio.CancelledError:
            self._queue.leave(self)
            raise
        finally:
            if self.crowd is not None:
                self.crowd.leave(granted=granted)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        calls = tokens = 0
        # With these errors no call was made: the route was paused meanwhile, or the circuit opened.
        used = NOTHING if isinstance(error, UpstreamBusyError | UpstreamUnavailableError) else self._used
        if used is not None:
            _, most_requests, most_tokens = self._queue.limits
            calls = 0 if most_requests is None else used.calls - self.cost.requests
            tokens = 0 if most_tokens is None else used.tokens - self.cost.tokens
        self._queue.give_back(self, Cost(calls, tokens))


class PermitQueue:
    """One provider's queue of calls in this worker. Its task alone asks, one question at a time, if there is cause."""

    def __init__(self, arbiter: Arbiter, name: str, window_seconds: float) -> None:
        """Start without a call; `limits` are to be set before one joins."""
        self.limits = ProviderLimits(None, None, None)
        self._arbiter = arbiter
        self._name = name
        self._waiting: FairQueue[PendingPermit] = FairQueue()
        self._left = False
        self._soonest_deadline = math.inf
        self._held = 0
        self._window = Window(window_seconds)
        self._corrections: dict[int, Cost] = {}
        self._news = False
        self._question = 0
        self._task: asyncio.Task[None] | None = None
        self._alarm: asyncio.Future[None] | None = None
        self._closing = False
        self._report_seconds = _REPORT_SECONDS
        """Seconds after which ended calls are reported while no call waits here."""
        self._soonest_look_seconds = _SOONEST_LOOK_SECONDS
        """Seconds until calls that wait here ask again, at least."""

    def join(self, permit: PendingPermit) -> None:
        """Put a call at the end of the queue."""
        self._waiting.append(permit)
        self._soonest_deadline = min(self._soonest_deadline, permit.deadline)
        if len(self._waiting) == 1 or self._task is None:
            self._wake()

    def leave(self, permit: PendingPermit) -> None:
        """Forget a call that was cancelled while it waited; a permit that it just got costs nothing."""
        if permit.future.cancelled():
            self._left = True
            self._wake()
        elif permit.future.exception() is None:
            self.give_back(permit, Cost(-permit.cost.requests, -permit.cost.tokens))

    def give_back(self, permit: PendingPermit, change: Cost) -> None:
        """End a call: free its slots, and correct the tokens and calls that were counted for it."""
        self._held -= permit.cost.calls
        self._news = self._news or self.limits.concurrency is not None
        self._correct(permit.slots, change)
        # While no call waits here, a task that runs already reports it soon.
        if self._news and (self._task is None or self._waiting):
            self._wake()

    def heartbeat(self) -> None:
        """Report the slots that this worker holds to Redis."""
        if self._held and self.limits.concurrency is not None:
            self._news = True
            self._wake()

    async def introduce(self) -> None:
        """Report the permits that were granted here while Redis was unavailable; raise what asking it raises."""
        total, alone = self._window.total(time.monotonic()), self._corrections.pop(ALONE, NOTHING)
        alone = Cost(min(alone.calls, total.calls), min(alone.tokens, total.tokens))
        if alone != NOTHING:
            self._corrections[ALONE] = alone
        try:
            await self._ask(())
        except Exception:
            self._count(ALONE, alone)
            raise

    async def close(self) -> None:
        """Report ended calls without delay."""
        self._closing = True
        if self._task is not None:
            self._wake()
            await self._task

    def _correct(self, slots: tuple[int, int], change: Cost) -> None:
        if change != NOTHING:
            shared, own = slots
            self._window.correct(time.monotonic(), own, change)
            self._count(shared, change)
            self._news = True

    def _count(self, shared_slot: int, change: Cost) -> None:
        counted = self._corrections.get(shared_slot, NOTHING)
        self._corrections[shared_slot] = Cost(counted.calls + change.requests, counted.tokens + change.tokens)

    def _wake(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        elif self._alarm is not None and not self._alarm.done():
            self._alarm.set_result(None)

    async def _run(self) -> None:
        try:
            while self._news or (self._waiting and not self._closing):
                if not self._waiting:
                    await self._sleep(self._report_seconds)
                crowded = len(self._waiting) > 1
                wait = await self._round()
                if wait is not None and not self._news:
                    await self._sleep(min(max(wait, self._soonest_look_seconds), _LATEST_LOOK_SECONDS))
                elif crowded and not self._closing:
                    await asyncio.sleep(_LINGER_SECONDS)
        finally:
            self._task = None

    async def _sleep(self, seconds: float) -> None:
        """Sleep for so many seconds, or until a call joins, leaves or ends."""
        if self._closing:
            return
        loop = asyncio.get_running_loop()
        self._alarm = loop.create_future()
        timer = loop.call_later(seconds, self._wake)
        try:
            await self._alarm
        finally:
            timer.cancel()
            self._alarm = None

    async def _round(self) -> float | None:
        """Grant the permits that fit.

        Return the seconds until the next one may fit, 0 if that is unknown, and None if no call has to wait.
        """
        if self._left:
            self._left = False
            self._waiting.keep(lambda permit: not permit.future.done())
        asking = self._waiting.first(self._most_at_once())
        for permit in asking:
            permit.cost = permit.cost.within(self.limits)
        decision = await self._decide(asking)
        granted = asking[: decision.granted]
        self._waiting.remove(granted)
        for permit in granted:
            self._grant(permit, decision.slot)
        if not self._waiting or decision.granted == len(asking):
            return None
        self._turn_away(decision.wait_seconds)
        return decision.wait_seconds

    async def _decide(self, asking: Sequence[PendingPermit]) -> Decision:
        if self._arbiter.shared:
            try:
                return await self._ask(asking)
            except Exception as error:  # noqa: BLE001  (no job waits for Redis, whatever the error is)
                self._arbiter.lost(error)
        self._news = False
        return self._window.decide(time.monotonic(), self.limits, self._held, [permit.cost for permit in asking])

    async def _ask(self, asking: Sequence[PendingPermit]) -> Decision:
        self._question += 1
        self._news = False
        corrections, self._corrections = self._corrections, {}
        more = sum(permit.cost.more for permit in asking)
        question = [self._question, self._held, *self._place(asking), more, len(corrections)]
        for slot, change in corrections.items():
            question += (slot, change.calls, change.tokens)
        for permit in asking:
            question += permit.cost
        return await self._put(question)

    def _most_at_once(self) -> int:
        """Return how many permits the next question asks for at most."""
        return _MOST_AT_ONCE

    def _place(self, asking: Sequence[PendingPermit]) -> tuple[int, int, int]:
        """Return what other workers leave room for: milliseconds since the first call came, and calls and tokens."""
        return (
            round((time.monotonic() - min(permit.since for permit in asking)) * 1000) if asking else 0,
            sum(permit.cost.calls for permit in asking),
            sum(permit.cost.tokens for permit in asking),
        )

    async def _put(self, question: Sequence[int]) -> Decision:
        return await self._arbiter.ask(self._name, self.limits, question)

    def _grant(self, permit: PendingPermit, slot: int) -> None:
        permit.slots = (slot, self._window.add(time.monotonic(), permit.cost))
        if slot == ALONE:
            self._count(slot, permit.cost)
        if permit.future.done():
            # The call was cancelled meanwhile: its permit goes back.
            self._correct(permit.slots, Cost(-permit.cost.requests, -permit.cost.tokens))
            self._news = True
        else:
            self._held += permit.cost.calls
            permit.future.set_result(None)

    def _turn_away(self, wait: float) -> None:
        """Turn away the calls whose patience ends before the next permit."""
        latest = time.monotonic() + wait
        if self._soonest_deadline > latest:
            return
        for permit in self._waiting:
            if permit.deadline <= latest and not permit.future.done():
                permit.future.set_exception(UpstreamBusyError(retry_after=max(wait, _SOONEST_LOOK_SECONDS)))
                self._left = self._news = True
        self._soonest_deadline = min(
            (permit.deadline for permit in self._waiting if not permit.future.done()), default=math.inf
        )
