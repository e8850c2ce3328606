"""Paths in trouble: the circuits of one worker, and what the ends of its calls and other workers' views do to them.

A path has one circuit for everyone and one for each account that has seen failures. A failure opens its account's
circuit first. One account's failures make up no more than half of those that open everyone's circuit, as they may be
due to the account's own requests.
"""

from __future__ import annotations

import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from headrace.errors import UpstreamError, UpstreamRateLimitError, UpstreamUnavailableError
from headrace.runtime.presence import EVERYONE, View
from worker.circuit import HEALTHY, Circuit, Rules

log = logging.getLogger(__name__)

# Workers that have a circuit open before the others doubt the provider: one may have a broken path.
_QUORUM = 2


@dataclass(slots=True)
class Path:
    """This worker's path to a provider that is in trouble, here or elsewhere, with a circuit for each account."""

    circuits: dict[str, Circuit] = field(default_factory=dict)
    blamed: Counter[str] = field(default_factory=Counter)
    """Failures since the last answer, by account."""
    elsewhere: set[str] = field(default_factory=set)
    """Circuits that are open at other workers."""
    answered: set[str] = field(default_factory=set)
    """Circuits that are open at other workers, and on which this worker has had an answer since."""

    def of(self, account: str) -> Iterator[tuple[str, Circuit]]:
        """Yield the circuits that hold for an account, with their keys."""
        for key in (EVERYONE, account) if account else (EVERYONE,):
            yield key, self.circuits.get(key, HEALTHY)

    def blocked(self, account: str, now: int) -> int:
        """Return the milliseconds until a call of an account may go through."""
        return max(circuit.blocked(now) for _, circuit in self.of(account))

    def failing(self) -> list[str]:
        """Return the circuits with failures here and no answer since."""
        return [key for key, circuit in self.circuits.items() if circuit.failures]

    def open(self) -> list[str]:
        """Return the circuits that are open after failures here."""
        return [key for key in self.failing() if self.circuits[key].open_until]

    def probing(self, now: int) -> bool:
        """Return whether everyone's circuit is open after failures here and its cooling time is over."""
        circuit = self.circuits.get(EVERYONE, HEALTHY)
        return bool(circuit.failures) and 0 < circuit.open_until <= now


class TroubledPaths:
    """The paths to the providers that are in trouble; a provider without trouble has none."""

    def __init__(self, rules: Rules, *, on_news: Callable[[], None]) -> None:
        """Know of no trouble yet; `on_news` is called when a circuit opens or closes."""
        self._rules = rules
        self._on_news = on_news
        self._paths: dict[str, Path] = {}

    def __bool__(self) -> bool:
        """Return whether any provider is in trouble, here or elsewhere."""
        return bool(self._paths)

    def has(self, name: str) -> bool:
        """Return whether a provider is in trouble, here or elsewhere."""
        return name in self._paths

    def seconds(self, name: str, account: str = "") -> float:
        """Return in how many seconds an account's job may call a provider again; 0 if it may now."""
        path = self._paths.get(name)
        return 0.0 if path is None else self._wait(path, account, _now())

    def fails(self, name: str, keys: set[str]) -> bool:
        """Return whether one of some circuits has failures here and no answer since."""
        path = self._paths.get(name)
        return path is not None and bool(keys & set(path.failing()))

    def enter(self, name: str, account: str = "") -> list[str]:
        """Let a call through, and return the circuits that it probes.

        Raises:
            UpstreamUnavailableError: The circuit is open, or another call probes it.
        """
        path = self._paths.get(name)
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

    def ended(self, name: str, error: BaseException | None, *, probed: Sequence[str] = (), account: str = "") -> None:
        """Learn from how a call ended. Only an UpstreamError that another try may cure is a failure of the path."""
        if error is not None and not isinstance(error, UpstreamError):
            for key in probed:
                self._change(name, key, self._circuit(name, key).abandoned())
        elif error is not None and error.retryable and not isinstance(error, UpstreamRateLimitError):
            log.debug("a call to %s failed: %s", name, error.summary())
            self._failed(name, account, probed)
        else:
            self._answered(name, account, probed)

    def view(self, tiers: Sequence[str]) -> View:
        """Return what this worker, which serves these tiers, tells the others."""
        return View(
            tiers,
            {name: keys for name, path in self._paths.items() if (keys := path.open())},
            {name: keys for name, path in self._paths.items() if (keys := path.failing())},
            {name: list(path.answered) for name, path in self._paths.items() if path.answered},
            probing=[name for name, path in self._paths.items() if path.probing(_now())],
        )

    def tidy(self) -> None:
        """Forget failures that are too old to count."""
        now = _now()
        for name, path in list(self._paths.items()):
            tidied = {key: circuit.tidied(now, self._rules) for key, circuit in path.circuits.items()}
            path.circuits = {key: circuit for key, circuit in tidied.items() if circuit != HEALTHY}
            if not path.circuits and not path.elsewhere:
                del self._paths[name]

    def clear(self) -> None:
        """Close every circuit."""
        self._paths.clear()

    def doubt(self, others: Sequence[View]) -> None:
        """Learn which circuits are open elsewhere, and have the next call probe where several workers agree."""
        opened, answered = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
        for view in others:
            opened.update((name, key) for name, keys in view.open.items() for key in keys)
            answered.update((name, key) for name, keys in view.answered.items() for key in keys)
        for name in self._paths.keys() | {name for name, _ in opened}:
            path = self._paths.setdefault(name, Path())
            path.elsewhere = {key for troubled, key in opened if troubled == name}
            path.answered &= path.elsewhere
            for key in path.elsewhere - path.answered:
                count = opened[name, key]
                if count >= _QUORUM and count > answered[name, key]:
                    self._change(name, key, self._circuit(name, key).in_doubt(_now()))
            for key, circuit in path.circuits.items():
                if circuit.doubted and key not in path.elsewhere:
                    self._change(name, key, circuit.answered(probe=True))

    def _circuit(self, name: str, key: str) -> Circuit:
        path = self._paths.get(name)
        return HEALTHY if path is None else path.circuits.get(key, HEALTHY)

    def _wait(self, path: Path, account: str, now: int) -> float:
        """Return in how many seconds to try again; while a call probes, the cooling time, as it may answer soon."""
        circuits = [circuit for _, circuit in path.of(account)]
        settled = max(replace(circuit, probe_until=0).blocked(now) for circuit in circuits) / 1000
        return settled or min(self._rules.cooling_seconds, path.blocked(account, now) / 1000)

    def _failed(self, name: str, account: str, probed: Sequence[str]) -> None:
        path = self._paths.setdefault(name, Path())
        now, jitter = _now(), random.random()
        weight = 1 if not account or path.blamed[account] < self._rules.share else 0
        path.blamed[account] += 1
        for key, circuit in list(path.of(account)):
            counted = weight if key == EVERYONE else 1
            after = circuit.failed(now, self._rules, probe=key in probed, jitter=jitter, weight=counted)
            self._change(name, key, after)

    def _answered(self, name: str, account: str, probed: Sequence[str]) -> None:
        path = self._paths.get(name)
        if path is None:
            return
        path.blamed.clear()
        keys = {key for key, _ in path.of(account)}
        path.answered |= path.elsewhere & keys
        for key in keys & path.circuits.keys():
            self._change(name, key, path.circuits[key].answered(probe=key in probed))

    def _change(self, name: str, key: str, after: Circuit) -> None:
        path = self._paths.setdefault(name, Path())
        before = path.circuits.get(key, HEALTHY)
        path.circuits[key] = after
        whose = f" for account {key}" if key else ""
        if after.open_until > before.open_until and after.failures:
            path.answered.discard(key)
            seconds = (after.open_until - _now()) / 1000
            told = "the circuit of %s opened%s for %.1f s, after %d failures in a row"
            log.warning(told, name, whose, seconds, after.failures)
        elif before.failures and before.open_until and not after.open_until:
            log.info("the circuit of %s closed%s", name, whose)
        if after.open_until != before.open_until:
            self._on_news()


def _now() -> int:
    """Return the milliseconds of a clock that only goes forward."""
    return int(time.monotonic() * 1000)
