"""The limits of keys and accounts, checked and taken in one round trip to Redis, over all API processes.

Rates are counted in seconds, over the last sixty and the one under way: a window, not a bucket, which lets twice as
much through in some minutes. Beside them Redis keeps what each open job holds back, and what was spent of a budget;
both are had from Postgres where Redis does not know them, and put right from there. What a job holds back goes when it
has ended, however it does: at once where an API process sees the end, else by the scheduler's look at Postgres.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import ROUND_CEILING, Decimal
from typing import Any

import orjson
from redis.asyncio import Redis
from sqlalchemy.exc import SQLAlchemyError

from headrace.database import Database
from headrace.errors import HeadraceError, QuotaExceededError, RateLimitError, UnavailableError
from headrace.group_commit import GroupCommit
from headrace.quotas import queries
from headrace.quotas.queries import Spent
from headrace.quotas.rules import Limits
from headrace.redis_url import AWAY

log = logging.getLogger(__name__)

_NANO = 1_000_000_000
# So often what Redis lacks is looked up for one request; somebody else's job may end meanwhile.
_MOST_LOADS = 5
_COMPLAIN_SECONDS = 60.0
_SCOPES = "hr:quota:scopes"
# So many at a time keep Redis from all others for about five milliseconds.
_MOST_JOBS = 64

# A window has what was taken in each second, and for jobs that wait, in seconds still to come; with the sum of those
# that count, from which second on they do, and the last one there is.
_LIBRARY = """
local SPAN = 61
local now = tonumber(redis.call('TIME')[1])
local function window(key)
    local kept = redis.call('HMGET', key, 'sum', 'from', 'last')
    local sum, from = tonumber(kept[1] or 0), tonumber(kept[2] or now - SPAN + 1)
    for at = from, now - SPAN do
        local count = redis.call('HGET', key, at)
        if count then
            sum = sum - count
            redis.call('HDEL', key, at)
        end
    end
    if not kept[2] or from <= now - SPAN then redis.call('HSET', key, 'sum', sum, 'from', now - SPAN + 1) end
    return {key = key, sum = sum, last = tonumber(kept[3] or 0)}
end
-- When there is room for as many more: the second, or nil if there never is.
local function free_at(win, limit, more)
    if more > limit then return nil end
    if win.sum + more <= limit then return now end
    local found, raw, sum, at = {}, redis.call('HGETALL', win.key), win.sum, now
    for i = 1, #raw, 2 do
        local second = tonumber(raw[i])
        if second then found[#found + 1] = {second, tonumber(raw[i + 1])} end
    end
    table.sort(found, function(a, b) return a[1] < b[1] end)
    for i = 1, #found do
        if sum + more <= limit then break end
        sum = sum - found[i][2]
        at = math.max(now, found[i][1] + SPAN)
    end
    return at
end
local function take(win, at, count)
    if redis.call('HINCRBY', win.key, at, count) == count then redis.call('EXPIRE', win.key, at - now + 120) end
    redis.call('HINCRBY', win.key, 'sum', count)
    if at > win.last then redis.call('HSET', win.key, 'last', at) end
end
local function key(id, part) return 'hr:quota:' .. id .. ':' .. part end
"""
# Of each job: day, month, id, whether it is a background job, tokens, cost, and scopes as `Gate._ask` has them.
_ADMIT = (
    _LIBRARY
    + """
local function admit(day, month, job, background, tokens, nano, scopes)
    local at, seen = now, {}
    for i, scope in ipairs(scopes) do
        local id, rpm, tpm, flight, queued, daily, monthly, waits = unpack(scope)
        waits = waits and background == 1
        local sums = redis.call('HMGET', key(id, 'sums'), 'loaded', 'version', 'open0', 'open1', 'held', day, month)
        local stateful = flight >= 0 or queued >= 0 or daily >= 0 or monthly >= 0
        if stateful and (not sums[1] or not sums[6] or not sums[7]) then
            return {'load', i, tonumber(sums[2] or 0)}
        end
        local held = tonumber(sums[5] or 0)
        if daily >= 0 and tonumber(sums[6]) + held + nano > daily then return {'daily_budget', i} end
        if monthly >= 0 and tonumber(sums[7]) + held + nano > monthly then return {'monthly_budget', i} end
        local open = tonumber(sums[3 + background] or 0)
        if background == 0 and flight >= 0 and open >= flight then return {'jobs_in_flight', i, open} end
        if background == 1 and queued >= 0 and open >= queued then return {'jobs_queued', i, open} end
        local r, t
        if rpm >= 0 then
            r = window(key(id, 'requests'))
            local free = free_at(r, rpm, 1)
            if free > now and not waits then return {'requests_per_minute', i, r.sum, free - now} end
            if free > now then at = math.max(at, free, r.last) end
        end
        if tpm >= 0 then
            t = window(key(id, 'tokens'))
            local free = free_at(t, tpm, tokens)
            if not free then return {'tokens_per_minute', i, t.sum, -1} end
            if free > now and not waits then return {'tokens_per_minute', i, t.sum, free - now} end
            if free > now then at = math.max(at, free, t.last) end
        end
        seen[i] = {id, rpm, r, tpm, t, open, held}
    end
    local answer, holds = {'ok', at - now}, string.format('%d:%.0f:%.0f:%d', background, tokens, nano, at)
    for i = 1, #seen do
        local id, rpm, r, tpm, t, open, held = unpack(seen[i], 1, 7)
        if r then take(r, at, 1) end
        if t then take(t, at, tokens) end
        answer[#answer + 1] = r and {rpm, rpm - r.sum - 1, at - now + SPAN} or false
        answer[#answer + 1] = t and {tpm, tpm - t.sum - tokens, at - now + SPAN} or false
        if redis.call('HSETNX', key(id, 'open'), job, holds) == 1 then
            redis.call('HSET', key(id, 'sums'), 'open' .. background, open + 1, 'held', held + nano)
        end
        if open == 0 then
            redis.call('EXPIRE', key(id, 'open'), 3456000)
            redis.call('EXPIRE', key(id, 'sums'), 3456000)
        end
        redis.call('SADD', 'hr:quota:scopes', id)
    end
    return answer
end
local answers = {}
for i = 1, #ARGV do answers[i] = admit(unpack(cjson.decode(ARGV[i]))) end
return answers
"""
)
# Of each job: day, month, id, tokens, cost, and the ids of scopes. Who is not there any more was settled already.
_SETTLE = (
    _LIBRARY
    + """
local function settle(day, month, job, tokens, nano, ids)
    for _, id in ipairs(ids) do
        local held, sums, win = redis.call('HGET', key(id, 'open'), job), key(id, 'sums'), key(id, 'tokens')
        if held then
            local kind, reserved, cost, at = held:match('^(%d):(%d+):(%d+):(%d+)')
            redis.call('HDEL', key(id, 'open'), job)
            local is = redis.call('HMGET', sums, 'open' .. kind, 'held', 'version', day, month)
            local to = {'open' .. kind, (is[1] or 0) - 1, 'held', (is[2] or 0) - cost, 'version', (is[3] or 0) + 1}
            for i, period in ipairs({day, month}) do
                if is[3 + i] then
                    to[#to + 1] = period
                    to[#to + 1] = is[3 + i] + nano
                end
            end
            redis.call('HSET', sums, unpack(to))
            if redis.call('HEXISTS', win, at) == 1 then
                redis.call('HINCRBY', win, at, tokens - reserved)
                redis.call('HINCRBY', win, 'sum', tokens - reserved)
            end
        end
    end
    return 1
end
local answers = {}
for i = 1, #ARGV do answers[i] = settle(unpack(cjson.decode(ARGV[i]))) end
return answers
"""
)
# What Postgres says was spent, and at first which jobs are open, unless something was settled since it was asked.
_LOAD = (
    _LIBRARY
    + """
local id, version, day, spent_day, month, spent_month, jobs = unpack(cjson.decode(ARGV[1]))
local open, sums = key(id, 'open'), key(id, 'sums')
if tonumber(redis.call('HGET', sums, 'version') or 0) ~= version then return 0 end
if redis.call('HEXISTS', sums, 'loaded') == 0 then
    for _, job in ipairs(jobs) do
        if redis.call('HSETNX', open, job[1], string.format('%d:0:%.0f:0', job[2], job[3])) == 1 then
            redis.call('HINCRBY', sums, 'open' .. job[2], 1)
            redis.call('HINCRBY', sums, 'held', job[3])
        end
    end
end
redis.call('HSET', sums, 'loaded', 1, day, spent_day, month, spent_month)
redis.call('HINCRBY', sums, 'version', 1)
redis.call('EXPIRE', open, 3456000)
redis.call('EXPIRE', sums, 3456000)
return 1
"""
)


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose limits: a key's or an account's, by its id."""

    id: str
    limits: Limits

    @property
    def is_limited(self) -> bool:
        """Whether there is anything to count."""
        limits = self.limits
        return (
            limits.requests_per_minute is not None
            or limits.tokens_per_minute is not None
            or limits.jobs_in_flight is not None
            or limits.jobs_queued is not None
            or limits.daily_budget is not None
            or limits.monthly_budget is not None
        )


@dataclass(frozen=True, slots=True)
class Demand:
    """What a job is going to use, as far as that can be told before."""

    job_id: str
    background: bool
    tokens: int
    cost: Decimal


@dataclass(frozen=True, slots=True)
class Admission:
    """That a job may run, and after how many seconds; `headers` are OpenAI's, of the tightest limits."""

    delay_seconds: float = 0
    headers: dict[str, str] = field(default_factory=dict)


class Gate:
    """The limits as one process sees them. While Redis is away they let everybody through, or with it closed nobody."""

    def __init__(self, redis: Redis, database: Database, *, open_when_away: bool) -> None:
        self._redis = redis
        self._database = database
        self._open_when_away = open_when_away
        self._load = redis.register_script(_LOAD)
        self._admissions = self._grouped(_ADMIT)
        self._settlements = self._grouped(_SETTLE)
        self._complained = -math.inf

    def _grouped(self, text: str) -> GroupCommit[bytes, Any]:
        """Return what runs a script for many jobs at a time, each told in JSON."""
        script = self._redis.register_script(text)

        async def run(jobs: Sequence[bytes]) -> Sequence[Any]:
            answers: Sequence[Any] = await script(args=jobs)
            return answers

        return GroupCommit(run, max_batch=_MOST_JOBS)

    async def admit(self, scopes: Sequence[Scope], demand: Demand) -> Admission:
        """Take what a job is going to use from each scope's limits, all or nothing. Scopes without any cost nothing.

        Raises:
            RateLimitError: A rate, or the number of open jobs, does not allow it now.
            QuotaExceededError: A budget does not.
            UnavailableError: Redis is away, and that closes the gate.
        """
        limited = [scope for scope in scopes if scope.is_limited]
        if not limited:
            return Admission()
        try:
            for _ in range(_MOST_LOADS):
                answer = await self._ask(limited, demand)
                if answer[0] != b"load":
                    return _read(answer, limited, demand)
                await self._reload(limited[answer[1] - 1].id, version=answer[2])
        except AWAY as error:
            self._complain(error)
            if self._open_when_away:
                return Admission()
        raise UnavailableError("Limits cannot be checked at the moment.", retry_after=1)

    async def _ask(self, scopes: Sequence[Scope], demand: Demand) -> list[Any]:
        asked = []
        for scope in scopes:
            limits = scope.limits
            counts = (limits.requests_per_minute, limits.tokens_per_minute, limits.jobs_in_flight, limits.jobs_queued)
            budgets = (limits.daily_budget, limits.monthly_budget)
            asked.append(
                [
                    scope.id,
                    *(-1 if count is None else count for count in counts),
                    *(-1 if budget is None else int(budget * _NANO) for budget in budgets),
                    bool(limits.wait),
                ]
            )
        about = [*_periods(), demand.job_id, int(demand.background), demand.tokens, _nano(demand.cost)]
        answer: list[Any] = await self._admissions.submit(orjson.dumps([*about, asked]))
        return answer

    async def settle(self, scope_ids: Sequence[str], spent: Sequence[Spent]) -> None:
        """Let go of what jobs held back, and count what they used; what is settled already stays as it is.

        Raises:
            headrace.redis_url.AWAY: Redis is away: they are settled by the next look at Postgres.
        """
        periods = _periods()
        await asyncio.gather(
            *(
                self._settlements.submit(
                    orjson.dumps([*periods, job.job_id, job.tokens, _nano(job.cost), list(scope_ids)])
                )
                for job in spent
            )
        )

    async def settle_ended(self, scopes: Sequence[Scope], job_id: str, spent: Spent | None = None) -> None:
        """Settle one job that has ended just now, or never was; whatever is in the way, the scheduler does it later.

        Without `spent`, Postgres is asked what it used.
        """
        limited = [scope.id for scope in scopes if scope.is_limited]
        if not limited:
            return
        try:
            ended = [spent] if spent else await queries.find_ended(self._database, [job_id], patience_seconds=0)
            await self.settle(limited, ended)
        except AWAY as error:
            self._complain(error)
        except SQLAlchemyError as error:
            log.warning("what a job held back stays so until Postgres is back: %s", error)

    async def reconcile(self) -> None:
        """Settle what has ended or never was, in every scope that holds something back.

        Raises:
            headrace.redis_url.AWAY: Redis is away.
            sqlalchemy.exc.SQLAlchemyError: Postgres is.
        """
        for scope_id in await self._scopes():
            cursor = 0
            while True:
                cursor, held = await self._redis.hscan(f"hr:quota:{scope_id}:open", cursor, count=500)
                if held:
                    job_ids = [_text(job_id) for job_id in held]
                    await self.settle([scope_id], await queries.find_ended(self._database, job_ids))
                if not cursor:
                    break

    async def correct(self) -> None:
        """Put right, from the ledger, what was spent of budgets. Raises what `reconcile` does."""
        for scope_id in await self._scopes():
            sums = await self._redis.hmget(f"hr:quota:{scope_id}:sums", ["loaded", "version"])
            if sums[0] is None:
                await self._redis.srem(_SCOPES, scope_id)  # nobody has asked for as long as it is kept
            else:
                await self._reload(scope_id, version=int(sums[1] or 0))

    async def _scopes(self) -> list[str]:
        return [_text(scope_id) for scope_id in await self._redis.smembers(_SCOPES)]

    async def _reload(self, scope_id: str, *, version: int) -> None:
        day, month = _periods()
        spent = await queries.read_spent(self._database, scope_id)
        jobs = [[job.id, int(job.background), _nano(job.cost)] for job in spent.open_jobs]
        asked = [scope_id, version, day, _nano(spent.day), month, _nano(spent.month), jobs]
        await self._load(args=[orjson.dumps(asked)])

    def _complain(self, error: Exception) -> None:
        now = time.monotonic()
        if now - self._complained > _COMPLAIN_SECONDS:
            self._complained = now
            log.warning("limits are %s, as Redis is away: %s", "off" if self._open_when_away else "closed", error)


def _text(found: bytes | str) -> str:
    return found.decode() if isinstance(found, bytes) else found


def _nano(cost: Decimal) -> int:
    """Return USD in billionths, rounded up; in a script these are exact to nine million dollars."""
    return int((cost * _NANO).to_integral_value(ROUND_CEILING))


def _periods() -> tuple[str, str]:
    """Return the names of this day and this month in a scope's sums."""
    now = datetime.now(UTC)
    return f"d:{now:%Y-%m-%d}", f"m:{now:%Y-%m}"


def _read(answer: list[Any], scopes: Sequence[Scope], demand: Demand) -> Admission:
    word = answer[0].decode()
    if word == "ok":
        return Admission(answer[1], _headers(answer[2:]))
    limits = scopes[answer[1] - 1].limits
    raise _refusal(word, getattr(limits, word), demand, *answer[2:])


def _headers(rates: Sequence[Any]) -> dict[str, str]:
    """Return OpenAI's headers, of the scope that has the least left."""
    headers: dict[str, str] = {}
    for name, found in (("requests", rates[::2]), ("tokens", rates[1::2])):
        tightest = min((rate for rate in found if rate), key=lambda rate: rate[1], default=None)
        if tightest is not None:
            limit, remaining, reset = tightest
            headers |= {
                f"x-ratelimit-limit-{name}": str(limit),
                f"x-ratelimit-remaining-{name}": str(max(0, remaining)),
                f"x-ratelimit-reset-{name}": _duration(reset),
            }
    return headers


def _duration(seconds: int) -> str:
    """Return a time as OpenAI's headers have it: `7s`, `1m1s`."""
    minutes, rest = divmod(seconds, 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"


_ABBREVIATIONS = {"requests_per_minute": "requests per min (RPM)", "tokens_per_minute": "tokens per min (TPM)"}
# What OpenAI's clients take for an answer.
_IN_VAIN = {"x-should-retry": "false"}
_OPEN = {"jobs_in_flight": "requests at one time", "jobs_queued": "background jobs at one time"}


def _refusal(word: str, limit: Any, demand: Demand, used: int = 0, wait: int = 1) -> HeadraceError:
    if word.endswith("_budget"):
        return _out_of_budget(word, limit)
    if word in _OPEN:
        return RateLimitError(f"Rate limit reached for {_OPEN[word]}: Limit {limit}, Used {used}.", retry_after=1)
    name = word.partition("_")[0]
    asked = 1 if name == "requests" else demand.tokens
    if wait < 0:
        error = RateLimitError(f"Request too large for {_ABBREVIATIONS[word]}: Limit {limit}, Requested {asked}.")
        error.headers = _IN_VAIN
        return error
    error = RateLimitError(
        f"Rate limit reached for {_ABBREVIATIONS[word]}: Limit {limit}, Used {used}, Requested {asked}. "
        f"Please try again in {_duration(wait)}.",
        retry_after=wait,
    )
    error.headers = {
        f"x-ratelimit-limit-{name}": str(limit),
        f"x-ratelimit-remaining-{name}": str(max(0, limit - used)),
        f"x-ratelimit-reset-{name}": _duration(wait),
    }
    return error


def _out_of_budget(word: str, budget: Decimal) -> QuotaExceededError:
    now = datetime.now(UTC)
    anew = (
        now + timedelta(days=1) if word == "daily_budget" else (now.replace(day=1) + timedelta(days=32)).replace(day=1)
    )
    error = QuotaExceededError(
        f"You exceeded your current quota, please check your plan and billing details. The {word.replace('_', ' ')} of "
        f"{budget.normalize():f} USD does not allow this request; it starts anew on {anew:%Y-%m-%d} at 00:00 UTC.",
        retry_after=(anew.replace(hour=0, minute=0, second=0, microsecond=0) - now).total_seconds(),
    )
    error.headers = _IN_VAIN
    return error
