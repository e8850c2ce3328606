"""How much memory each process has: soon after its start, at most, and when all is over."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import psutil

from tests.service import Process

_MIB = 1024 * 1024
_EVERY_SECONDS = 1.0
# Seconds after its start at which a process counts as fresh: it has loaded everything, and has done little.
_FRESH_SECONDS = 8.0
# How many times what a fresh process of its kind has a process may have after a load, once it has nothing to do.
_MOST_TIMES = 2.0


@dataclass(slots=True)
class Memory:
    """Resident bytes of the service's processes, looked at about once a second."""

    fresh: defaultdict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    """Of each kind of part, what its processes had soon after their start."""
    most: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    """Of each part, the most that it ever had."""
    settled: dict[str, int] = field(default_factory=dict)
    """Of each part, what it has when all is over."""
    lived: dict[str, float] = field(default_factory=dict)
    """How long, in seconds, each had run by then."""
    _next: float = 0.0
    _met: set[int] = field(default_factory=set)

    def look(self, processes: Mapping[str, Process], launched: Mapping[str, float]) -> None:
        """Measure, if it is time to. `launched` is when each started, by the clock."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _EVERY_SECONDS
        for name, process in processes.items():
            used = _resident(process)
            self.most[name] = max(self.most[name], used)
            if used and process.pid not in self._met and time.time() - launched[name] > _FRESH_SECONDS:
                self._met.add(process.pid)
                self.fresh[_kind(name)].append(used)

    def settle(self, processes: Mapping[str, Process], launched: Mapping[str, float]) -> None:
        """Measure when all is over."""
        for name, process in processes.items():
            self.settled[name] = _resident(process)
            self.lived[name] = time.time() - launched[name]

    def problems(self) -> list[str]:
        """Return which processes kept too much."""
        return [
            f"{name}: {used / _MIB:.0f} MiB when all is over, {self._usual(name) / _MIB:.0f} MiB when fresh"
            for name, used in self.settled.items()
            if self.fresh[_kind(name)] and used > _MOST_TIMES * self._usual(name)
        ]

    def table(self) -> dict[str, str]:
        """Return a line for each part."""
        return {
            name: f"fresh {self._usual(name) / _MIB:.0f} MiB, at most {self.most[name] / _MIB:.0f} MiB,"
            f" at the end {used / _MIB:.0f} MiB, {self.lived[name]:.0f} s after its start"
            for name, used in sorted(self.settled.items())
        }

    def _usual(self, name: str) -> float:
        return statistics.median(self.fresh[_kind(name)] or [0])


def _kind(name: str) -> str:
    return name.partition("-")[0]


def _resident(process: Process) -> int:
    """Return the resident bytes of a process, or 0 if it has ended."""
    with contextlib.suppress(psutil.Error):
        return int(psutil.Process(process.pid).memory_info().rss)
    return 0
