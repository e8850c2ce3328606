"""How many calls a route takes at once, where that is unknown: additive increase, multiplicative decrease.

The limit grows while it is in use and calls are accepted. It is cut when the provider says that it is overloaded: with
429, 503, 529 or an error of that meaning, and when its streams take longer to begin (`worker/slowness.py`). Everything
here is pure; `worker/adaptive_line.py` applies the limit, and workers share it in Redis.

* At first the limit doubles with each round, that is with as many accepted calls as the limit has. It grows by single
  calls as others are accepted, not in jumps: so only one or two calls exceed the capacity before the first refusal.
* A cut is small at first: a call too many shows where the capacity is. Further refusals before a round has passed mean
  that the capacity has fallen, and cut more and more. Calls that began before a cut show nothing about the new limit,
  so there is at most one cut in a round trip.
* After a cut the limit returns to just below the level that was refused, its ceiling, and stays there for a number of
  calls: so refusals are a small part of all calls. Then it tries one more, and while that succeeds 2, 4, 8 … more.
"""

from __future__ import annotations

from typing import NamedTuple, Self

INITIAL = 32
"""Calls at once on a route that the workers know nothing of."""
MOST = 10_000
"""Calls at once that no limit exceeds."""
HOLD = 120
"""Calls that are accepted at the ceiling before one more is tried: one refusal in as many is less than 1 %."""
# Rounds after which it is tried in any case where the limit is small, and seconds.
_HOLD_ROUNDS = 8
_HOLD_SECONDS = 60.0
# How many times as long as the pause that the provider asks for the limit stays at its ceiling, and seconds at most.
_HOLD_PAUSES = 50
_LONGEST_HOLD_SECONDS = 600
# The parts of the limit that the first, second, third … cut in a row takes away.
_CUTS = (1 / 32, 1 / 8, 1 / 4, 1 / 2)
# The part that a cut takes away because answers have become slow. Slowness alone leaves INITIAL calls.
_SLOW_CUT = 1 / 4
# The part of a limit below its ceiling that is added in a round.
_RETURN = 1 / 8
# Seconds between two increases at least, and the part of the limit that one adds at most: a refusal comes within that.
_PACE_SECONDS = 0.01
_STEP = 1 / 32
# Seconds after which a cut is forgotten: then calls with a waiting client are no longer held back.
_FORGET_SECONDS = 600.0


class Limit(NamedTuple):
    """A route's limit, as the workers share it. Of two that workers propose, the one that compares greater counts."""

    cuts: int
    """How often it has been cut. A cut by one worker comes before the increases of all others."""
    version: int
    calls: int
    """Calls at once."""
    ceiling: int
    """The level below that of the last refusal; 0 while none is known."""
    floor: int
    """Calls at once that single refusals leave: half of the highest limit since the capacity fell."""
    rate: int
    """Calls that are added in a round, where there is no ceiling."""
    falls: int
    """Refusals in a row, without a round of accepted calls between them; 0 if slowness was the last cause."""
    hold: int
    """Seconds for which the limit stays at its ceiling at least, as a refusal there pauses the route."""

    def pack(self) -> str:
        """Return the limit as it is kept in Redis."""
        return " ".join(map(str, self))

    @classmethod
    def unpack(cls, text: str) -> Self:
        """Return the limit that `pack` packed."""
        return cls(*map(int, text.split()))


class AdaptiveLimit:
    """A route's limit, as one worker knows it. Times are in seconds of a clock that only moves forward."""

    __slots__ = ("_clean", "_credit", "_cut_at", "_grown", "_grown_at", "_held", "_held_at", "_known_until", "current")

    def __init__(self) -> None:
        """Know nothing of the route."""
        self.current = Limit(
            cuts=0, version=0, calls=INITIAL, ceiling=0, floor=INITIAL // 2, rate=INITIAL, falls=0, hold=0
        )
        self._cut_at = self._known_until = self._grown_at = self._held_at = 0.0
        self._clean = self._held = 0.0
        """Calls of all workers that were accepted since the last cut, as far as this one can tell."""
        self._credit = 0.0
        """Parts of a call by which the limit may grow."""
        self._grown = 0
        """Calls that were added at the present rate."""

    def known(self, now: float) -> bool:
        """Tell whether the provider has refused calls lately, so that its capacity is known."""
        return now < self._known_until

    def accepted(self, started: float, level: int, *, share: float, now: float) -> bool:
        """Learn that the provider took a call, and return whether the limit has changed.

        `level` is how many calls were under way with it when it started, and `share` this worker's part of them.
        """
        if started < self._cut_at:
            return False
        calls, ceiling, hold = self.current.calls, self.current.ceiling, self.current.hold
        weight = 1 / share
        self._clean += weight
        self._held += weight
        if level * 2 < calls:
            return False  # the limit holds nothing back
        if level > calls:
            # A call that was let through beyond the limit, as the capacity was not known.
            self._raise(level, 0 if ceiling < level else ceiling)
            return True
        if ceiling and calls >= ceiling:
            few = self._held < max(calls, min(HOLD, calls * _HOLD_ROUNDS))
            until = self._held_at + (max(hold, _HOLD_SECONDS) if few else hold)
            if now < until or now < self._grown_at + _PACE_SECONDS or calls == MOST:
                return False
            self.current = self.current._replace(ceiling=0, rate=1)
            self._grown, self._credit = 0, 1.0
        self._credit = min(self._credit + self._gain * weight / calls, self._step + 1)
        return self.step(now)

    def filled(self, *, share: float) -> None:
        """Learn that every call under way has been accepted for long, and that others wait.

        A call is accepted once, and its answer may take minutes. So a limit that is full of such calls earns a whole
        round at once. `step` adds it.
        """
        self._credit = max(self._credit, self._gain * share)

    def step(self, now: float) -> bool:
        """Add some of what the limit has earned, and return whether it has changed."""
        calls, ceiling = self.current.calls, self.current.ceiling
        more = min(int(self._credit), self._step, (ceiling or MOST) - calls)
        if more < 1 or now < self._grown_at + _PACE_SECONDS:
            return False
        self._credit -= more
        self._grown_at = now
        self._grown += more
        self._raise(calls + more, ceiling)
        return True

    @property
    def _gain(self) -> float:
        """Calls that a round adds."""
        return max(1.0, self.current.calls * _RETURN) if self.current.ceiling else self.current.rate

    @property
    def _step(self) -> int:
        """Calls that are added at once at most."""
        return max(1, int(self.current.calls * _STEP))

    def overloaded(self, started: float, level: int, *, now: float, pause: float = 0) -> bool:
        """Learn that the provider refused a call, and return whether the limit has changed.

        `pause` is for how many seconds the provider asks to make no call.
        """
        if started < self._cut_at or level <= 1:
            return False  # fewer calls at once cannot help a call that was alone
        cuts, version, calls, _, floor, _, falls, _ = self.current
        failed = min(calls, level)
        falls = falls + 1 if cuts and self._clean * 8 < failed else 1
        part = _CUTS[min(falls, len(_CUTS)) - 1]
        calls = failed - max(1, int(failed * part))
        if falls >= 3:
            floor = min(floor, calls // 2)
        calls = max(1, floor, calls)
        hold = int(min(pause * _HOLD_PAUSES, _LONGEST_HOLD_SECONDS))
        self._cut(Limit(cuts + 1, version + 1, calls, max(calls, failed - 1), floor, 1, falls, hold), now)
        return True

    def slowed(self, started: float, level: int, *, now: float) -> bool:
        """Learn that answers have become slow, and return whether the limit has changed."""
        cuts, version, calls, _, floor, _, _, hold = self.current
        less = max(min(calls, INITIAL), int(calls * (1 - _SLOW_CUT)))
        if started < self._cut_at or level * 2 < calls or less == calls:
            return False
        self._cut(Limit(cuts + 1, version + 1, less, less, min(floor, less), 1, 0, hold), now)
        return True

    def learn(self, limit: Limit, now: float) -> bool:
        """Take a limit that other workers know, unless this worker's is newer; return whether it was taken."""
        known = self.current
        if limit <= known:
            return False
        if limit.cuts > known.cuts:
            self._cut(limit, now)
        else:
            same = limit.rate == known.rate and limit.ceiling == known.ceiling
            self._grown = self._grown + limit.calls - known.calls if same else 0
            self._grown_at = now
            self.current = limit
        return True

    def _raise(self, calls: int, ceiling: int) -> None:
        """Set a higher limit; the rate doubles once so many calls have been added at it."""
        known = self.current
        rate = known.rate
        if not ceiling and self._grown >= rate:
            self._grown = 0
            rate = min(2 * rate, calls)
        self.current = known._replace(
            version=known.version + 1, calls=calls, ceiling=ceiling, floor=max(known.floor, calls // 2), rate=rate
        )

    def _cut(self, limit: Limit, now: float) -> None:
        if limit.ceiling != self.current.ceiling or limit.calls > limit.floor:
            self._held = 0.0
            self._held_at = now
        self.current = limit
        self._cut_at = now
        if limit.falls:
            self._known_until = now + _FORGET_SECONDS
        self._clean = self._credit = 0.0
        self._grown = 0
