"""The limits of keys and accounts, checked and taken in one round trip to Redis, over all API processes.

Rates are counted in seconds, over the last sixty and the one under way: a window, not a bucket, which lets twice as
much through in some minutes. Redis also keeps the reservation of each open job and the spend of each budget. What
Redis lacks, the gate loads from Postgres. The scheduler forgets a scope that admits nothing for an hour and has no open
job. A reservation is released when its job ends: by the API process that sees the end, or else by the scheduler.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import ROUND_CEILING, Decimal
from typing import Any

import orjson
from redis.asyncio import Redis
from sqlalchemy.exc import SQLAlchemyError

from headrace.errors import HeadraceError, QuotaExceededError, RateLimitError, UnavailableError
from headrace.quotas import queries
from headrace.quotas.queries import Spent, UnknownScopeError
from headrace.quotas.rules import Limits
from headrace.stores.database import Database
from headrace.stores.failures import is_unavailable
from headrace.stores.group_commit import GroupCommit
from headrace.stores.lua import read_script
from headrace.stores.namespace import prefix_in
from headrace.stores.redis import REDIS_UNAVAILABLE, is_bad_data

log = logging.getLogger(__name__)

# Nano-USD of one USD: the scripts count money in integers.
_NANO = 1_000_000_000
# Loads that the gate makes for one request, as another job may end meanwhile and void what was loaded.
_MOST_LOADS = 5
_PREFIX = "hr:quota:"
# Jobs in one call of a script at most: so many block Redis for about five milliseconds.
_MOST_JOBS = 64

_LIBRARY = read_script(__package__, "library.lua")
_ADMIT = _LIBRARY + read_script(__package__, "admit.lua")
_SETTLE = _LIBRARY + read_script(__package__, "settle.lua")
_LOAD = _LIBRARY + read_script(__package__, "load.lua")
_FORGET = _LIBRARY + read_script(__package__, "forget.lua")


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
    """The estimated use of a job before it runs."""

    job_id: str
    background: bool
    tokens: int
    cost: Decimal
    line: bool = False
    """Whether it is a batch's line, which counts by the minute alone."""


@dataclass(frozen=True, slots=True)
class Admission:
    """An admitted job: the seconds to wait, and OpenAI's rate-limit headers for the tightest limits."""

    delay_seconds: float = 0
    headers: dict[str, str] = field(default_factory=dict)


class Gate:
    """The limits as one process sees them. While Redis is unavailable the gate is open to all requests, or to none."""

    def __init__(self, redis: Redis, database: Database, *, open_without_redis: bool) -> None:
        self._redis = redis
        self._prefix = prefix_in(redis) + _PREFIX
        self._database = database
        self._open_without_redis = open_without_redis
        self._load = redis.register_script(_LOAD)
        self._forget = redis.register_script(_FORGET)
        self._admissions = self._grouped(_ADMIT)
        self._settlements = self._grouped(_SETTLE)
        self._loading: dict[str, asyncio.Task[None]] = {}

    def _grouped(self, text: str) -> GroupCommit[bytes, Any]:
        """Return a group commit that runs a script for many jobs, each described as JSON."""
        script = self._redis.register_script(text)

        async def run(jobs: Sequence[bytes]) -> Sequence[Any]:
            answers: Sequence[Any] = await script(keys=[self._prefix], args=jobs)
            return answers

        return GroupCommit(run, statement="limits", size=len, max_batch=_MOST_JOBS)

    async def admit(self, scopes: Sequence[Scope], demand: Demand) -> Admission:
        """Take what a job is going to use from each scope's limits, all or nothing. Scopes without any cost nothing.

        Raises:
            RateLimitError: A rate, or the number of open jobs, does not allow it now.
            QuotaExceededError: A budget does not.
            UnavailableError: Redis is unavailable, and that closes the gate.
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
        except REDIS_UNAVAILABLE as error:
            self._complain(error)
            if self._open_without_redis:
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
            *_periods(datetime.now(UTC)),
            demand.job_id,
            2 if demand.line else int(demand.background),
            demand.tokens,
            _nano(demand.cost),
        ]
        answer: list[Any] = await self._admissions.submit(orjson.dumps([*about, asked]))
        return answer

    async def settle(self, scope_ids: Sequence[str], spent: Sequence[Spent]) -> None:
        """Release what jobs reserved, and count what they used. A job that is settled already changes nothing.

        Raises:
            REDIS_UNAVAILABLE: Redis is unavailable. The scheduler settles the jobs later, from Postgres.
        """
        periods = _periods(datetime.now(UTC))
        await asyncio.gather(
            *(
                self._settlements.submit(
                    orjson.dumps([*periods, job.job_id, job.tokens, _nano(job.cost), list(scope_ids)])
                )
                for job in spent
            )
        )

    async def settle_ended(self, scopes: Sequence[Scope], job_id: str, spent: Spent | None = None) -> None:
        """Settle a job that has just ended, or that was not accepted. If this fails, the scheduler does it later.

        Without `spent`, Postgres is asked what it used.
        """
        limited = [scope.id for scope in scopes if scope.is_limited]
        if not limited:
            return
        try:
            ended = [spent] if spent else await queries.find_ended(self._database, [job_id], patience_seconds=0)
            await self.settle(limited, ended)
        except REDIS_UNAVAILABLE as error:
            self._complain(error)
        except SQLAlchemyError as error:
            log.warning("a job's reservation stays until Postgres is available: %s", error)

    async def reconcile(self) -> bool:
        """Settle what has ended or never was, in every scope that holds something back.

        Returns whether something was held back, so that more may be to settle soon.

        Raises:
            REDIS_UNAVAILABLE: Redis is unavailable.
            sqlalchemy.exc.SQLAlchemyError: Postgres is unavailable.
        """
        return await self._for_each_scope(self._reconcile)

    async def _reconcile(self, scope_id: str) -> bool:
        cursor, any_held = 0, False
        while True:
            cursor, held = await self._redis.hscan(f"{self._prefix}{scope_id}:open", cursor, count=500)
            if held:
                any_held = True
                job_ids = [_text(job_id) for job_id in held]
                await self.settle([scope_id], await queries.find_ended(self._database, job_ids))
            if not cursor:
                return any_held

    async def correct(self) -> None:
        """Put right, from the ledger, what was spent of budgets; forget scopes that have been idle for an hour.

        Raises what `reconcile` does.
        """
        await self._for_each_scope(self._correct)

    async def _correct(self, scope_id: str) -> None:
        version = await self._forget(keys=[self._prefix], args=[scope_id])
        if version is not None:  # else it has rates alone, or none any more
            await self._reload(scope_id, version=version)

    async def _for_each_scope(self, work: Callable[[str], Awaitable[bool | None]]) -> bool:
        """Do some work for every scope; one that fails by itself is logged, and the others go on.

        Returns whether any work returned true. What Redis has of a scope that Postgres does not know, or that no script
        understands, is deleted.
        """
        found = False
        for scope_id in sorted(map(_text, await self._redis.smembers(f"{self._prefix}scopes"))):
            try:
                found |= bool(await work(scope_id))
            except UnknownScopeError:
                log.warning("deleted the counts of %s in Redis, as it is not in Postgres", scope_id)
                await self._delete(scope_id)
            except REDIS_UNAVAILABLE as error:
                if not is_bad_data(error):
                    raise
                log.exception("deleted the counts of %s in Redis", scope_id)
                await self._delete(scope_id)
            except SQLAlchemyError as error:
                if is_unavailable(error):
                    raise
                log.exception("could not correct the counts of %s", scope_id)
            except Exception:
                log.exception("could not correct the counts of %s", scope_id)
        return found

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
        await asyncio.shield(loading)  # a client that disconnects cancels its own wait alone

    async def _reload(self, scope_id: str, *, version: int) -> None:
        now = datetime.now(UTC)
        day, month = _periods(now)
        async with queries.snapshot(self._database) as then:
            spent = await queries.read_spent(then, scope_id, now)
            # A job that `spent` counts may still have its reservation in Redis, which this finds, because the job was
            # admitted before the snapshot.
            held = await self._redis.hkeys(f"{self._prefix}{scope_id}:open")
            ended = await queries.find_ended(then, [_text(job_id) for job_id in held])
        jobs = [[job.id, int(job.background), _nano(job.cost)] for job in spent.open_jobs]
        settled = [[job.job_id, job.tokens] for job in ended]
        asked = [scope_id, version, day, _nano(spent.day), month, _nano(spent.month), settled, jobs]
        await self._load(keys=[self._prefix], args=[orjson.dumps(asked)])

    def _complain(self, error: Exception) -> None:
        log.warning(
            "limits are %s, as Redis is unavailable: %s", "off" if self._open_without_redis else "closed", error
        )


def _text(found: bytes | str) -> str:
    return found.decode() if isinstance(found, bytes) else found


def _nano(cost: Decimal) -> int:
    """Return USD in billionths, rounded up; in a script these are exact to nine million dollars."""
    return int((cost * _NANO).to_integral_value(ROUND_CEILING))


def _periods(now: datetime) -> tuple[str, str]:
    """Return the names of a moment's day and month in a scope's sums."""
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
    """Return the error of a limit that is reached. There is room after `wait` seconds; below 0, there never is."""
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
    reset = (
        now + timedelta(days=1) if word == "daily_budget" else (now.replace(day=1) + timedelta(days=32)).replace(day=1)
    )
    return QuotaExceededError(
        f"You exceeded your current quota, please check your plan and billing details. The {word.replace('_', ' ')} of "
        f"{budget.normalize():f} USD does not allow this request; it resets on {reset:%Y-%m-%d} at 00:00 UTC.",
        retry_after=(reset.replace(hour=0, minute=0, second=0, microsecond=0) - now).total_seconds(),
    )
