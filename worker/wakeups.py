"""Wake-ups that came to this worker and whose jobs wait for a slot."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import islice

from headrace.queue import LINES
from headrace.runtime.flag import Flag
from worker.crowds import Key


class Message:
    """The jobs of one wake-up that wait here."""

    def __init__(self) -> None:
        self.left = 0
        self.gone = Flag()
        """Set when none of its jobs waits here any more."""


class WakeUps:
    """Jobs that wait here, in the order of their wake-ups."""

    def __init__(self) -> None:
        self._tiers: dict[str, str] = {}
        self._messages: dict[str, Message] = {}
        self._keys: dict[str, Key] = {}
        """Whose line a line is, where that is known."""
        self._lines: dict[Key | None, dict[str, None]] = {}
        """The lines of batches, by their keys; the key whose turn is next comes first."""
        self._line_count = 0

    def __len__(self) -> int:
        return len(self._tiers)

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._tiers

    @property
    def tiers(self) -> Mapping[str, str]:
        """The tier of each job that waits here."""
        return self._tiers

    def competing(self, tier: str) -> int:
        """Return how many jobs wait here that compete with one of this tier: lines compete with lines."""
        return self._line_count if tier == LINES else len(self._tiers) - self._line_count

    def add(self, job_id: str, tier: str, message: Message) -> None:
        """Let a job of a message wait, unless it waits already: a message may name it twice."""
        if job_id in self._tiers:
            return
        self._tiers[job_id] = tier
        self._messages[job_id] = message
        if tier == LINES:
            self._lines.setdefault(None, {})[job_id] = None
            self._line_count += 1
        message.left += 1

    def drop(self, job_id: str) -> None:
        """Remove a job, if it waits here."""
        tier = self._tiers.pop(job_id, None)
        if tier is None:
            return
        if tier == LINES:
            self._leave(job_id, self._keys.pop(job_id, None))
            self._line_count -= 1
        message = self._messages.pop(job_id)
        message.left -= 1
        if not message.left:
            message.gone.set()

    def first(self, count: int) -> list[str]:
        """Return the first jobs, up to `count`."""
        return list(islice(self._tiers, count))

    def unknown_lines(self, count: int) -> list[str]:
        """Return the first lines of batches whose keys are not known, up to `count`."""
        return list(islice(self._lines.get(None, ()), count))

    def know(self, job_id: str, key: Key) -> None:
        """Note whose line a line is, if it still waits here."""
        if self._tiers.get(job_id) == LINES and job_id not in self._keys:
            self._leave(job_id, None)
            self._keys[job_id] = key
            self._lines.setdefault(key, {})[job_id] = None

    def first_lines(self, count: int, room: Callable[[Key | None], float]) -> list[str]:
        """Return the first lines of batches, up to `count`, and of each key up to its room; keys take turns."""
        first: list[str] = []
        for key in list(self._lines) if count else ():
            found = list(islice(self._lines[key], int(min(count - len(first), room(key)))))
            if found:
                first += found
                self._lines[key] = self._lines.pop(key)
        return first

    def _leave(self, job_id: str, key: Key | None) -> None:
        lines = self._lines[key]
        del lines[job_id]
        if not lines:
            del self._lines[key]

    def take_all(self) -> Mapping[str, Sequence[str]]:
        """Remove every job, and return the jobs of each tier."""
        waiting: dict[str, list[str]] = defaultdict(list)
        for job_id, tier in self._tiers.items():
            waiting[tier].append(job_id)
        for job_ids in waiting.values():
            for job_id in job_ids:
                self.drop(job_id)
        return waiting
