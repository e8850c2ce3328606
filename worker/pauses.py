"""Pauses that providers ask for: a route, or a provider, takes no calls until its pause ends, in any worker."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping


class Pauses:
    """When paused routes may be called again."""

    def __init__(self, *, longest_seconds: float, on_news: Callable[[], None]) -> None:
        """Believe no provider beyond `longest_seconds`; `on_news` is called when a pause begins."""
        self._longest = longest_seconds
        self._on_news = on_news
        self._ends: dict[str, float] = {}
        """The end of each pause, by the monotonic clock in seconds."""
        self._unsaved: set[str] = set()
        """Routes whose pause other workers do not know yet."""

    def seconds(self, name: str) -> float:
        """Return how much longer a route, or a provider, is paused, in seconds; 0 if it is not."""
        return max(0.0, self._ends[name] - time.monotonic()) if name in self._ends else 0.0

    def pause(self, name: str, seconds: float) -> None:
        """Pause a route, or a provider, in all workers, for the seconds that the provider asked for."""
        ends = time.monotonic() + min(seconds, self._longest)
        if seconds > 0 and ends > self._ends.get(name, 0):
            self._ends[name] = ends
            self._unsaved.add(name)
            self._on_news()

    def take_unsaved(self) -> list[tuple[str, float]]:
        """Return the pauses, in seconds, that other workers do not know yet; from now on they count as known."""
        unsaved, self._unsaved = self._unsaved, set()
        return [(name, self.seconds(name)) for name in unsaved]

    def keep_unsaved(self, names: Iterable[str]) -> None:
        """Keep pauses for the next `take_unsaved`, because they did not reach the other workers."""
        self._unsaved.update(names)

    def learn(self, shared: Mapping[str, float]) -> None:
        """Replace the pauses with those that all workers know, in seconds, and keep those that began meanwhile."""
        now = time.monotonic()
        kept = {name: self._ends[name] for name in self._unsaved}
        self._ends = {**{name: now + seconds for name, seconds in shared.items()}, **kept}
