"""The limits of keys and accounts, checked and taken in one round trip to Redis, over all API processes.

Rates are counted in seconds, over the last sixty and the one under way: a window, not a bucket, which lets twice as
much through in some minutes. Beside them Redis keeps what each open job holds back, and what was spent of a budget;
both are had from Postgres where Redis does not know them, and put right from there. What a job holds back goes when it
has ended, however it does: at once where an API process sees the end, else by the scheduler's look at Postgres.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import ROUND_CEILING, Decimal
from typing import Any

from redis.asyncio import Redis
from redis.commands.core import AsyncScript
from redis.exceptions import NoScriptError, RedisError
from sqlalchemy.exc import SQLAlchemyError

from headrace.database import Database
from headrace.errors import HeadraceError, QuotaExceededError, RateLimitError, UnavailableError
from headrace.group_commit import GroupCommit
from headrace.quotas import queries
from headrace.quotas.queries import Spent
from headrace.quotas.rules import Limits

log = logging.getLogger(__name__)

_NANO = 1_000_000_000
# So often what Redis lacks is looked up for one request; somebody else's job may end meanwhile.
_MOST_LOADS = 5
_COMPLAIN_SECONDS = 60.0
_SCOPES = "hr:quota:scopes"

# Windows are hashes of seconds: what was taken in each, and for jobs that wait, in seconds that are still to come.
_LIBRARY = """
local SPAN = 61
local function seconds()
    return tonumber(redis.call('TIME')[1])
end
local function window(key, now)
    local found, sum, last = {}, 0, now
    local raw = redis.call('HGETALL', key)
    for i = 1, #raw, 2 do
        local at, count = tonumber(raw[i]), tonumber(raw[i + 1])
        if at <= now - SPAN then
            redis.call('HDEL', key, raw[i])
        elseif count > 0 then
            found[#found + 1] = {at, count}
            sum = sum + count
            if at > last then last = at end
        end
    end
    table.sort(found, function(a, b) return a[1] < b[1] end)
    return {found = found, sum = sum, last = last}
end
-- When there is room for as many more: the second, or nil if there never is.
local function free_at(win, limit, more, now)
    if more > limit then return nil end
    local sum, at = win.sum, now
    for i = 1, #win.found do
        if sum + more <= limit then break end
        sum = sum - win.found[i][2]
        at = math.max(now, win.found[i][1] + SPAN)
    end
    return at
end
"""
_ADMIT = (
    _LIBRARY
    + """
local day, month, job, background = 'd:' .. ARGV[1], 'm:' .. ARGV[2], ARGV[3], ARGV[4] == '1'
local requests, tokens, nano = 1, tonumber(ARGV[5]), tonumber(ARGV[6])
local now, at, seen = seconds(), nil, {}
at = now
for i = 1, (#KEYS - 1) / 4 do
    local base, a = (i - 1) * 4 + 1, 6 + (i - 1) * 7
    local rpm, tpm = tonumber(ARGV[a + 1]), tonumber(ARGV[a + 2])
    local flight, queued = tonumber(ARGV[a + 3]), tonumber(ARGV[a + 4])
    local daily, monthly = tonumber(ARGV[a + 5]), tonumber(ARGV[a + 6])
    local waits = background and ARGV[a + 7] == '1'
    local sums = redis.call('HMGET', KEYS[base + 4], 'loaded', 'version', 'open0', 'open1', 'held', day, month)
    local stateful = flight >= 0 or queued >= 0 or daily >= 0 or monthly >= 0
    if stateful and (not sums[1] or not sums[6] or not sums[7]) then
        return {'load', i, tonumber(sums[2] or 0)}
    end
    local held = tonumber(sums[5] or 0)
    if daily >= 0 and tonumber(sums[6]) + held + nano > daily then return {'daily_budget', i} end
    if monthly >= 0 and tonumber(sums[7]) + held + nano > monthly then return {'monthly_budget', i} end
    if not background and flight >= 0 and tonumber(sums[3] or 0) >= flight then
        return {'jobs_in_flight', i, tonumber(sums[3] or 0)}
    end
    if background and queued >= 0 and tonumber(sums[4] or 0) >= queued then
        return {'jobs_queued', i, tonumber(sums[4] or 0)}
    end
    local r, t = nil, nil
    if rpm >= 0 then
        r = window(KEYS[base + 1], now)
        local free = free_at(r, rpm, requests, now)
        if free > now and not waits then return {'requests_per_minute', i, r.sum, free - now} end
        if free > now then at = math.max(at, free, r.last) end
    end
    if tpm >= 0 then
        t = window(KEYS[base + 2], now)
        local free = free_at(t, tpm, tokens, now)
        if not free then return {'tokens_per_minute', i, t.sum, -1} end
        if free > now and not waits then return {'tokens_per_minute', i, t.sum, free - now} end
        if free > now then at = math.max(at, free, t.last) end
    end
    seen[i] = {rpm, r, tpm, t}
end
local answer = {'ok', at - now}
for i = 1, #seen do
    local base, rpm, r, tpm, t = (i - 1) * 4 + 1, unpack(seen[i], 1, 4)
    if r then
        redis.call('HINCRBY', KEYS[base + 1], at, requests)
        redis.call('EXPIRE', KEYS[base + 1], at - now + 120)
        answer[#answer + 1] = {rpm, rpm - r.sum - requests, at - now + SPAN}
    else
        answer[#answer + 1] = false
    end
    if t then
        redis.call('HINCRBY', KEYS[base + 2], at, tokens)
        redis.call('EXPIRE', KEYS[base + 2], at - now + 120)
        answer[#answer + 1] = {tpm, tpm - t.sum - tokens, at - now + SPAN}
    else
        answer[#answer + 1] = false
    end
    if redis.call('HSETNX', KEYS[base + 3], job, table.concat({ARGV[4], tokens, nano, at, now}, ':')) == 1 then
        redis.call('HINCRBY', KEYS[base + 4], 'open' .. ARGV[4], 1)
        redis.call('HINCRBY', KEYS[base + 4], 'held', nano)
    end
    redis.call('EXPIRE', KEYS[base + 3], 3456000)
    redis.call('EXPIRE', KEYS[base + 4], 3456000)
end
for i = 7 + 7 * #seen, #ARGV do redis.call('SADD', KEYS[1], ARGV[i]) end
return answer
"""
)
# Of one scope: each job's tokens and cost. Who is not there any more was settled by somebody else.
_SETTLE = """
local settled = 0
for i = 3, #ARGV, 3 do
    local held = redis.call('HGET', KEYS[2], ARGV[i])
    if held then
        local kind, tokens, nano, at = held:match('^(%d):(%d+):(%d+):(%d+):')
        redis.call('HDEL', KEYS[2], ARGV[i])
        redis.call('HINCRBY', KEYS[3], 'open' .. kind, -1)
        redis.call('HINCRBY', KEYS[3], 'held', -nano)
        redis.call('HINCRBY', KEYS[3], 'version', 1)
        for _, period in ipairs({'d:' .. ARGV[1], 'm:' .. ARGV[2]}) do
            if redis.call('HEXISTS', KEYS[3], period) == 1 then redis.call('HINCRBY', KEYS[3], period, ARGV[i + 2]) end
        end
        if redis.call('HEXISTS', KEYS[1], at) == 1 then redis.call('HINCRBY', KEYS[1], at, ARGV[i + 1] - tokens) end
        settled = settled + 1
    end
end
return settled
"""
# What Postgres says was spent, and at first which jobs are open, unless something was settled since it was asked.
_LOAD = """
if tonumber(redis.call('HGET', KEYS[2], 'version') or 0) ~= tonumber(ARGV[1]) then return 0 end
if redis.call('HEXISTS', KEYS[2], 'loaded') == 0 then
    for i = 6, #ARGV, 3 do
        if redis.call('HSETNX', KEYS[1], ARGV[i], table.concat({ARGV[i + 1], 0, ARGV[i + 2], 0, 0}, ':')) == 1 then
            redis.call('HINCRBY', KEYS[2], 'open' .. ARGV[i + 1], 1)
            redis.call('HINCRBY', KEYS[2], 'held', ARGV[i + 2])
        end
    end
end
redis.call('HSET', KEYS[2], 'loaded', 1, 'd:' .. ARGV[2], ARGV[3], 'm:' .. ARGV[4], ARGV[5])
redis.call('HINCRBY', KEYS[2], 'version', 1)
redis.call('EXPIRE', KEYS[1], 3456000)
redis.call('EXPIRE', KEYS[2], 3456000)
return 1
"""


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


@dataclass(frozen=True, slots=True)
class _Call:
    script: AsyncScript
    keys: Sequence[str]
    arguments: Sequence[Any]


class Gate:
    """The limits as one process sees them. While Redis is away they let everybody through, or with it closed nobody."""

    def __init__(self, redis: Redis, database: Database, *, open_when_away: bool) -> None:
        self._redis = redis
        self._database = database
        self._open_when_away = open_when_away
        self._admit = redis.register_script(_ADMIT)
        self._settle = redis.register_script(_SETTLE)
        self._load = redis.register_script(_LOAD)
        self._complained = -math.inf
        self._calls: GroupCommit[_Call, Any] = GroupCommit(self._run_all)

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
        except RedisError as error:
            self._complain(error)
            if self._open_when_away:
                return Admission()
        raise UnavailableError("Limits cannot be checked at the moment.", retry_after=1)

    async def _ask(self, scopes: Sequence[Scope], demand: Demand) -> list[Any]:
        day, month = _periods()
        keys, ids = [_SCOPES], [scope.id for scope in scopes]
        cost = _nano(demand.cost)
        arguments: list[Any] = [day, month, demand.job_id, int(demand.background), demand.tokens, cost]
        for scope in scopes:
            limits = scope.limits
            keys += [f"hr:quota:{scope.id}:{part}" for part in ("requests", "tokens", "open", "sums")]
            counts = (limits.requests_per_minute, limits.tokens_per_minute, limits.jobs_in_flight, limits.jobs_queued)
            arguments += [-1 if count is None else count for count in counts]
            budgets = (limits.daily_budget, limits.monthly_budget)
            arguments += [-1 if budget is None else int(budget * _NANO) for budget in budgets]
            arguments.append(int(bool(limits.wait)))
        answer: list[Any] = await self._run(self._admit, keys, [*arguments, *ids])
        return answer

    async def settle(self, scope_ids: Sequence[str], spent: Sequence[Spent]) -> None:
        """Let go of what jobs held back, and count what they used; what is settled already stays as it is.

        Raises:
            redis.exceptions.RedisError: Redis is away: they are settled by the next look at Postgres.
        """
        if not spent:
            return
        day, month = _periods()
        jobs = [value for job in spent for value in (job.job_id, job.tokens, _nano(job.cost))]
        for scope_id in scope_ids:
            keys = [f"hr:quota:{scope_id}:{part}" for part in ("tokens", "open", "sums")]
            await self._run(self._settle, keys, [day, month, *jobs])

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
        except RedisError as error:
            self._complain(error)
        except SQLAlchemyError as error:
            log.warning("what a job held back stays so until Postgres is back: %s", error)

    async def reconcile(self) -> None:
        """Settle what has ended or never was, in every scope that holds something back.

        Raises:
            redis.exceptions.RedisError: Redis is away.
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
        jobs = [value for job in spent.open_jobs for value in (job.id, int(job.background), _nano(job.cost))]
        keys = [f"hr:quota:{scope_id}:{part}" for part in ("open", "sums")]
        await self._run(self._load, keys, [version, day, _nano(spent.day), month, _nano(spent.month), *jobs])

    async def _run(self, script: AsyncScript, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        answer = await self._calls.submit(_Call(script, keys, arguments))
        if isinstance(answer, RedisError):
            raise answer
        return answer

    async def _run_all(self, calls: Sequence[_Call]) -> Sequence[Any]:
        """Run scripts in one round trip; returns each one's answer, or its error."""
        answers = await self._send(calls)
        unknown = [at for at, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        if unknown:  # a Redis that is new
            for script in (self._admit, self._settle, self._load):
                await self._redis.script_load(script.script)
            for at, answer in zip(unknown, await self._send([calls[at] for at in unknown]), strict=True):
                answers[at] = answer
        return answers

    async def _send(self, calls: Sequence[_Call]) -> list[Any]:
        pipeline = self._redis.pipeline(transaction=False)
        for call in calls:
            pipeline.evalsha(call.script.sha, len(call.keys), *call.keys, *call.arguments)
        answers: list[Any] = await pipeline.execute(raise_on_error=False)
        return answers

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
    now = datetime.now(UTC)
    return f"{now:%Y-%m-%d}", f"{now:%Y-%m}"


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
