"""Wake-ups that came to this worker and whose jobs wait for a slot."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import islice

from worker.slots import LINES


class Message:
    """The jobs of one wake-up that wait here."""

    def __init__(self) -> None:
        self.left = 0
        self.gone = asyncio.Event()
        """Set when none of its jobs waits here any more."""


class WakeUps:
    """Jobs that wait here, in the order of their wake-ups."""

    def __init__(self) -> None:
        self._tiers: dict[str, str] = {}
        self._messages: dict[str, Message] = {}
        self._lines = 0

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
        return self._lines if tier == LINES else len(self._tiers) - self._lines

    def add(self, job_id: str, tier: str, message: Message) -> None:
        """Let a job of a message wait."""
        self._tiers[job_id] = tier
        self._messages[job_id] = message
        self._lines += tier == LINES
        message.left += 1

    def drop(self, job_id: str) -> None:
        """Remove a job, if it waits here."""
        tier = self._tiers.pop(job_id, None)
        if tier is None:
            return
        self._lines -= tier == LINES
        message = self._messages.pop(job_id)
        message.left -= 1
        if not message.left:
            message.gone.set()

    def first(self, count: int) -> list[str]:
        """Return the first jobs, up to `count`."""
        return list(islice(self._tiers, count))

    def first_lines(self, count: int) -> list[str]:
        """Return the first lines of batches, up to `count`."""
        if not count or not self._lines:
            return []
        return list(islice((job_id for job_id, tier in self._tiers.items() if tier == LINES), count))

    def take_all(self) -> Mapping[str, Sequence[str]]:
        """Remove every job, and return the jobs of each tier."""
        waiting: dict[str, list[str]] = defaultdict(list)
        for job_id, tier in self._tiers.items():
            waiting[tier].append(job_id)
        for job_ids in waiting.values():
            for job_id in job_ids:
                self.drop(job_id)
        return waiting
