"""The clock for leases, and a check for timers that fire late because the process was frozen."""

from __future__ import annotations

import asyncio
import time

LATE_SECONDS = 0.5
"""Seconds by which a timer is late if its process stood still: it was frozen, or its machine was.

A loop runs late timers before it reads. So a timer that ends a wait for another process waits for as many seconds more
when it is late, and what arrived meanwhile is read.
"""
# Linux's monotonic clock stops while the machine sleeps; a lease in Postgres does not.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def now() -> float:
    """Return seconds since a fixed moment in the past, including the time for which the machine slept."""
    return time.clock_gettime(_CLOCK)


def is_late(timer: asyncio.TimerHandle) -> bool:
    """Tell, in the callback of a timer, whether the process stood still when the timer was due."""
    return asyncio.get_running_loop().time() > timer.when() + LATE_SECONDS
