"""A worker's paths to providers: one that keeps failing is left alone for a while, and tried again by one call first.

A worker has a path of its own to each provider, and its circuits (`worker/circuit.py`) are about that path alone:
another worker's network may be fine. Workers tell each other which circuits are open (`worker/peers.py`). A worker
whose circuit is open hands its jobs to one whose circuit is not, and a job that has failed once to one whose calls do
not fail. Once two workers have opened a circuit, and more workers have it open than have had an answer since, the
others doubt the provider: their next call is a probe.

A path has one circuit for everyone and one for each account that has seen failures. A failure opens its account's
circuit first. One account's failures make up no more than half of those that open everyone's circuit, as they may be
due to the account's own requests.

A call to a provider without trouble costs one look-up in a dictionary. While Redis is unavailable each worker goes by
what it sees itself. If Redis loses the hash, or an operator drops it, all circuits close until calls fail again.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Self

from redis.asyncio import Redis

from headrace.errors import UpstreamBusyError, UpstreamError, UpstreamRateLimitError, UpstreamUnavailableError
from headrace.queue import TIERS
from headrace.stores.redis_url import AWAY
from worker.circuit import HEALTHY, Circuit, Rules
from worker.peers import Peers, View

log = logging.getLogger(__name__)

# The key of the circuit that holds for every account.
_EVERYONE = ""
# Workers that have a circuit open before the others doubt the provider: one may have a broken path.
_QUORUM = 2


@dataclass(slots=True)
class Path:
    """This worker's path to a provider that is in trouble, here or elsewhere. Circuits go by account."""

    circuits: dict[str, Circuit] = field(default_factory=dict)
    blamed: Counter[str] = field(default_factory=Counter)
    """Failures since the last answer, by account."""
    elsewhere: set[str] = field(default_factory=set)
    """Circuits that are open at other workers."""
    answered: set[str] = field(default_factory=set)
    """Those of them on which there was an answer here since."""

    def of(self, account: str) -> Iterator[tuple[str, Circuit]]:
        """Yield the circuits that hold for an account, with their keys."""
        for key in (_EVERYONE, account) if account else (_EVERYONE,):
            yield key, self.circuits.get(key, HEALTHY)

    def blocked(self, account: str, now: int) -> int:
        """Return the milliseconds in which no call of an account is let through."""
        return max(circuit.blocked(now) for _, circuit in self.of(account))

    def failing(self) -> list[str]:
        """Return the circuits with failures here and no answer since."""
        return [key for key, circuit in self.circuits.items() if circuit.failures]

    def open(self) -> list[str]:
        """Return those of them that are open."""
        return [key for key in self.failing() if self.circuits[key].open_until]


class Circuits:
    """The circuits of all providers, as one worker has them."""

    def __init__(
        self,
        redis: Redis,
        *,
        worker: str,
        tiers: Sequence[str] = TIERS,
        rules: Rules | None = None,
        poll_seconds: float = 1.0,
    ) -> None:
        """Know of no trouble yet; `run` has to run for workers to share what they learn.

        `worker` is a name that no other worker has; `tiers` are those that it serves.
        """
        self._peers = Peers(redis, worker)
        self._tiers = tiers
        self._rules = rules or Rules()
        self._poll = poll_seconds
        self._troubled: dict[str, Path] = {}
        self._others: Sequence[View] = ()
        self._paused: dict[str, float] = {}
        """When routes may be called again, by the monotonic clock in seconds."""
        self._unsaved: set[str] = set()
        """Routes whose pause other workers do not know yet."""
        self._told = False
        self._changed = asyncio.Event()
        self._away = False

    def well(self, name: str) -> bool:
        """Tell whether nothing at all is held against a provider."""
        return name not in self._troubled

    def allows(self, name: str, route: str | None = None, *, account: str = "") -> bool:
        """Tell whether an account's job may call a provider, and its route, from here now. This changes nothing."""
        return not self.open_seconds(name, account) and not self.paused_seconds(route or name)

    def open_seconds(self, name: str, account: str = "") -> float:
        """Return in how many seconds an account's job may call a provider again; 0 if it may now."""
        path = self._troubled.get(name)
        return 0.0 if path is None else self._wait(path, account, _now())

    def paused_seconds(self, name: str) -> float:
        """Return how much longer a route, or a provider, wants no calls, in seconds, whatever its failures."""
        return max(0.0, self._paused[name] - time.monotonic()) if name in self._paused else 0.0

    def pause(self, name: str, seconds: float) -> None:
        """Make no call of a route, or a provider, for so long, in all workers: it asked for that."""
        ends = time.monotonic() + min(seconds, self._rules.longest_pause_seconds)
        if seconds > 0 and ends > self._paused.get(name, 0):
            self._paused[name] = ends
            self._unsaved.add(name)
            self._changed.set()

    def served_elsewhere(self, name: str, tier: str, *, account: str = "") -> bool:
        """Tell whether another worker of a tier may call a provider for an account, as far as this worker knows."""
        return any(
            tier in view.tiers and not {_EVERYONE, account} & set(view.open.get(name, ())) for view in self._others
        )

    def tier_served_elsewhere(self, tier: str) -> bool:
        """Tell whether there is another worker of a tier, as far as this worker knows."""
        return any(tier in view.tiers for view in self._others)

    def better_elsewhere(self, name: str, tier: str, *, account: str = "") -> bool:
        """Tell whether calls of an account fail from here, and another worker of the tier knows of no failure."""
        path, keys = self._troubled.get(name), {_EVERYONE, account}
        if path is None or not keys & set(path.failing()):
            return False
        return any(tier in view.tiers and not keys & set(view.failing.get(name, ())) for view in self._others)

    def call(self, name: str, route: str | None = None, *, account: str = "") -> Call:
        """Return a context for an account's call to a provider, which learns from how the call ends.

        `route` is what a rate limit pauses, as such limits are often a model's own; the provider where left out.

        Entering raises UpstreamUnavailableError if the circuit is open, and UpstreamBusyError if the route is paused;
        both say in `retry_after` for how long. A call that ends with an UpstreamError that another try may cure is a
        failure, with any other the provider is well: it answered. A rate limit's `retry_after` pauses the route. A call
        that ends by anything else, as one that is cancelled, tells nothing.
        """
        return Call(self, name, route or name, account)

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
        """Write what is new here and read what is new elsewhere; while Redis is unavailable, do neither."""
        self._tidy()
        view = View(
            self._tiers,
            {name: keys for name, path in self._troubled.items() if (keys := path.open())},
            {name: keys for name, path in self._troubled.items() if (keys := path.failing())},
            {name: list(path.answered) for name, path in self._troubled.items() if path.answered},
        )
        unsaved, self._unsaved = self._unsaved, set()
        try:
            news = await self._peers.tell(view, [(route, self.paused_seconds(route)) for route in unsaved])
        except AWAY as error:
            if not self._away:
                log.warning("Redis is away, circuits are this worker's own: %s", error)
            self._away = True
            self._unsaved |= unsaved
            self._others = ()
            return
        self._away = False
        if self._told and news.forgotten:
            self._troubled.clear()
        self._told = True
        self._others = news.others
        now = time.monotonic()
        kept = {route: self._paused[route] for route in self._unsaved}
        self._paused = {**{route: now + seconds for route, seconds in news.pauses.items()}, **kept}
        self._doubt()

    def enter(self, name: str, account: str = "") -> list[str]:
        """Let a call through, and return the circuits that it probes.

        Raises:
            UpstreamUnavailableError: The circuit is open, or is probed by another call.
        """
        path = self._troubled.get(name)
        if path is None:
            return []
        now = _now()
        if path.blocked(account, now):
            raise UpstreamUnavailableError(retry_after=self._wait(path, account, now))
        probed = [key for key, circuit in path.of(account) if circuit.open_until]
        for key in probed:
            circuit = path.circuits[key]
            path.circuits[key] = replace(circuit, probe_until=now + int(self._rules.probe_seconds * 1000))
        return probed

    def ended(
        self,
        name: str,
        error: BaseException | None,
        *,
        probed: Sequence[str] = (),
        route: str | None = None,
        account: str = "",
    ) -> None:
        """Learn from how a call ended; a rate limit pauses the route."""
        if error is not None and not isinstance(error, UpstreamError):
            for key in probed:
                self._change(name, key, self._circuit(name, key).abandoned())
        elif error is not None and error.retryable and not isinstance(error, UpstreamRateLimitError):
            log.debug("a call to %s failed: %s", name, error.summary())
            self._failed(name, account, probed)
        else:
            self._answered(name, account, probed)
            if error is not None and error.retry_after and isinstance(error, UpstreamRateLimitError):
                self.pause(route or name, error.retry_after)

    # -- one path -----------------------------------------------------------------------------------------------------

    def _circuit(self, name: str, key: str) -> Circuit:
        path = self._troubled.get(name)
        return HEALTHY if path is None else path.circuits.get(key, HEALTHY)

    def _wait(self, path: Path, account: str, now: int) -> float:
        """Return in how many seconds to try again. A probe may answer at any time, so its whole patience is not it."""
        circuits = [circuit for _, circuit in path.of(account)]
        settled = max(replace(circuit, probe_until=0).blocked(now) for circuit in circuits) / 1000
        return settled or min(self._rules.cooling_seconds, path.blocked(account, now) / 1000)

    def _failed(self, name: str, account: str, probed: Sequence[str]) -> None:
        path = self._troubled.setdefault(name, Path())
        now, jitter = _now(), random.random()
        weight = 1 if not account or path.blamed[account] < self._rules.share else 0
        path.blamed[account] += 1
        for key, circuit in list(path.of(account)):
            counted = weight if key == _EVERYONE else 1
            after = circuit.failed(now, self._rules, probe=key in probed, jitter=jitter, weight=counted)
            self._change(name, key, after)

    def _answered(self, name: str, account: str, probed: Sequence[str]) -> None:
        path = self._troubled.get(name)
        if path is None:
            return
        path.blamed.clear()
        keys = {key for key, _ in path.of(account)}
        path.answered |= path.elsewhere & keys
        for key in keys & path.circuits.keys():
            self._change(name, key, path.circuits[key].answered(probe=key in probed))

    def _change(self, name: str, key: str, after: Circuit) -> None:
        path = self._troubled.setdefault(name, Path())
        before = path.circuits.get(key, HEALTHY)
        path.circuits[key] = after
        whose = f" for account {key}" if key else ""
        if after.open_until > before.open_until and after.failures:
            path.answered.discard(key)
            seconds = (after.open_until - _now()) / 1000
            log.warning(
                "%s is left alone%s for %.1f s, after %d failures in a row", name, whose, seconds, after.failures
            )
        elif before.failures and before.open_until and not after.open_until:
            log.info("%s is called again%s", name, whose)
        if after.open_until != before.open_until:
            self._changed.set()

    def _tidy(self) -> None:
        """Forget what is too old to count."""
        now = _now()
        for name, path in list(self._troubled.items()):
            tidied = {key: circuit.tidied(now, self._rules) for key, circuit in path.circuits.items()}
            path.circuits = {key: circuit for key, circuit in tidied.items() if circuit != HEALTHY}
            if not path.circuits and not path.elsewhere:
                del self._troubled[name]

    # -- other workers' word ------------------------------------------------------------------------------------------

    def _doubt(self) -> None:
        """Take up which circuits are open elsewhere, and have the next call probe where several workers agree."""
        opened, answered = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
        for view in self._others:
            opened.update((name, key) for name, keys in view.open.items() for key in keys)
            answered.update((name, key) for name, keys in view.answered.items() for key in keys)
        for name in self._troubled.keys() | {name for name, _ in opened}:
            path = self._troubled.setdefault(name, Path())
            path.elsewhere = {key for troubled, key in opened if troubled == name}
            path.answered &= path.elsewhere
            for key in path.elsewhere - path.answered:
                count = opened[name, key]
                if count >= _QUORUM and count > answered[name, key]:
                    self._change(name, key, self._circuit(name, key).in_doubt(_now()))
            for key, circuit in path.circuits.items():
                if circuit.doubted and key not in path.elsewhere:
                    self._change(name, key, circuit.answered(probe=True))


def _now() -> int:
    """Return the milliseconds of a clock that only goes forward."""
    return int(time.monotonic() * 1000)


class Call:
    """One call to a provider, between entering and leaving."""

    __slots__ = ("_account", "_circuits", "_name", "_probed", "_route", "_told")

    def __init__(self, circuits: Circuits, name: str, route: str, account: str) -> None:
        """Ask nothing yet: that is entering."""
        self._circuits = circuits
        self._name = name
        self._route = route
        self._account = account
        self._probed: Sequence[str] = ()
        self._told = False

    def answered(self) -> None:
        """Tell that the provider answers while the call still goes on: at a stream's first text."""
        if not self._told:
            self._told = True
            self._circuits.ended(self._name, None, probed=self._probed, account=self._account)
            self._probed = ()

    async def __aenter__(self) -> Self:
        if (seconds := self._circuits.paused_seconds(self._route)) > 0:
            raise UpstreamBusyError(retry_after=seconds)
        if not self._circuits.well(self._name):
            self._probed = self._circuits.enter(self._name, self._account)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None or not (self._told or self._circuits.well(self._name)):
            self._circuits.ended(self._name, error, probed=self._probed, route=self._route, account=self._account)
