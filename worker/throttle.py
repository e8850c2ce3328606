"""What a provider may be asked at once and in a minute, kept over all workers together.

One script in Redis decides on all three limits at once: calls under way, calls in a minute, tokens in a minute. A call
that is not admitted has taken nothing. Calls that ask together, or while another question is under way, share a round
trip, and what has ended meanwhile travels with them.

* Calls under way: each worker tells how many it has, with every question and every heartbeat, and what it says holds
  for a lease. So the slots of a worker that is killed come back by themselves, an answer that was lost on its way is
  set right by the next question, and a Redis that was emptied knows all again after a heartbeat.
* A minute is any sixty seconds: the last of them are counted in thirty slots of two seconds each, and a slot counts
  until all of it is a minute old. A call's tokens are estimated when it is admitted, and corrected when it ends.
* Within a worker accounts take turns, those of waiting clients first (`worker/line.py`); between workers the order is
  that of arrival, by the oldest that is asked for. A worker that asks tells how many wait there, and others leave them
  what is free if they came earlier.

While Redis is away, each worker keeps the whole limits by itself: how many others there are, nobody can tell it then.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

from redis.asyncio import Redis

from headrace.errors import UpstreamBusyError
from headrace.formats.chat.usage import estimate_usage
from headrace.ids import new_id
from worker.line import Line

log = logging.getLogger(__name__)

# A provider's hash has a field for each worker, `w<id>`: the number of its last question, its calls under way, what
# waits there in calls and tokens and since when, and when it was heard last. And one for each slot of time,
# `s<number>`: its calls and tokens. Times are in milliseconds of Redis's clock.
_ADMIT = """
local function split(text)
    local numbers = {}
    for number in string.gmatch(text, '%S+') do numbers[#numbers + 1] = tonumber(number) end
    return numbers
end
local me, said, limits = 'w' .. ARGV[1], split(ARGV[2]), {}
for i = 1, 3 do limits[i] = said[i] < 0 and math.huge or said[i] end
local window, lease, place, question, held, age = said[4], said[5], said[6], said[7], said[8], said[9]
local waiting, waiting_tokens, corrections = said[10], said[11], said[12]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local step = window / 30
local slot = math.floor(now / step)
local since = now - age

local slots, calls, ahead, ahead_tokens = {}, held, 0, 0
local fields = redis.call('HGETALL', KEYS[1])
for i = 1, #fields, 2 do
    local field, numbers = fields[i], split(fields[i + 1])
    if string.sub(field, 1, 1) == 's' then
        local number = tonumber(string.sub(field, 2))
        if number < slot - 30 then redis.call('HDEL', KEYS[1], field) else slots[number] = numbers end
    elseif field == me then
        if numbers[1] >= question then return {0, 0, slot} end
    elseif now - numbers[6] > lease then
        redis.call('HDEL', KEYS[1], field)
    else
        calls = calls + numbers[2]
        if numbers[3] > 0 and now - numbers[6] <= place
            and (numbers[5] < since or (numbers[5] == since and field < me)) then
            ahead, ahead_tokens = ahead + numbers[3], ahead_tokens + numbers[4]
        end
    end
end

local function add(number, requests, tokens)
    local counted = slots[number] or {0, 0}
    slots[number] = {math.max(0, counted[1] + requests), math.max(0, counted[2] + tokens)}
    redis.call('HSET', KEYS[1], 's' .. string.format('%.0f', number),
        string.format('%.0f %.0f', slots[number][1], slots[number][2]))
end
local counting = math.min(limits[2], limits[3]) < math.huge
local first = 13 + 3 * corrections
for i = 13, first - 1, 3 do
    local number, requests, tokens = said[i], said[i + 1], said[i + 2]
    -- What was used beyond the estimate counts from now; what was not used never was, if its slot still counts.
    if requests > 0 or tokens > 0 then add(slot, math.max(0, requests), math.max(0, tokens)) end
    if slots[number] then add(number, math.min(0, requests), math.min(0, tokens)) end
end

local requests, tokens = 0, 0
for _, counted in pairs(slots) do requests, tokens = requests + counted[1], tokens + counted[2] end
local free = {limits[1] - calls - ahead, limits[2] - requests - ahead, limits[3] - tokens - ahead_tokens}
local granted, taken, taken_tokens, short = 0, 0, 0, nil
for i = first, #said, 2 do
    local n, t = said[i], said[i + 1]
    if free[1] < n or free[2] < n or free[3] < t then
        short = {n, t}
        break
    end
    free = {free[1] - n, free[2] - n, free[3] - t}
    granted, taken, taken_tokens = granted + 1, taken + n, taken_tokens + t
end
if counting and granted > 0 then add(slot, taken, taken_tokens) end
redis.call('HSET', KEYS[1], me, string.format('%.0f %.0f %.0f %.0f %.0f %.0f', question, held + taken,
    waiting - taken, waiting_tokens - taken_tokens, since, now))
redis.call('PEXPIRE', KEYS[1], math.ceil(math.max(window + step, lease)))

local wait = 0
if short then
    local lacking = {short[1] - free[2], short[2] - free[3]}
    for number = slot - 30, slot do
        if lacking[1] <= 0 and lacking[2] <= 0 then break end
        wait = (number + 31) * step - now
        local counted = slots[number] or {0, 0}
        lacking = {lacking[1] - counted[1], lacking[2] - counted[2]}
    end
end
return {granted, math.ceil(wait), slot}
"""
_SLOTS = 30
# The slot of what was admitted without Redis, which has no such number: when it is back, that counts from then on.
_ALONE = 0
_MOST_AT_ONCE = 200
# A worker that had more than one call to ask for lets more come together before it asks again.
_LINGER_SECONDS = 0.002
# Ended calls for which nobody waits here are told this late, to travel together or with a question.
_TELL_SECONDS = 0.01
# How often a worker asks again, when a slot of another worker may come free at any time, or when the wait is long.
_SOONEST_LOOK_SECONDS = 0.05
_LATEST_LOOK_SECONDS = 1.0
# Others leave room for those who wait in a worker only while it keeps asking.
_PLACE_SECONDS = 3.0
_COME_BACK_SECONDS = 1.0
# An answer's tokens are reserved up to here: limits on it are often far beyond what is used.
_MOST_RESERVED_OUTPUT = 4096


class LimitedProvider(Protocol):
    """What limits need to know of a provider; None is no limit."""

    @property
    def max_concurrency(self) -> int | None: ...  # noqa: D102
    @property
    def requests_per_minute(self) -> int | None: ...  # noqa: D102
    @property
    def tokens_per_minute(self) -> int | None: ...  # noqa: D102


def estimate_tokens(request: Mapping[str, Any]) -> int:
    """Return how many tokens to reserve for a chat completion: its prompt, and what its answer is limited to."""
    limit = request.get("max_completion_tokens") or request.get("max_tokens") or 0
    return estimate_usage(request, "").prompt_tokens + min(limit, _MOST_RESERVED_OUTPUT) * (request.get("n") or 1)


class Quota(NamedTuple):
    """A provider's limits: calls under way, calls and tokens in a minute."""

    concurrency: int | None
    requests: int | None
    tokens: int | None


class Demand(NamedTuple):
    """What one admission takes: so many calls, and so many tokens."""

    calls: int
    tokens: int


_NOTHING = Demand(0, 0)


class Decision(NamedTuple):
    """How many of those who asked are admitted, and in how many seconds the next may be: 0 if nobody can tell."""

    granted: int
    wait_seconds: float
    slot: int


class Window:
    """The calls and tokens of the last minute, by this worker's own clock: what the script does, without Redis."""

    def __init__(self, seconds: float) -> None:
        """Count over so many seconds."""
        self._step = seconds / _SLOTS
        self._slots: dict[int, Demand] = {}

    def add(self, now: float, demand: Demand) -> int:
        """Count a demand, and return the slot in which it is counted."""
        slot = int(now / self._step)
        calls, tokens = self._slots.get(slot, _NOTHING)
        self._slots[slot] = Demand(calls + demand.calls, tokens + demand.tokens)
        return slot

    def correct(self, now: float, slot: int, change: Demand) -> None:
        """Count what was used beyond an estimate from now on, and what was not used not at all."""
        self.add(now, Demand(max(0, change.calls), max(0, change.tokens)))
        if slot in self._slots:
            calls, tokens = self._slots[slot]
            self._slots[slot] = Demand(max(0, calls + min(0, change.calls)), max(0, tokens + min(0, change.tokens)))

    def total(self, now: float) -> Demand:
        """Return what counts now."""
        first = int(now / self._step) - _SLOTS
        self._slots = {slot: counted for slot, counted in self._slots.items() if slot >= first}
        calls, tokens = zip(*self._slots.values(), strict=True) if self._slots else ((), ())
        return Demand(sum(calls), sum(tokens))

    def decide(self, now: float, quota: Quota, held: int, asked: Sequence[Demand]) -> Decision:
        """Tell how many of `asked` fit, in their order, while `held` calls are under way."""
        used = (held, *self.total(now))
        slots, calls, tokens = (
            math.inf if most is None else most - taken for most, taken in zip(quota, used, strict=True)
        )
        for granted, demand in enumerate(asked):
            if slots < demand.calls or calls < demand.calls or tokens < demand.tokens:
                return Decision(granted, self._wait(now, demand.calls - calls, demand.tokens - tokens), _ALONE)
            slots, calls, tokens = slots - demand.calls, calls - demand.calls, tokens - demand.tokens
        return Decision(len(asked), 0, _ALONE)

    def _wait(self, now: float, calls: float, tokens: float) -> float:
        end = 0
        for slot in sorted({*self._slots, int(now / self._step)}):
            if calls <= 0 and tokens <= 0:
                break
            end = slot + _SLOTS + 1
            freed = self._slots.get(slot, _NOTHING)
            calls, tokens = calls - freed.calls, tokens - freed.tokens
        return end * self._step - now if end else 0.0


class Admission(Protocol):
    """A call's leave to be made."""

    def used(self, tokens: int) -> None:
        """Tell how many tokens the call has used, before it is left; else the estimate stays."""


class Limits:
    """The limits of all providers, as one worker keeps them with the others."""

    def __init__(
        self,
        redis: Redis,
        *,
        lease_seconds: float,
        window_seconds: float = 60.0,
    ) -> None:
        """Keep this worker's slots for `lease_seconds` after it last spoke; `window_seconds` is what a minute is."""
        self._gates: dict[str, _Gate] = {}
        self._window_seconds = window_seconds
        self._lease_seconds = lease_seconds
        self._worker = new_id("worker")
        self._script = redis.register_script(_ADMIT)
        self._shared = True

    @property
    def shared(self) -> bool:
        """Whether the limits are kept with other workers; while Redis is away, this one keeps them alone."""
        return self._shared

    def admitted(
        self,
        name: str,
        provider: LimitedProvider,
        request: Mapping[str, Any],
        *,
        account: str = "",
        background: bool = False,
        calls: int = 1,
        patience_seconds: float = math.inf,
    ) -> AbstractAsyncContextManager[Admission]:
        """Return a context that is entered when the provider may be called: `calls` times at once, for this request.

        Leaving it gives the slots back. Cancelling whoever waits takes nothing. A provider without limits costs
        nothing. Entering raises UpstreamBusyError when it would take, or has taken, longer than `patience_seconds`;
        `retry_after` tells when to ask again.
        """
        quota = Quota(provider.max_concurrency, provider.requests_per_minute, provider.tokens_per_minute)
        if quota == (None, None, None):
            return _UNLIMITED
        gate = self._gates.get(name)
        if gate is None:
            gate = self._gates[name] = _Gate(self, name, self._window_seconds)
        gate.quota = quota
        tokens = 0 if quota.tokens is None else estimate_tokens(request)
        return _Place(gate, account, background, Demand(calls, tokens), patience_seconds)

    async def run(self) -> None:
        """Keep this worker's slots, and come back to Redis when it does, until cancelled."""
        heartbeat = self._lease_seconds / 3
        while True:
            await asyncio.sleep(heartbeat if self._shared else min(heartbeat, _COME_BACK_SECONDS))
            if self._shared:
                for gate in self._gates.values():
                    gate.heartbeat()
            else:
                await self._come_back()

    async def close(self) -> None:
        """Tell the others what has ended here."""
        await asyncio.gather(*(gate.close() for gate in self._gates.values()))

    # -- for gates ----------------------------------------------------------------------------------------------------

    async def ask(self, name: str, quota: Quota, question: Sequence[int]) -> Decision:
        """Put a gate's question to the script."""
        times = (self._window_seconds, self._lease_seconds, _PLACE_SECONDS)
        limits = (-1 if most is None else most for most in quota)
        # In one argument, as redis-py takes a microsecond and more over each.
        said = " ".join(map(str, (*limits, *(round(seconds * 1000) for seconds in times), *question)))
        granted, wait, slot = await self._script(keys=[f"headrace:limits:{name}"], args=[self._worker, said])
        return Decision(granted, wait / 1000, slot)

    def lost(self, error: Exception) -> None:
        """Keep the limits alone from here on."""
        if self._shared:
            log.warning("Redis is away, this worker keeps the providers' limits by itself: %r", error)
        self._shared = False

    async def _come_back(self) -> None:
        try:
            for gate in list(self._gates.values()):
                await gate.introduce()
        except Exception as error:  # noqa: BLE001  (whatever it is, Redis cannot be asked)
            log.debug("Redis is still away: %r", error)
            return
        log.info("Redis is back, the providers' limits are shared again")
        self._shared = True


class _Unlimited:
    """The admission to a provider that takes everything."""

    def used(self, tokens: int) -> None:
        """Nobody counts."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


_UNLIMITED = _Unlimited()


class _Place:
    """A place in a provider's line, and then the admission."""

    __slots__ = (
        "_gate", "_patience", "_used", "account", "background", "deadline", "demand", "future", "since", "slots",
    )  # fmt: skip

    def __init__(self, gate: _Gate, account: str, background: bool, demand: Demand, patience: float) -> None:
        self._gate = gate
        self.account = account
        self.background = background
        self._patience = patience
        self._used: int | None = None
        self.demand = demand
        self.slots = (0, 0)

    def used(self, tokens: int) -> None:
        self._used = tokens

    async def __aenter__(self) -> Self:
        self.since = time.monotonic()
        self.deadline = self.since + self._patience
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._gate.join(self)
        try:
            await self.future
        except asyncio.CancelledError:
            self._gate.leave(self)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        beyond = 0
        if self._used is not None and self._gate.quota.tokens is not None:
            beyond = self._used - self.demand.tokens
        self._gate.give_back(self, Demand(0, beyond))


class _Gate:
    """One provider's line of calls in this worker. Its task alone asks, one question at a time, when there is cause."""

    def __init__(self, limits: Limits, name: str, window_seconds: float) -> None:
        self.quota = Quota(None, None, None)
        self._limits = limits
        self._name = name
        self._line: Line[_Place] = Line()
        self._left = False
        self._soonest_deadline = math.inf
        self._held = 0
        self._window = Window(window_seconds)
        self._corrections: dict[int, Demand] = {}
        self._news = False
        self._question = 0
        self._task: asyncio.Task[None] | None = None
        self._alarm: asyncio.Future[None] | None = None
        self._closing = False

    def join(self, place: _Place) -> None:
        """Put a call at the end of the line."""
        self._line.append(place)
        self._soonest_deadline = min(self._soonest_deadline, place.deadline)
        if len(self._line) == 1:
            self._wake()

    def leave(self, place: _Place) -> None:
        """Forget a call that was cancelled while it waited. If it was admitted just then, that never was."""
        if place.future.cancelled():
            self._left = True
            self._wake()
        elif place.future.exception() is None:
            self.give_back(place, Demand(-place.demand.calls, -place.demand.tokens))

    def give_back(self, place: _Place, change: Demand) -> None:
        """Free a call's slots, and correct what was counted for it."""
        self._held -= place.demand.calls
        self._news = self._news or self.quota.concurrency is not None
        self._correct(place.slots, change)
        # With nobody waiting here, the task that is there already tells it soon.
        if self._news and (self._task is None or self._line):
            self._wake()

    def heartbeat(self) -> None:
        """Let Redis hear of this worker's slots."""
        if self._held and self.quota.concurrency is not None:
            self._news = True
            self._wake()

    async def introduce(self) -> None:
        """Tell a Redis that was away what was admitted here meanwhile; raise what asking it raises."""
        total, alone = self._window.total(time.monotonic()), self._corrections.pop(_ALONE, _NOTHING)
        alone = Demand(min(alone.calls, total.calls), min(alone.tokens, total.tokens))
        if alone != _NOTHING:
            self._corrections[_ALONE] = alone
        try:
            await self._ask(())
        except Exception:
            self._count(_ALONE, alone)
            raise

    async def close(self) -> None:
        """Tell what has ended, without delay."""
        self._closing = True
        if self._task is not None:
            self._wake()
            await self._task

    def _correct(self, slots: tuple[int, int], change: Demand) -> None:
        if change != _NOTHING:
            shared, own = slots
            self._window.correct(time.monotonic(), own, change)
            self._count(shared, change)
            self._news = True

    def _count(self, shared_slot: int, change: Demand) -> None:
        calls, tokens = self._corrections.get(shared_slot, _NOTHING)
        self._corrections[shared_slot] = Demand(calls + change.calls, tokens + change.tokens)

    def _wake(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        elif self._alarm is not None and not self._alarm.done():
            self._alarm.set_result(None)

    async def _run(self) -> None:
        try:
            while self._news or (self._line and not self._closing):
                if not self._line:
                    await self._sleep(_TELL_SECONDS)
                crowded = len(self._line) > 1
                wait = await self._round()
                if wait is not None and not self._news:
                    await self._sleep(min(max(wait, _SOONEST_LOOK_SECONDS), _LATEST_LOOK_SECONDS))
                elif crowded and not self._closing:
                    await asyncio.sleep(_LINGER_SECONDS)
        finally:
            self._task = None

    async def _sleep(self, seconds: float) -> None:
        """Sleep until something happens here, or for so long."""
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
        """Admit those for whom there is room. If somebody has to wait, return for how many seconds, 0 if unknown."""
        if self._left:
            self._left = False
            self._line.keep(lambda place: not place.future.done())
        asking = self._line.first(_MOST_AT_ONCE)
        for place in asking:
            place.demand = _at_most(place.demand, self.quota)
        decision = await self._decide(asking)
        granted = asking[: decision.granted]
        self._line.remove(granted)
        for place in granted:
            self._admit(place, decision.slot)
        if not self._line or decision.granted == len(asking):
            return None
        self._turn_away(decision.wait_seconds)
        return decision.wait_seconds

    async def _decide(self, asking: Sequence[_Place]) -> Decision:
        if self._limits.shared:
            try:
                return await self._ask(asking)
            except Exception as error:  # noqa: BLE001  (whatever it is, no job is to wait for Redis)
                self._limits.lost(error)
        self._news = False
        return self._window.decide(time.monotonic(), self.quota, self._held, [place.demand for place in asking])

    async def _ask(self, asking: Sequence[_Place]) -> Decision:
        self._question += 1
        self._news = False
        corrections, self._corrections = self._corrections, {}
        question = [
            self._question,
            self._held,
            round((time.monotonic() - min(place.since for place in asking)) * 1000) if asking else 0,
            sum(place.demand.calls for place in asking),
            sum(place.demand.tokens for place in asking),
            len(corrections),
        ]
        for slot, change in corrections.items():
            question += (slot, *change)
        for place in asking:
            question += place.demand
        return await self._limits.ask(self._name, self.quota, question)

    def _admit(self, place: _Place, slot: int) -> None:
        place.slots = (slot, self._window.add(time.monotonic(), place.demand))
        if slot == _ALONE:
            self._count(slot, place.demand)
        if place.future.done():
            # It was cancelled meanwhile: what it was given goes back.
            self._correct(place.slots, Demand(-place.demand.calls, -place.demand.tokens))
            self._news = True
        else:
            self._held += place.demand.calls
            place.future.set_result(None)

    def _turn_away(self, wait: float) -> None:
        """Turn away those who would rather do something else than wait."""
        latest = time.monotonic() + wait
        if self._soonest_deadline > latest:
            return
        for place in self._line:
            if place.deadline <= latest and not place.future.done():
                place.future.set_exception(UpstreamBusyError(retry_after=max(wait, _SOONEST_LOOK_SECONDS)))
                self._left = self._news = True
        self._soonest_deadline = min(
            (place.deadline for place in self._line if not place.future.done()), default=math.inf
        )


def _at_most(demand: Demand, quota: Quota) -> Demand:
    """Return a demand that fits into the whole of each limit: else it would wait for ever."""
    slots, calls, tokens = (math.inf if most is None else most for most in quota)
    return Demand(int(min(demand.calls, slots, calls)), int(min(demand.tokens, tokens)))
