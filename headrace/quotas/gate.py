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
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import ROUND_CEILING, Decimal
from typing import Any

import orjson
from redis.asyncio import Redis
from redis.commands.core import AsyncScript
from sqlalchemy.exc import SQLAlchemyError

from headrace.errors import HeadraceError, QuotaExceededError, RateLimitError, UnavailableError
from headrace.quotas import queries
from headrace.quotas.queries import Spent, UnknownScopeError
from headrace.quotas.rules import Limits
from headrace.stores.database import Database
from headrace.stores.failures import is_unavailable
from headrace.stores.group_commit import GroupCommit
from headrace.stores.namespace import prefix_in
from headrace.stores.redis_url import AWAY, is_spoilt

log = logging.getLogger(__name__)

_NANO = 1_000_000_000
# So often what Redis lacks is looked up for one request; somebody else's job may end meanwhile.
_MOST_LOADS = 5
_COMPLAIN_SECONDS = 60.0
_PREFIX = "hr:quota:"
# So many at a time keep Redis from all others for about five milliseconds.
_MOST_JOBS = 64

# A window has what was taken in each second, and for jobs that wait, in seconds still to come: none of it is zero.
# Beside it stand the sum of all, the second from which on they are in it, and the last one that has something.
_LIBRARY = """
local SPAN = 61
local now = tonumber(redis.call('TIME')[1])
local function key(id, part) return 'hr:quota:' .. id .. ':' .. part end
local function counts(window, first, last)
    local seconds = {}
    for at = first, last do seconds[#seconds + 1] = at end
    return redis.call('HMGET', window, unpack(seconds))
end
-- The last second up to this one that has something, unless that is so long ago that it does not matter.
local function last_of(window, last)
    while last > now - SPAN do
        local found = counts(window, last - SPAN + 1, last)
        for i = SPAN, 1, -1 do
            if found[i] then return last - SPAN + i end
        end
        last = last - SPAN
    end
    return last
end
-- Correct what was taken in a second; what has left the window stays away.
local function correct(window, at, count)
    if count == 0 or redis.call('HEXISTS', window, at) == 0 then return end
    redis.call('HINCRBY', window, 'sum', count)
    if redis.call('HINCRBY', window, at, count) ~= 0 then return end
    redis.call('HDEL', window, at)
    if redis.call('HGET', window, 'last') == at then
        redis.call('HSET', window, 'last', last_of(window, tonumber(at)))
    end
end
-- Let go of what a job holds back, and count what it used in its place. Who is not there any more was settled already.
local function settle(id, job, tokens, day, month, nano)
    local held, sums = redis.call('HGET', key(id, 'open'), job), key(id, 'sums')
    if not held then return end
    redis.call('HDEL', key(id, 'open'), job)
    local kind, reserved, cost, at = held:match('^(%d):(%d+):(%d+):(%d+)')
    local is = redis.call('HMGET', sums, 'open' .. kind, 'held', 'version', day, month)
    local to = {'open' .. kind, (is[1] or 0) - 1, 'held', (is[2] or 0) - cost, 'version', (is[3] or 0) + 1}
    for i, period in ipairs({day, month}) do
        if is[3 + i] then
            to[#to + 1] = period
            to[#to + 1] = is[3 + i] + nano
        end
    end
    redis.call('HSET', sums, unpack(to))
    correct(key(id, 'tokens'), at, tokens - reserved)
    if tonumber(at) > now then correct(key(id, 'requests'), at, -1) end
end
"""
# Of each job: day, month, id, its kind (0 a client waits, 1 background, 2 a batch's line), tokens, cost, and scopes as
# `Gate._ask` has them.
_ADMIT = (
    _LIBRARY
    + """
local function window(scope, id, part, limit, more, waits)
    local key = key(id, part)
    local kept = redis.call('HMGET', key, 'sum', 'from', 'last')
    local sum, from, last = tonumber(kept[1] or 0), tonumber(kept[2] or now - SPAN + 1), tonumber(kept[3] or 0)
    for first = from, now - SPAN, SPAN do
        local found = counts(key, first, math.min(first + SPAN - 1, now - SPAN))
        for i = 1, #found do
            if found[i] then
                sum = sum - found[i]
                redis.call('HDEL', key, first + i - 1)
            end
        end
    end
    if from <= now - SPAN then
        from = now - SPAN + 1
        redis.call('HSET', key, 'sum', sum, 'from', from)
    end
    local used, newest = sum, last
    if last > now then
        local found = counts(key, now - SPAN + 1, now)
        used = 0
        for i = 1, SPAN do
            if found[i] then used, newest = used + found[i], now - SPAN + i end
        end
    end
    return {
        scope = scope, key = key, part = part, limit = limit, more = more, waits = waits,
        sum = sum, from = from, last = last, used = used, newest = newest,
    }
end
-- A request may be taken in a second if no window that has this second is too full then: those that end with it and
-- the sixty after it. Return the first such second from one on, as far as windows tell that end that much later.
local function free_from(win, at, ahead)
    local first = at - SPAN + 1
    local found = counts(win.key, first, math.max(at, math.min(at + ahead, win.last)))
    local sum, free = 0, at
    for i = 1, SPAN + ahead do
        sum = sum + (found[i] or 0) - (i > SPAN and found[i - SPAN] or 0)
        local last = first + i - 1
        if last >= at and sum + win.more > win.limit then
            free = last + 1
        elseif last == free + SPAN - 1 then
            return free
        end
    end
    return free
end
local function fits(win, at)
    if win.sum + win.more <= win.limit then return true end
    return math.max(at, win.last) > now and free_from(win, at, SPAN - 1) == at
end
-- The second in which a job is taken, or else why there is none. One that waits does not overtake those before it.
local function second(windows)
    for _, win in ipairs(windows) do
        if win.more > win.limit then return nil, {win.part .. '_per_minute', win.scope, win.used, -1} end
    end
    local at = now
    -- Whatever moves it once has room from there on.
    for _ = 1, #windows + 1 do
        local moved = false
        for _, win in ipairs(windows) do
            if not fits(win, at) then
                if not win.waits then
                    local free = free_from(win, at, 2 * SPAN)
                    return nil, {win.part .. '_per_minute', win.scope, win.used, free - now}
                end
                at, moved = free_from(win, math.max(at, win.last), SPAN), true
            end
        end
        if not moved then return at end
    end
    error('no second')
end
local function take(win, at)
    if win.more == 0 then return end
    if redis.call('HINCRBY', win.key, at, win.more) == win.more then
        redis.call('EXPIRE', win.key, math.max(at, win.last) - now + 120)
    end
    redis.call('HINCRBY', win.key, 'sum', win.more)
    if at > win.last then redis.call('HSET', win.key, 'last', at, 'from', win.from) end
end
-- Of the last minute: what is limited, to how much, how much of it is left, and after how many seconds all of it is.
local function rates(windows, at)
    local told = {}
    for i, win in ipairs(windows) do
        local used, newest = win.used, win.newest
        if at == now then used, newest = used + win.more, now end
        told[i] = {win.part, win.limit, win.limit - used, used > 0 and newest + SPAN - now or 0}
    end
    return told
end
-- What may cost more than is left runs if nothing else does: so small budgets are of use, and one job may exceed them.
local function exceeds(budget, spent, held, nano)
    if budget < 0 then return false end
    if nano == 0 then return spent > budget end
    return spent + held + nano > budget and (held > 0 or spent >= budget)
end
local function refusal(scope, kind, nano, open, held, spent_day, spent_month)
    local flight, queued, daily, monthly = unpack(scope, 4, 7)
    if exceeds(daily, spent_day, held, nano) then return 'daily_budget' end
    if exceeds(monthly, spent_month, held, nano) then return 'monthly_budget' end
    if kind == 0 and flight >= 0 and open >= flight then return 'jobs_in_flight' end
    if kind == 1 and queued >= 0 and open >= queued then return 'jobs_queued' end
end
local function hold(id, job, kind, open, held, nano, holds)
    if redis.call('HSETNX', key(id, 'open'), job, holds) == 1 then
        redis.call('HSET', key(id, 'sums'), 'open' .. kind, open + 1, 'held', held + nano)
    end
    if open == 0 then
        redis.call('EXPIRE', key(id, 'open'), 3456000)
        redis.call('EXPIRE', key(id, 'sums'), 3456000)
    end
    redis.call('SADD', 'hr:quota:scopes', id)
end
local function admit(day, month, job, kind, tokens, nano, scopes)
    local windows, states, at, refused = {}, {}
    for i, scope in ipairs(scopes) do
        local id, rpm, tpm, flight, queued, daily, monthly, waits = unpack(scope)
        local sums = redis.call(
            'HMGET', key(id, 'sums'), 'loaded', 'version', 'open0', 'open1', 'open2', 'held', day, month)
        local stateful = flight >= 0 or queued >= 0 or daily >= 0 or monthly >= 0
        if stateful and not (sums[1] and sums[7] and sums[8]) then return {'load', i, tonumber(sums[2] or 0)} end
        local open, held = tonumber(sums[3 + kind] or 0), tonumber(sums[6] or 0)
        local word = refusal(scope, kind, nano, open, held, tonumber(sums[7] or 0), tonumber(sums[8] or 0))
        if word and not refused then refused = {word, i, open, 0} end
        states[i] = {id, open, held}
        waits = waits and kind == 1
        if rpm >= 0 then windows[#windows + 1] = window(i, id, 'requests', rpm, 1, waits) end
        if tpm >= 0 then windows[#windows + 1] = window(i, id, 'tokens', tpm, tokens, waits) end
    end
    if not refused then at, refused = second(windows) end
    if refused then
        refused[5] = rates(windows)
        return refused
    end
    local holds = string.format('%d:%.0f:%.0f:%d', kind, tokens, nano, at)
    for _, win in ipairs(windows) do take(win, at) end
    for _, state in ipairs(states) do
        local id, open, held = unpack(state)
        hold(id, job, kind, open, held, nano, holds)
    end
    return {'ok', 0, 0, at - now, rates(windows, at)}
end
local answers = {}
for i = 1, #ARGV do answers[i] = admit(unpack(cjson.decode(ARGV[i]))) end
return answers
"""
)
# Of each job: day, month, id, tokens, cost, and the ids of scopes.
_SETTLE = (
    _LIBRARY
    + """
local answers = {}
for i = 1, #ARGV do
    local day, month, job, tokens, nano, ids = unpack(cjson.decode(ARGV[i]))
    for _, id in ipairs(ids) do settle(id, job, tokens, day, month, nano) end
    answers[i] = 1
end
return answers
"""
)
# What Postgres says was spent, which jobs have ended by then, and at first which are open, unless something was settled
# since it was asked.
_LOAD = (
    _LIBRARY
    + """
local id, version, day, spent_day, month, spent_month, ended, jobs = unpack(cjson.decode(ARGV[1]))
local open, sums = key(id, 'open'), key(id, 'sums')
if tonumber(redis.call('HGET', sums, 'version') or 0) ~= version then return 0 end
for _, job in ipairs(ended) do settle(id, job[1], job[2], day, month, 0) end
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
# A scope that nobody has asked for as long as its sums are kept, and that holds nothing back.
_FORGET = (
    _LIBRARY
    + """
local id = ARGV[1]
if redis.call('HEXISTS', key(id, 'sums'), 'loaded') == 1 or redis.call('EXISTS', key(id, 'open')) == 1 then return 0 end
return redis.call('SREM', 'hr:quota:scopes', id)
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
    line: bool = False
    """Whether it is a batch's line, which counts by the minute alone."""


@dataclass(frozen=True, slots=True)
class Admission:
    """That a job may run, and after how many seconds; `headers` are OpenAI's, of the tightest limits."""

    delay_seconds: float = 0
    headers: dict[str, str] = field(default_factory=dict)


class Gate:
    """The limits as one process sees them. While Redis is away they let everybody through, or with it closed nobody."""

    def __init__(self, redis: Redis, database: Database, *, open_when_away: bool) -> None:
        self._redis = redis
        self._prefix = prefix_in(redis) + _PREFIX
        self._database = database
        self._open_when_away = open_when_away
        self._load = self._script(_LOAD)
        self._forget = self._script(_FORGET)
        self._admissions = self._grouped(_ADMIT)
        self._settlements = self._grouped(_SETTLE)
        self._loading: dict[str, asyncio.Task[None]] = {}
        self._complained = -math.inf

    def _script(self, text: str) -> AsyncScript:
        """Return a script whose keys are this deployment's."""
        return self._redis.register_script(text.replace(_PREFIX, self._prefix))

    def _grouped(self, text: str) -> GroupCommit[bytes, Any]:
        """Return what runs a script for many jobs at a time, each told in JSON."""
        script = self._script(text)

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
                await self._load_once(limited[answer[1] - 1].id, version=answer[2])
        except AWAY as error:
            self._complain(error)
            if self._open_when_away:
                return Admission()
        raise UnavailableError("Limits cannot be checked at the moment.", retry_after=1)

    async def admit_line(self, scopes: Sequence[Scope], job_id: str, tokens: int) -> float:
        """Take a batch's line from these rates, all or nothing. Returns 0, or after how many seconds to ask again.

        A line that is too large for a minute takes all of one.
        """
        most = min((scope.limits.tokens_per_minute or tokens for scope in scopes), default=tokens)
        try:
            await self.admit(scopes, Demand(job_id, True, min(tokens, most), Decimal(), line=True))
        except (RateLimitError, UnavailableError) as error:
            return error.retry_after or 1.0
        return 0.0

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
        about = [
            *_periods(),
            demand.job_id,
            2 if demand.line else int(demand.background),
            demand.tokens,
            _nano(demand.cost),
        ]
        answer: list[Any] = await self._admissions.submit(orjson.dumps([*about, asked]))
        return answer

    async def settle(self, scope_ids: Sequence[str], spent: Sequence[Spent]) -> None:
        """Let go of what jobs held back, and count what they used; what is settled already stays as it is.

        Raises:
            headrace.stores.redis_url.AWAY: Redis is away: they are settled by the next look at Postgres.
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
            headrace.stores.redis_url.AWAY: Redis is away.
            sqlalchemy.exc.SQLAlchemyError: Postgres is.
        """
        await self._for_each_scope(self._reconcile)

    async def _reconcile(self, scope_id: str) -> None:
        cursor = 0
        while True:
            cursor, held = await self._redis.hscan(f"{self._prefix}{scope_id}:open", cursor, count=500)
            if held:
                job_ids = [_text(job_id) for job_id in held]
                await self.settle([scope_id], await queries.find_ended(self._database, job_ids))
            if not cursor:
                break

    async def correct(self) -> None:
        """Put right, from the ledger, what was spent of budgets. Raises what `reconcile` does."""
        await self._for_each_scope(self._correct)

    async def _correct(self, scope_id: str) -> None:
        loaded, version = await self._redis.hmget(f"{self._prefix}{scope_id}:sums", ["loaded", "version"])
        if loaded is None:  # it has rates alone, or none any more
            await self._forget(args=[scope_id])
        else:
            await self._reload(scope_id, version=int(version or 0))

    async def _for_each_scope(self, work: Callable[[str], Awaitable[None]]) -> None:
        """Do some work for every scope; one that fails by itself is logged, and the others go on.

        What Redis has of a scope that Postgres does not know, or that no script understands, is deleted.
        """
        for scope_id in sorted(map(_text, await self._redis.smembers(f"{self._prefix}scopes"))):
            try:
                await work(scope_id)
            except UnknownScopeError:
                log.warning("forgot what was counted of %s, which is not in Postgres", scope_id)
                await self._delete(scope_id)
            except AWAY as error:
                if not is_spoilt(error):
                    raise
                log.exception("forgot what was counted of %s", scope_id)
                await self._delete(scope_id)
            except SQLAlchemyError as error:
                if is_unavailable(error):
                    raise
                log.exception("could not put right what was counted of %s", scope_id)
            except Exception:
                log.exception("could not put right what was counted of %s", scope_id)

    async def _delete(self, scope_id: str) -> None:
        parts = ("requests", "tokens", "open", "sums")
        await self._redis.delete(*(f"{self._prefix}{scope_id}:{part}" for part in parts))
        await self._redis.srem(f"{self._prefix}scopes", scope_id)

    async def _load_once(self, scope_id: str, *, version: int) -> None:
        """Load a scope's sums, for all who ask for them at the same time."""
        loading = self._loading.get(scope_id)
        if loading is None:
            loading = self._loading[scope_id] = asyncio.create_task(self._reload(scope_id, version=version))
            loading.add_done_callback(lambda _: self._loading.pop(scope_id))
        await asyncio.shield(loading)  # it may be one client's going that stops us

    async def _reload(self, scope_id: str, *, version: int) -> None:
        day, month = _periods()
        async with queries.snapshot(self._database) as then:
            spent = await queries.read_spent(then, scope_id)
            # Of what that has counted, something may hold back still. It was let in before, and so is there now.
            held = await self._redis.hkeys(f"{self._prefix}{scope_id}:open")
            ended = await queries.find_ended(then, [_text(job_id) for job_id in held])
        jobs = [[job.id, int(job.background), _nano(job.cost)] for job in spent.open_jobs]
        settled = [[job.job_id, job.tokens] for job in ended]
        asked = [scope_id, version, day, _nano(spent.day), month, _nano(spent.month), settled, jobs]
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
    word, place, used, wait, rates = answer
    headers = _headers(rates)
    if word == b"ok":
        return Admission(wait, headers)
    name = word.decode()
    error = _refusal(name, getattr(scopes[place - 1].limits, name), demand, used, wait)
    error.headers = {**headers, **error.headers}
    raise error


def _headers(rates: Sequence[Any]) -> dict[str, str]:
    """Return OpenAI's headers, of the scope that has the least left."""
    headers: dict[str, str] = {}
    for name in ("requests", "tokens"):
        found = [rate[1:] for rate in rates if rate[0].decode() == name]
        if found:
            limit, remaining, reset = min(found, key=lambda rate: rate[1])
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
_OPEN = {"jobs_in_flight": "requests at one time", "jobs_queued": "background jobs at one time"}


def _refusal(word: str, limit: Any, demand: Demand, used: int, wait: int) -> HeadraceError:
    """Return what is told of a limit of which so much is used; there is room after `wait` seconds, or if < 0 never."""
    if word.endswith("_budget"):
        return _out_of_budget(word, limit)
    if word in _OPEN:
        return RateLimitError(f"Rate limit reached for {_OPEN[word]}: Limit {limit}, Used {used}.", retry_after=1)
    asked = 1 if word == "requests_per_minute" else demand.tokens
    if wait < 0:
        error = RateLimitError(f"Request too large for {_ABBREVIATIONS[word]}: Limit {limit}, Requested {asked}.")
        error.retryable = False
        return error
    return RateLimitError(
        f"Rate limit reached for {_ABBREVIATIONS[word]}: Limit {limit}, Used {used}, Requested {asked}. "
        f"Please try again in {_duration(wait)}.",
        retry_after=wait,
    )


def _out_of_budget(word: str, budget: Decimal) -> QuotaExceededError:
    now = datetime.now(UTC)
    anew = (
        now + timedelta(days=1) if word == "daily_budget" else (now.replace(day=1) + timedelta(days=32)).replace(day=1)
    )
    return QuotaExceededError(
        f"You exceeded your current quota, please check your plan and billing details. The {word.replace('_', ' ')} of "
        f"{budget.normalize():f} USD does not allow this request; it starts anew on {anew:%Y-%m-%d} at 00:00 UTC.",
        retry_after=(anew.replace(hour=0, minute=0, second=0, microsecond=0) - now).total_seconds(),
    )
