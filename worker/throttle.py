"""The throttle of providers: how many calls and tokens each takes at once and in a minute, over all workers together.

One script in Redis decides on all three limits at once: calls under way, calls in a minute, tokens in a minute. A
permit that is not granted costs nothing. Calls that ask together, or while another question is under way, share a round
trip, which also reports the calls that have ended meanwhile.

* Calls under way: each worker reports how many it has, with every question and every heartbeat, and its report holds
  for a lease. So the slots of a killed worker come back by themselves, the next question corrects an answer that was
  lost on its way, and a Redis that was emptied has the whole count again after a heartbeat.
* A minute is any sixty seconds: the last of them are counted in thirty slots of two seconds each, and a slot counts
  until all of it is a minute old. A call's tokens are estimated when its permit is granted, and corrected when it ends.
* Within a worker accounts take turns, and calls with a waiting client come first (`worker/line.py`). Between workers
  the order is that of arrival, by the oldest waiting call. A worker that asks reports how many calls wait there, and
  the others leave free capacity to calls that came earlier.

While Redis is unavailable, each worker applies the whole limits by itself: it cannot know how many others there are.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from redis.asyncio import Redis

from headrace.formats.chat.usage import estimate_usage
from headrace.ids import new_id
from headrace.stores.namespace import prefix_in
from worker.permits import UNLIMITED, PendingPermit, Permit, PermitLine
from worker.window import Cost, Decision, ProviderLimits

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
# Seconds for which other workers leave room for the calls that wait in a worker, after it last asked.
_PLACE_SECONDS = 3.0
# Seconds between two looks for a Redis that is unavailable.
_COME_BACK_SECONDS = 1.0
# Tokens of an answer that are reserved at most: the limits of requests are often far beyond what their answers use.
_MOST_RESERVED_OUTPUT = 4096


class LimitedProvider(Protocol):
    """The limits of a provider; None is no limit."""

    @property
    def max_concurrency(self) -> int | None: ...  # noqa: D102
    @property
    def requests_per_minute(self) -> int | None: ...  # noqa: D102
    @property
    def tokens_per_minute(self) -> int | None: ...  # noqa: D102


def estimate_tokens(request: Mapping[str, Any]) -> int:
    """Return how many tokens to reserve for a chat completion: those of its prompt, and the limit of its answer."""
    limit = request.get("max_completion_tokens") or request.get("max_tokens") or 0
    return estimate_usage(request, "").prompt_tokens + min(limit, _MOST_RESERVED_OUTPUT) * (request.get("n") or 1)


class Throttle:
    """The limits of all providers, which one worker keeps together with the others."""

    def __init__(
        self,
        redis: Redis,
        *,
        lease_seconds: float,
        window_seconds: float = 60.0,
    ) -> None:
        """Keep this worker's slots for `lease_seconds` after its last report; a minute has `window_seconds`."""
        self._lines: dict[str, PermitLine] = {}
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
        account: str = "",
        background: bool = False,
        calls: int = 1,
        patience_seconds: float = math.inf,
    ) -> AbstractAsyncContextManager[Permit]:
        """Return a context that is entered when the provider may be called: `calls` times at once, for this request.

        Leaving it gives the permit back. A call that is cancelled while it waits costs nothing, and so does a provider
        without limits. Entering raises UpstreamBusyError when it would take, or has taken, longer than
        `patience_seconds`; `retry_after` says when to ask again.
        """
        limits = ProviderLimits(provider.max_concurrency, provider.requests_per_minute, provider.tokens_per_minute)
        if limits == (None, None, None):
            return UNLIMITED
        line = self._lines.get(name)
        if line is None:
            line = self._lines[name] = PermitLine(self, name, self._window_seconds)
        line.limits = limits
        tokens = 0 if limits.tokens is None else estimate_tokens(request)
        return PendingPermit(line, account, background, Cost(calls, tokens), patience_seconds)

    async def run(self) -> None:
        """Keep this worker's slots, and share the limits again once Redis is back; until cancelled."""
        heartbeat = self._lease_seconds / 3
        while True:
            await asyncio.sleep(heartbeat if self._shared else min(heartbeat, _COME_BACK_SECONDS))
            if self._shared:
                for line in self._lines.values():
                    line.heartbeat()
            else:
                await self._come_back()

    async def close(self) -> None:
        """Report the calls that have ended here to the other workers."""
        await asyncio.gather(*(line.close() for line in self._lines.values()))

    # -- for lines ----------------------------------------------------------------------------------------------------

    async def ask(self, name: str, limits: ProviderLimits, question: Sequence[int]) -> Decision:
        """Put a line's question to the script."""
        times = (self._window_seconds, self._lease_seconds, _PLACE_SECONDS)
        most = (-1 if limit is None else limit for limit in limits)
        # In one argument, as redis-py takes a microsecond and more over each.
        said = " ".join(map(str, (*most, *(round(seconds * 1000) for seconds in times), *question)))
        granted, wait, slot = await self._script(keys=[self._prefix + name], args=[self._worker, said])
        return Decision(granted, wait / 1000, slot)

    def lost(self, error: Exception) -> None:
        """Keep the limits without the other workers from here on."""
        if self._shared:
            log.warning("Redis is unavailable, this worker keeps the providers' limits by itself: %r", error)
        self._shared = False

    async def _come_back(self) -> None:
        try:
            for line in list(self._lines.values()):
                await line.introduce()
        except Exception as error:  # noqa: BLE001  (Redis is unavailable, whatever the error is)
            log.debug("Redis is still unavailable: %r", error)
            return
        log.info("Redis is back, the providers' limits are shared again")
        self._shared = True
