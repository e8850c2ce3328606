"""The clock that leases are measured by within a process."""

from __future__ import annotations

import time

# Linux's monotonic clock stops while the machine sleeps; a lease in Postgres does not.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def now() -> float:
    """Return seconds since a fixed moment in the past, including the time for which the machine slept."""
    return time.clock_gettime(_CLOCK)
