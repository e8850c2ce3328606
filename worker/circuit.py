"""Circuits: a provider that keeps failing is left alone for a while, and tried again by one call first.

A circuit is closed until enough calls in a row have failed. Then it is open: nobody calls the provider until its
cooling time is over. After that one call, of all workers together, probes it: an answer closes the circuit, a failure
opens it for longer. A provider may also be paused, because it said when it will take calls again.

What a circuit is, and how it changes, is `Circuit`, which is pure. Where workers share it is one hash in Redis, with a
field for each provider that is in trouble, and whoever changes a field compares it with what it had read. Each worker
has a copy that it reads anew every second, so a call to a provider without trouble costs no round trip and no write.
While Redis is away each worker goes by its own copy. If Redis loses the hash, all circuits are closed until calls fail
again.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, replace
from functools import partial
from types import TracebackType
from typing import Self

from redis.asyncio import Redis

from headrace.errors import UpstreamBusyError, UpstreamError, UpstreamRateLimitError, UpstreamUnavailableError
from headrace.redis_url import AWAY

log = logging.getLogger(__name__)

_KEY = "headrace:circuits"
_READ = """
local time = redis.call('TIME')
return {time[1] * 1000 + math.floor(time[2] / 1000), redis.call('HGETALL', KEYS[1])}
"""
# Writes the field ARGV[1] if it still is ARGV[2]; returns whether it did, and what the field is now.
_SWAP = """
local current = redis.call('HGET', KEYS[1], ARGV[1]) or ''
if current ~= ARGV[2] then return {0, current} end
if ARGV[3] == '' then
    redis.call('HDEL', KEYS[1], ARGV[1])
else
    redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
    redis.call('EXPIRE', KEYS[1], 86400)
end
return {1, ARGV[3]}
"""
# Workers that change the same field at the same moment each win in turn; one that never does goes by its own copy.
_MOST_SWAPS = 10


@dataclass(frozen=True, slots=True)
class Rules:
    """When circuits open, and for how long."""

    failures: int = 5
    """Failures in a row that open a circuit: one job's retries alone do not."""
    cooling_seconds: float = 5.0
    """How long it is open at first; this doubles each time that it opens again soon."""
    longest_cooling_seconds: float = 120.0
    probe_seconds: float = 30.0
    """A probe that has not answered by then lets another one through."""
    forget_seconds: float = 600.0
    """What is older than this counts for nothing."""
    longest_pause_seconds: float = 3600.0
    """A provider is not believed beyond this."""


@dataclass(frozen=True, slots=True)
class Circuit:
    """A provider's trouble. Times are in milliseconds of Redis's clock, 0 where there is none."""

    failures: int = 0
    trips: int = 0
    failed_at: int = 0
    open_until: int = 0
    probe_until: int = 0
    paused_until: int = 0

    def failed(self, now: int, rules: Rules, *, probe: bool, jitter: float) -> Circuit:
        """Return the circuit after a failure; `jitter` in 0 to 1 spreads its cooling time by a quarter either way.

        While it is open only the probe counts: other calls were under way when it opened, and say nothing new.
        """
        if self.open_until and not probe:
            return self
        fresh = self if now - self.failed_at <= rules.forget_seconds * 1000 else replace(self, failures=0, trips=0)
        failures = fresh.failures + 1
        if failures < rules.failures and not probe:
            return replace(fresh, failures=failures, failed_at=now)
        seconds = min(rules.longest_cooling_seconds, rules.cooling_seconds * 2 ** min(fresh.trips, 30))
        return replace(
            fresh,
            failures=failures,
            trips=fresh.trips + 1,
            failed_at=now,
            open_until=now + int(seconds * 1000 * (0.75 + jitter / 2)),
            probe_until=0,
        )

    def answered(self, _now: int, *, probe: bool) -> Circuit:
        """Return the circuit after an answer. It remembers how often it opened, should it fail again soon."""
        if self.open_until and not probe:
            return self
        return replace(self, failures=0, open_until=0, probe_until=0)

    def abandoned(self, _now: int) -> Circuit:
        """Return the circuit after a probe that was given up, and so tells nothing."""
        return replace(self, probe_until=0)

    def paused(self, _now: int, *, until: int) -> Circuit:
        """Return the circuit of a provider that wants no calls before `until`."""
        return replace(self, paused_until=max(self.paused_until, until))

    def blocked(self, now: int) -> int:
        """Return the milliseconds in which nobody may call; 0 if somebody may, if only to probe."""
        return max(0, self.paused_until - now, self.open_until - now, self.probe_until - now)

    def tidied(self, now: int, rules: Rules) -> Circuit:
        """Return the circuit without what is too old to count."""
        paused = self.paused_until if self.paused_until > now else 0
        if now - max(self.failed_at, self.open_until, self.probe_until) > rules.forget_seconds * 1000:
            return Circuit(paused_until=paused)
        return replace(self, paused_until=paused)

    def pack(self) -> str:
        """Return the circuit as it is kept, "" if there is no trouble."""
        return "" if self == _HEALTHY else " ".join(map(str, astuple(self)))

    @classmethod
    def unpack(cls, text: str) -> Circuit:
        """Return what `pack` packed; what is not that is no trouble."""
        try:
            return cls(*map(int, text.split()))
        except (ValueError, TypeError):
            return _HEALTHY


_HEALTHY = Circuit()
_Change = Callable[[Circuit, int], Circuit]


class Circuits:
    """The circuits of all providers, as one worker knows them."""

    def __init__(self, redis: Redis, *, rules: Rules | None = None, poll_seconds: float = 1.0) -> None:
        """Know of no trouble yet; `run` has to run for workers to share what they learn."""
        self._redis = redis
        self._rules = rules or Rules()
        self._poll = poll_seconds
        self._read_script = redis.register_script(_READ)
        self._swap_script = redis.register_script(_SWAP)
        self._clock = int((time.time() - time.monotonic()) * 1000)
        self._troubled: dict[str, Circuit] = {}
        self._kept: dict[str, str] = {}
        self._unsaved: dict[str, list[_Change]] = {}
        self._changed = asyncio.Event()
        self._away = False

    def well(self, name: str) -> bool:
        """Tell whether nothing at all is held against a provider."""
        return name not in self._troubled

    def allows(self, name: str) -> bool:
        """Tell whether a provider may be called now, as far as this worker knows. Asks nobody and changes nothing."""
        return name not in self._troubled or not self._troubled[name].blocked(self._now())

    def open_seconds(self, name: str) -> float:
        """Return in how many seconds a provider may be called again; 0 if it may be now."""
        circuit = self._troubled.get(name)
        return 0.0 if circuit is None else self._wait(circuit, self._now())

    def paused_seconds(self, name: str) -> float:
        """Return how much longer a provider wants no calls, in seconds, whatever its failures."""
        circuit = self._troubled.get(name)
        return 0.0 if circuit is None else max(0, circuit.paused_until - self._now()) / 1000

    def pause(self, name: str, seconds: float) -> None:
        """Let nobody call a provider for so long: it asked for that."""
        if seconds > 0:
            until = self._now() + int(min(seconds, self._rules.longest_pause_seconds) * 1000)
            self._change(name, partial(Circuit.paused, until=until))

    def call(self, name: str, route: str | None = None) -> Call:
        """Return a context for one call to a provider, which learns from how the call ends.

        `route` is what a rate limit pauses, as such limits are often a model's own; the provider where left out.

        Entering raises UpstreamUnavailableError if the circuit is open, and UpstreamBusyError if the provider or the
        route is paused; both say in `retry_after` for how long. A call that ends with an UpstreamError that another try
        may cure is a failure, with any other the provider is well: it answered. A rate limit's `retry_after` pauses the
        route. A call that ends by anything else, as one that is cancelled, tells nothing.
        """
        return Call(self, name, route or name)

    async def run(self) -> None:
        """Share what this worker learns, and learn what others did, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            self._changed.clear()
            await self.refresh()
            timer = loop.call_later(self._poll, self._changed.set)
            try:
                await self._changed.wait()
            finally:
                timer.cancel()

    async def refresh(self) -> None:
        """Write what is new here and read what is new elsewhere; while Redis is away, do neither."""
        try:
            unsaved, self._unsaved = self._unsaved, {}
            for name, changes in unsaved.items():
                await self._save(name, changes)
            await self._read()
        except AWAY as error:
            if not self._away:
                log.warning("Redis is away, circuits are this worker's own: %s", error)
            self._away = True
        else:
            self._away = False

    async def enter(self, name: str) -> bool:
        """Let a call through, and tell whether it is the probe of an open circuit.

        Raises:
            UpstreamUnavailableError: The circuit is open, or is probed by another call.
            UpstreamBusyError: The provider is paused.
        """
        for _ in range(_MOST_SWAPS):
            now = self._now()
            circuit = self._troubled.get(name, _HEALTHY)
            if circuit.paused_until > now:
                raise UpstreamBusyError(retry_after=(circuit.paused_until - now) / 1000)
            if circuit.blocked(now):
                raise UpstreamUnavailableError(retry_after=self._wait(circuit, now))
            if not circuit.open_until:
                return False
            if await self._claim(name, replace(circuit, probe_until=now + int(self._rules.probe_seconds * 1000))):
                return True
        raise UpstreamUnavailableError(retry_after=self._poll)

    def ended(self, name: str, error: BaseException | None, *, probe: bool, route: str | None = None) -> None:
        """Learn from how a call ended; a rate limit pauses the route."""
        if error is not None and not isinstance(error, UpstreamError):
            if probe:
                self._change(name, Circuit.abandoned)
        elif error is not None and error.retryable and not isinstance(error, UpstreamRateLimitError):
            log.debug("a call to %s failed: %s", name, error.summary())
            failed = partial(Circuit.failed, rules=self._rules, probe=probe, jitter=random.random())
            self._change(name, failed)
        else:
            circuit = self._troubled.get(name)
            if circuit is not None and (probe or (circuit.failures and not circuit.open_until)):
                self._change(name, partial(Circuit.answered, probe=probe))
            if error is not None and error.retry_after and isinstance(error, UpstreamRateLimitError):
                self.pause(route or name, error.retry_after)

    # -- the copy, and what is shared ---------------------------------------------------------------------------------

    def _now(self) -> int:
        return int(time.monotonic() * 1000) + self._clock

    def _wait(self, circuit: Circuit, now: int) -> float:
        """Return in how many seconds to try again. A probe may answer at any time, so its whole patience is not it."""
        settled = replace(circuit, probe_until=0).blocked(now) / 1000
        return settled or min(self._rules.cooling_seconds, circuit.blocked(now) / 1000)

    def _change(self, name: str, change: _Change) -> None:
        now = self._now()
        before = self._troubled.get(name, _HEALTHY)
        self._keep(name, change(before, now).tidied(now, self._rules))
        self._unsaved.setdefault(name, []).append(change)
        # A failure or two of a busy worker can wait for the next look; what others have to know cannot.
        if self._troubled.get(name, _HEALTHY).blocked(now) != before.blocked(now):
            self._changed.set()

    def _keep(self, name: str, circuit: Circuit) -> None:
        before = self._troubled.get(name, _HEALTHY)
        if circuit.open_until > before.open_until:
            seconds = (circuit.open_until - self._now()) / 1000
            log.warning("%s is left alone for %.1f s, after %d failures in a row", name, seconds, circuit.failures)
        elif before.open_until and not circuit.open_until:
            log.info("%s is called again", name)
        if circuit == _HEALTHY:
            self._troubled.pop(name, None)
        else:
            self._troubled[name] = circuit

    def _adopt(self, name: str, kept: str) -> None:
        """Take over what Redis has, and upon it what this worker has not written yet."""
        now = self._now()
        if kept:
            self._kept[name] = kept
        else:
            self._kept.pop(name, None)
        circuit = _fold(Circuit.unpack(kept), now, self._unsaved.get(name, ()))
        self._keep(name, circuit.tidied(now, self._rules))

    async def _read(self) -> None:
        clock, fields = await self._read_script(keys=[_KEY])
        self._clock = int(clock) - int(time.monotonic() * 1000)
        kept = {fields[at].decode(): fields[at + 1].decode() for at in range(0, len(fields), 2)}
        for name in self._troubled.keys() | kept.keys():
            self._adopt(name, kept.get(name, ""))
        for name, text in kept.items():
            if name not in self._troubled:
                await self._swap(name, text, "")

    async def _save(self, name: str, changes: Sequence[_Change]) -> None:
        for _ in range(_MOST_SWAPS):
            now = self._now()
            before = self._kept.get(name, "")
            after = _fold(Circuit.unpack(before), now, changes).tidied(now, self._rules).pack()
            if after == before or await self._swap(name, before, after):
                return

    async def _claim(self, name: str, claimed: Circuit) -> bool:
        """Try to be the one who probes."""
        kept = self._kept.get(name, "")
        self._keep(name, claimed)  # before it is asked for: no other call of this worker need ask too
        try:
            return await self._swap(name, kept, claimed.pack())
        except AWAY:
            return True
        except BaseException:
            self._change(name, Circuit.abandoned)
            raise

    async def _swap(self, name: str, before: str, after: str) -> bool:
        swapped, kept = await self._swap_script(keys=[_KEY], args=[name, before, after])
        self._adopt(name, kept.decode())
        return bool(swapped)


def _fold(circuit: Circuit, now: int, changes: Sequence[_Change]) -> Circuit:
    for change in changes:
        circuit = change(circuit, now)
    return circuit


class Call:
    """One call to a provider, between entering and leaving."""

    __slots__ = ("_circuits", "_name", "_probe", "_route", "_told")

    def __init__(self, circuits: Circuits, name: str, route: str) -> None:
        """Ask nothing yet: that is entering."""
        self._circuits = circuits
        self._name = name
        self._route = route
        self._probe = False
        self._told = False

    def answered(self) -> None:
        """Tell that the provider answers while the call still goes on: at a stream's first text."""
        if not self._told:
            self._told = True
            self._circuits.ended(self._name, None, probe=self._probe)
            self._probe = False

    async def __aenter__(self) -> Self:
        if (seconds := self._circuits.paused_seconds(self._route)) > 0:
            raise UpstreamBusyError(retry_after=seconds)
        if not self._circuits.well(self._name):
            self._probe = await self._circuits.enter(self._name)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None or not (self._told or self._circuits.well(self._name)):
            self._circuits.ended(self._name, error, probe=self._probe, route=self._route)
