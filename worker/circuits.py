"""A worker's paths to providers: a path that keeps failing takes no calls for a while, and one call tries it first.

A worker has a path of its own to each provider, and its circuits (`worker/circuit.py`) are about that path alone:
another worker's network may be fine. Workers tell each other which circuits are open (`worker/peers.py`). A worker
whose circuit is open hands its jobs to one whose circuit is not, and a job that has failed once to one whose calls do
not fail. Once two workers have opened a circuit, and more workers have it open than have had an answer since, the
others doubt the provider: their next call is a probe.

A call to a provider without trouble costs two look-ups in dictionaries. While Redis is unavailable each worker goes by
its own calls. If Redis loses the hash, or an operator drops it, all circuits close until calls fail again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Self

from redis.asyncio import Redis

from headrace.errors import UpstreamBusyError, UpstreamError, UpstreamRateLimitError, UpstreamRefusedError
from headrace.queue import TIERS
from headrace.runtime.chores import until_tick
from headrace.runtime.presence import EVERYONE, About, Calls, View
from headrace.stores.redis import REDIS_UNAVAILABLE
from headrace.telemetry.metrics import CIRCUIT_OPEN
from worker.circuit import Rules
from worker.pauses import Pauses
from worker.peers import Peers
from worker.troubled import TroubledPaths

log = logging.getLogger(__name__)

# Polls of a busy worker in the time of one poll of an idle worker, which still counts as present.
_IDLE_POLLS = 2


class Circuits:
    """The circuits and pauses of all providers, as one worker has them."""

    def __init__(
        self,
        redis: Redis,
        *,
        worker: str,
        tiers: Sequence[str] = TIERS,
        rules: Rules | None = None,
        poll_seconds: float = 1.0,
        about: Callable[[], About] | None = None,
        limits: Callable[[], Mapping[str, int]] = dict,
        on_redis_lost: Callable[[], None] = lambda: None,
        on_views: Callable[[Sequence[View]], None] = lambda _: None,
    ) -> None:
        """Know of no trouble yet; `run` has to run for workers to share what they learn.

        `worker` is a name that no other worker has; `tiers` are those that it serves; `about` tells how busy it is,
        and `limits` the adaptive limits of its routes. The worker tells its news every `poll_seconds`, half as often
        while it makes no calls and has no trouble. `on_redis_lost` is called when Redis first takes no news, `on_views`
        with each news of the other workers.
        """
        rules = rules or Rules()
        self._changed = asyncio.Event()
        self.troubled = TroubledPaths(rules, on_news=self._changed.set)
        self.pauses = Pauses(longest_seconds=rules.longest_pause_seconds, on_news=self._changed.set)
        self._peers = Peers(redis, worker)
        self._tiers = tiers
        self._about = about
        self._limits = limits
        self.calls: dict[str, Calls] = {}
        """This worker's calls, by provider."""
        self._poll = poll_seconds
        self._others: Sequence[View] = ()
        self._told = False
        self.redis_lost = False
        """Whether Redis did not take this worker's last news."""
        self._on_redis_lost = on_redis_lost
        self._on_views = on_views
        self._made = 0
        """Calls that were made before the last news."""
        self.quiet = True
        """Whether no call was made between the last news and the one before."""
        self._is_urgent = False
        """Whether the others are to read the next news at once."""
        self._shown: set[str] = set()
        """Providers that the metric of open circuits names."""

    def allows(self, name: str, route: str | None = None, *, account: str = "") -> bool:
        """Return whether an account's job may call a provider, and its route, from here now. This changes nothing."""
        return not self.troubled.seconds(name, account) and not self.pauses.seconds(route or name)

    def served_elsewhere(self, name: str, tier: str, *, account: str = "") -> bool:
        """Return whether another worker takes jobs of a tier and may call a provider for an account.

        It may have no room for the job yet: this worker makes no call in any case.
        """
        keys = {EVERYONE, account}
        return any(
            tier in view.tiers and view.takes_jobs and not keys & set(view.open.get(name, ())) for view in self._others
        )

    def tier_served_elsewhere(self, tier: str) -> bool:
        """Return whether there is another worker of a tier, as far as this worker knows."""
        return any(tier in view.tiers for view in self._others)

    def better_elsewhere(self, name: str, tier: str, *, account: str = "") -> bool:
        """Return whether calls of an account fail from here, and another worker with room knows of no failure."""
        keys = {EVERYONE, account}
        return self.troubled.fails(name, keys) and any(
            tier in view.tiers and view.takes_jobs and not view.is_full and not keys & set(view.failing.get(name, ()))
            for view in self._others
        )

    def call(self, name: str, route: str | None = None, *, account: str = "") -> Call:
        """Return a context for an account's call to a provider, which learns from how the call ends.

        A rate limit pauses `route`, as such limits are often a model's own; the provider where `route` is left out.

        Entering raises UpstreamUnavailableError if the circuit is open, and UpstreamBusyError if the route is paused;
        both say in `retry_after` for how long. A call that ends with an UpstreamError that another try may cure is a
        failure; with any other UpstreamError the provider is well, as it answered. A rate limit's `retry_after` pauses
        the route. A call that ends by any other exception, such as its cancellation, shows nothing.
        """
        return Call(self, name, route or name, account)

    async def run(self) -> None:
        """Share what this worker learns, and learn from the others, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            self._changed.clear()
            await self.refresh()
            period = self._poll if self._busy else _IDLE_POLLS * self._poll
            timer = loop.call_later(until_tick(period), self._changed.set)
            try:
                await self._changed.wait()
            finally:
                timer.cancel()

    def share_now(self) -> None:
        """Tell the others now that this worker is quiet no longer: those of its machine slow their lines down."""
        self.quiet = False
        self._is_urgent = True
        self._changed.set()

    def look(self) -> None:
        """Read the others' news now."""
        self._changed.set()

    @property
    def _busy(self) -> bool:
        """Whether what this worker tells or hears may matter soon: it makes calls, or a provider is in trouble."""
        running = any(calls.running for calls in self.calls.values())
        return running or not self.quiet or self.redis_lost or bool(self.troubled)

    async def refresh(self) -> None:
        """Write this worker's news and read the others'; while Redis is unavailable, do neither."""
        self.troubled.tidy()
        unsaved, view = self.pauses.take_unsaved(), self.troubled.view(self._tiers)
        self._show(view)
        made = sum(calls.calls for calls in self.calls.values())
        self.quiet, self._made = made == self._made, made
        is_urgent, self._is_urgent = self._is_urgent, False
        about = self._about() if self._about is not None else None
        view = replace(view, about=about, calls=self.calls, limits=self._limits())
        try:
            news = await self._peers.tell(view, unsaved, at_once=is_urgent)
        except REDIS_UNAVAILABLE as error:
            if not self.redis_lost:
                log.warning("Redis is unavailable, circuits are this worker's own: %s", error)
                self.redis_lost = True
                self._on_redis_lost()
            self.pauses.keep_unsaved(name for name, _ in unsaved)
            self._others = ()
            self._on_views(())
            return
        self.redis_lost = False
        if self._told and news.forgotten:
            self.troubled.clear()
        self._told = True
        self._others = news.others
        self._on_views(news.others)
        self.pauses.learn(news.pauses)
        self.troubled.doubt(news.others)

    def _show(self, view: View) -> None:
        """Set the metric of open circuits."""
        is_open = {name for name, keys in view.open.items() if EVERYONE in keys}
        for name in self._shown | is_open:
            CIRCUIT_OPEN.labels(name).set(name in is_open)
        self._shown |= is_open


class Call:
    """One call to a provider, between entering and leaving."""

    __slots__ = ("_account", "_calls", "_circuits", "_name", "_probed", "_reported", "_route")

    def __init__(self, circuits: Circuits, name: str, route: str, account: str) -> None:
        """Ask nothing yet: entering does."""
        self._circuits = circuits
        self._name = name
        self._route = route
        self._account = account
        self._probed: Sequence[str] = ()
        self._reported = False

    @property
    def probes(self) -> bool:
        """Whether an open circuit lets this call through to see whether the provider answers again."""
        return bool(self._probed)

    def answered(self) -> None:
        """Note that the provider answers while the call still goes on: at a stream's first text."""
        if not self._reported:
            self._reported = True
            self._circuits.troubled.ended(self._name, None, probed=self._probed, account=self._account)
            self._probed = ()

    async def __aenter__(self) -> Self:
        if (seconds := self._circuits.pauses.seconds(self._route)) > 0:
            raise UpstreamBusyError(retry_after=seconds)
        if self._circuits.troubled.has(self._name):
            self._probed = self._circuits.troubled.enter(self._name, self._account)
        self._calls = self._circuits.calls.get(self._name) or self._circuits.calls.setdefault(self._name, Calls())
        self._calls.calls += 1
        if self._circuits.quiet:
            self._circuits.share_now()
        self._calls.running += 1
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        troubled = self._circuits.troubled
        self._calls.running -= 1
        if isinstance(error, UpstreamError) and not isinstance(error, UpstreamRefusedError):
            self._calls.errors += 1
        if error is not None or (troubled.has(self._name) and not self._reported):
            troubled.ended(self._name, error, probed=self._probed, account=self._account)
        if isinstance(error, UpstreamRateLimitError) and error.retry_after:
            self._circuits.pauses.pause(self._route, error.retry_after)
