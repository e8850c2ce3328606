"""The health of this process, which its metrics port serves. The parts of the process write it; a thread reads it."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from headrace.runtime.chores import Chore, until_tick
from headrace.settings import Settings
from headrace.telemetry.metrics import EVENT_LOOP_LAG
from headrace.telemetry.stores import POSTGRES, REDIS

# Seconds without a tick of the event loop after which the process counts as stuck.
_STUCK_SECONDS = 30.0
# Seconds between two ticks: of a process that works, and of one that has used less than a share of its time since.
_TICK_SECONDS = 1.0
_IDLE_TICK_SECONDS = 4.0
_IDLE_SHARE = 0.05


class Health:
    """What one process knows of itself."""

    def __init__(self) -> None:
        """Start alive, and without a beat."""
        self.draining = False
        """Whether the process is ending, and takes no new work."""
        self._ticked_at = time.monotonic()
        self._beat_at: float | None = None

    def tick(self) -> None:
        """Note that the event loop runs."""
        self._ticked_at = time.monotonic()

    def beat(self) -> None:
        """Note a heartbeat of a worker, or a sweep or a look for jobs of a scheduler, that Postgres has taken."""
        self._beat_at = time.monotonic()

    @property
    def alive(self) -> bool:
        """Whether the event loop runs: a process that is not alive should be started again."""
        return time.monotonic() - self._ticked_at < _STUCK_SECONDS

    @property
    def ready(self) -> bool:
        """Whether the process takes work: it is alive, is not draining, and Postgres has answered it."""
        return self.alive and not self.draining and bool(POSTGRES.up)

    def describe(self, part: str) -> dict[str, Any]:
        """Return the body of `/livez` and `/readyz`. Ages are in seconds."""
        beat = None if self._beat_at is None else round(time.monotonic() - self._beat_at, 3)
        return {
            "part": part,
            "alive": self.alive,
            "ready": self.ready,
            "draining": self.draining,
            "last_beat_seconds": beat,
            "postgres": _STATES[POSTGRES.up],
            "redis": _STATES[REDIS.up],
        }


_STATES = {True: "ok", False: "unavailable", None: "not asked yet"}

HEALTH = Health()
"""This process's."""


def loop_chores(settings: Settings) -> list[Chore]:
    """Return the chore that watches the event loop; no chore without a metrics port, which would show what it finds."""
    return [_watch_loop] if settings.metrics_port else []


async def _watch_loop() -> None:
    loop, period = asyncio.get_running_loop(), _TICK_SECONDS
    while True:
        HEALTH.tick()
        used, due = time.process_time(), loop.time() + (rest := until_tick(period))
        await asyncio.sleep(rest)
        EVENT_LOOP_LAG.observe(max(0.0, loop.time() - due))
        period = _IDLE_TICK_SECONDS if time.process_time() - used < _IDLE_SHARE * rest else _TICK_SECONDS
