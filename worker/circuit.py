"""What a circuit is, and how it changes: closed, open for a while after failures in a row, then probed by one call.

After a number of failures the circuit opens, and the worker makes no call until its cooling time is over. Then one call
probes: an answer closes the circuit, a failure opens it for longer. A circuit that other workers' circuits put in doubt
lets one call through in the same way. Everything here is pure; `worker/troubled.py` has the circuits of a worker.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Rules:
    """When circuits open, and for how long."""

    failures: int = 5
    """Failures in a row that open a circuit: one job's retries alone do not."""
    cooling_seconds: float = 5.0
    """Seconds for which a circuit is open at first; they double each time that it opens again soon."""
    longest_cooling_seconds: float = 120.0
    probe_seconds: float = 30.0
    """Seconds after which a probe without an answer lets another call probe."""
    forget_seconds: float = 600.0
    """Seconds after which failures no longer count."""
    longest_pause_seconds: float = 3600.0
    """Seconds that a provider may ask to be paused for; a longer pause is cut to them."""

    @property
    def share(self) -> int:
        """Return how many of the failures that open everyone's circuit may be one account's."""
        return (self.failures + 1) // 2


@dataclass(frozen=True, slots=True)
class Circuit:
    """The trouble with a provider, for everyone or for one account. Times are in milliseconds, or 0."""

    failures: int = 0
    trips: int = 0
    failed_at: int = 0
    open_until: int = 0
    probe_until: int = 0

    def failed(self, now: int, rules: Rules, *, probe: bool, jitter: float, weight: int = 1) -> Circuit:
        """Return the circuit after a failure; `jitter` in 0 to 1 spreads its cooling time by a quarter either way.

        While it is open only the probe counts: other calls were under way when it opened, and show nothing new. A
        failure with a `weight` of 0 is remembered but not counted.
        """
        if self.open_until and not probe:
            return self
        fresh = self if now - self.failed_at <= rules.forget_seconds * 1000 else replace(self, failures=0, trips=0)
        failures = fresh.failures + (1 if probe else weight)
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

    def answered(self, *, probe: bool) -> Circuit:
        """Return the circuit after an answer. It remembers how often it opened, should it fail again soon."""
        if self.open_until and not (probe or self.doubted):
            return self
        return replace(self, failures=0, open_until=0, probe_until=0)

    def abandoned(self) -> Circuit:
        """Return the circuit after a probe that was given up, and so shows nothing."""
        return replace(self, probe_until=0)

    def in_doubt(self, now: int) -> Circuit:
        """Return the circuit once other workers have opened theirs: the next call is a probe."""
        return self if self.open_until else replace(self, failures=0, open_until=now)

    @property
    def doubted(self) -> bool:
        """Whether it is open because of other workers' views, and not by failures here."""
        return bool(self.open_until) and not self.failures

    def blocked(self, now: int) -> int:
        """Return the milliseconds until a call may go through, if only to probe; 0 if one may now."""
        return max(0, self.open_until - now, self.probe_until - now)

    def tidied(self, now: int, rules: Rules) -> Circuit:
        """Return the circuit, healthy if its last failure is too old to count."""
        old = now - max(self.failed_at, self.open_until, self.probe_until) > rules.forget_seconds * 1000
        return HEALTHY if old else self


HEALTHY = Circuit()
