"""What comes after a failed attempt: the same route again, the next one, or the end."""

from __future__ import annotations

import random
from dataclasses import dataclass

from headrace.errors import UpstreamError, UpstreamRefusedError

_FIRST_BACKOFF_SECONDS = 0.5
_LONGEST_BACKOFF_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Retry:
    """The next attempt: on which route, after how many failures there, and in how many seconds."""

    route: int
    retries: int
    delay_seconds: float


def backoff(retries: int) -> float:
    """Return a delay in seconds with full jitter: anywhere up to a bound that doubles with each failure."""
    return random.uniform(0, min(_LONGEST_BACKOFF_SECONDS, _FIRST_BACKOFF_SECONDS * 2**retries))


def next_attempt(
    error: UpstreamError, *, route: int, retries: int, routes: int, attempts_per_route: int, seconds_left: float
) -> Retry | None:
    """Return the attempt after one that failed with `error`, or None if the job fails with it.

    A provider that asks for more time than the job has is not waited for.
    """
    if isinstance(error, UpstreamRefusedError):
        return None
    if error.retryable and retries + 1 < attempts_per_route:
        delay = max(backoff(retries), error.retry_after or 0)
        if delay < seconds_left:
            return Retry(route, retries + 1, delay)
    if route + 1 < routes:
        return Retry(route + 1, 0, 0)
    return None
