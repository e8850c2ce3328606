"""How many calls a route takes at once, where that is unknown: additive increase, multiplicative decrease.

The limit grows while it is in use and calls are accepted. It is cut when the provider says that it is overloaded: with
429, 503, 529 or an error of that meaning, and when its streams take longer to begin (`worker/slowness.py`). Everything
here is pure; `worker/adaptive_queue.py` applies the limit, and workers share it in Redis.

* A call that is not refused for some times as long as a refusal takes has been accepted: its answer may take minutes.
  If the limit was full with that call, the provider takes as many calls at once, and the limit may grow again. So it
  follows a capacity that rises within a second, however long answers take. At first it doubles with each such proof. It
  grows by single calls, not in jumps: so only a few calls exceed the capacity before the first refusal comes.
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
"""Calls that are accepted at the ceiling before the limit tries one more: so less than 1 % of calls are refused."""
# Accepted calls in multiples of the limit: a small limit needs at most so many, and a large one at least so many.
_MOST_ROUNDS = 8
_LEAST_ROUNDS = 3
# Calls that refusals add to those, at most, in multiples of that number.
_MOST_DEBT = 3
# Seconds at the ceiling after which the limit tries one more although fewer calls were accepted.
_HOLD_SECONDS = 60.0
# Seconds at the ceiling for each second of the pause that a refusing provider asks for, and at most.
_HOLD_PAUSES = 50
_LONGEST_HOLD_SECONDS = 600
# The part of a refused level by which the ceiling is lower: where calls are many, some are always on their way.
_BELOW = 1 / 64
# The parts of the limit that the first, second, third … cut in a row takes away.
_CUTS = (1 / 32, 1 / 8, 1 / 4, 1 / 2)
# The part that a cut takes away because answers have become slow. Slowness alone leaves INITIAL calls.
_SLOW_CUT = 1 / 4
# The part of a limit below its ceiling that each proof adds.
_RETURN = 1 / 8
# The part of the limit that may be free although it counts as full: workers know of each other's calls a little late.
_SLACK = 1 / 16
# Seconds between two increases at least, and the part of the limit that one adds at most.
_PACE_SECONDS = 0.01
_STEP = 1 / 32
# Seconds after which a call counts as accepted: at least, and at most. Before the first refusal the second holds.
_LEAST_PROOF_SECONDS = 0.05
_MOST_PROOF_SECONDS = 1.0
# Times as long as an average refusal takes that this is, and the weight of the newest refusal in that average.
_PROOF_TIMES = 4
_LAST_WEIGHT = 0.25
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
    """The level just below that of the last refusal; 0 while none is known."""
    floor: int
    """Calls at once that single refusals leave: half of the highest limit since the capacity fell."""
    rate: int
    """Calls that the next proof adds, where there is no ceiling."""
    falls: int
    """Refusals in a row, without a round of accepted calls between them; 0 if slowness was the last cause."""
    hold: int
    """Seconds for which the limit stays at its ceiling at least, as a refusal there pauses the route; 0 while the
    capacity falls, as it may soon rise again."""

    def pack(self) -> str:
        """Return the limit as it is kept in Redis."""
        return " ".join(map(str, self))

    @classmethod
    def unpack(cls, text: str) -> Self:
        """Return the limit that `pack` packed."""
        return cls(*map(int, text.split()))


class AdaptiveLimit:
    """A route's limit, as one worker knows it. Times are in seconds of a clock that only moves forward."""

    __slots__ = (
        "_clean", "_credit", "_cut_at", "_grown", "_grown_at", "_held", "_held_at", "_known_until", "_refusal_seconds",
        "current",
    )  # fmt: skip

    def __init__(self) -> None:
        """Know nothing of the route."""
        self.current = Limit(
            cuts=0, version=0, calls=INITIAL, ceiling=0, floor=INITIAL // 2, rate=INITIAL, falls=0, hold=0
        )
        self._cut_at = self._known_until = self._grown_at = self._held_at = 0.0
        self._clean = 0.0
        """Calls of all workers that were accepted since the last cut, as far as this one can tell."""
        self._held = float(HOLD)
        """Those of them that count for the next try beyond the ceiling, less what refusals since then owe."""
        self._refusal_seconds = 0.0
        """Seconds that refusals take on average; 0 before the first one."""
        self._credit = 0
        """Calls by which the limit may grow."""
        self._grown = 0
        """Calls that were added at the present rate."""

    def known(self, now: float) -> bool:
        """Return whether the provider has refused calls lately, so that its capacity is known."""
        return now < self._known_until

    @property
    def proof_seconds(self) -> float:
        """Seconds after which a call that was not refused counts as accepted."""
        seconds = self._refusal_seconds * _PROOF_TIMES or _MOST_PROOF_SECONDS
        return min(max(seconds, _LEAST_PROOF_SECONDS), _MOST_PROOF_SECONDS)

    def accepted(self, started: float, level: int, *, share: float, now: float) -> bool:
        """Learn that the provider took a call, and return whether the limit has changed.

        `level` is how many calls were under way with it when it started, and `share` this worker's part of them.
        """
        if started < self._cut_at:
            return False
        calls, ceiling = self.current.calls, self.current.ceiling
        self._clean += 1 / share
        self._held += 1 / share
        if level > calls:
            # A call that was let through beyond the limit, as the capacity was not known.
            self._raise(level, 0 if ceiling < level else ceiling)
            return True
        if level < calls - max(1, int(calls * _SLACK)) or started < self._grown_at:
            return self.step(now)  # it shows nothing of the present limit
        if ceiling and calls >= ceiling:
            if calls == MOST or now < self._next_step_at or self._holds(now):
                return False
            self.current = self.current._replace(ceiling=0, rate=1)
            self._credit = self._grown = 0
        self._credit = max(self._credit, self._gain)
        return self.step(now)

    def _holds(self, now: float) -> bool:
        """Return whether the limit stays at its ceiling."""
        calls, hold = self.current.calls, self.current.hold
        enough = max(self._fee, calls * _LEAST_ROUNDS)
        return now < self._held_at + (hold if self._held >= enough else max(hold, _HOLD_SECONDS))

    @property
    def _fee(self) -> int:
        """Calls that have to be accepted for each refusal."""
        return min(HOLD, self.current.calls * _MOST_ROUNDS)

    def step(self, now: float) -> bool:
        """Add some of what the limit has earned, and return whether it has changed."""
        calls, ceiling = self.current.calls, self.current.ceiling
        more = min(self._credit, max(1, int(calls * _STEP)), (ceiling or MOST) - calls)
        if more < 1 or now < self._next_step_at:
            return False
        self._credit -= more
        self._grown_at = now
        self._grown += more
        self._raise(calls + more, ceiling)
        return True

    @property
    def _next_step_at(self) -> float:
        """When the limit may grow again: so late that a refusal comes after two or three steps."""
        return self._grown_at + max(_PACE_SECONDS, self._refusal_seconds / 2)

    @property
    def _gain(self) -> int:
        """Calls that a proof adds."""
        return max(1, int(self.current.calls * _RETURN)) if self.current.ceiling else self.current.rate

    def overloaded(self, started: float, level: int, *, now: float, pause: float = 0) -> bool:
        """Learn that the provider refused a call, and return whether the limit has changed.

        `pause` is for how many seconds the provider asks to make no call.
        """
        seconds = min(now - started, _MOST_PROOF_SECONDS)
        known = self._refusal_seconds or seconds
        self._refusal_seconds = known + (seconds - known) * _LAST_WEIGHT
        if started < self._cut_at:
            self._owe(self.current)
            return False
        if level <= 1:
            return False  # fewer calls at once cannot help a call that was alone
        cuts, version, calls, _, floor, _, falls, _ = self.current
        # While calls start again after a pause they are few, so their number says little about what the provider takes.
        failed = calls if pause else min(calls, level)
        falls = falls + 1 if cuts and self._clean * 8 < failed else 1
        part = _CUTS[min(falls, len(_CUTS)) - 1]
        calls = failed - max(1, int(failed * part))
        if falls >= 3:
            floor = min(floor, calls // 2)
        calls = max(1, floor, calls)
        hold = int(min(pause * _HOLD_PAUSES, _LONGEST_HOLD_SECONDS)) if falls == 1 else 0
        ceiling = max(calls, failed - max(1, int(failed * _BELOW)))
        self._cut(Limit(cuts + 1, version + 1, calls, ceiling, floor, 1, falls, hold), now)
        return True

    def _owe(self, limit: Limit) -> None:
        """Let more calls be accepted before the next try, because of one more refusal.

        Where the capacity has fallen, many calls are refused at once, and it may soon rise again: then none is added.
        """
        fee = self._fee
        self._held = max(min(self._held, fee) - fee, -_MOST_DEBT * fee) if limit.falls == 1 else 0.0

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
            self._owe(limit)
            self._held_at = now
        self.current = limit
        self._cut_at = now
        if limit.falls:
            self._known_until = now + _FORGET_SECONDS
        self._clean = 0.0
        self._credit = self._grown = 0
