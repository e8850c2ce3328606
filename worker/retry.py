"""What comes after a failed attempt: the same route again, the next one, or the end."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from headrace.catalogue.models import Condition, Route
from headrace.catalogue.routing import CONDITIONS
from headrace.errors import UpstreamError, UpstreamRefusedError

_FIRST_BACKOFF_SECONDS = 0.5
_LONGEST_BACKOFF_SECONDS = 30.0
# Seconds before a job that one worker leaves to the others is due again, as its wake-up may come back to this worker:
# the bound at first, its growth with each attempt, and its maximum.
_FIRST_HANDOVER_SECONDS = 0.1
_HANDOVER_GROWTH = 1.25
_LONGEST_HANDOVER_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Retry:
    """The next attempt: on which route, after how many failures there, and in how many seconds."""

    route: int
    retries: int
    delay_seconds: float


def backoff(retries: int) -> float:
    """Return a delay in seconds with full jitter: anywhere up to a bound that doubles with each failure."""
    return random.uniform(0, min(_LONGEST_BACKOFF_SECONDS, _FIRST_BACKOFF_SECONDS * 2**retries))


def handover_delay(attempt: int) -> float:
    """Return the seconds that a job waits for another worker, with full jitter; the bound grows with each attempt."""
    return random.uniform(
        0, min(_LONGEST_HANDOVER_SECONDS, _FIRST_HANDOVER_SECONDS * _HANDOVER_GROWTH ** min(attempt, 20))
    )


def next_attempt(
    error: UpstreamError,
    *,
    routes: Sequence[Route],
    route: int,
    retries: int,
    attempts_per_route: int,
    seconds_left: float,
) -> Retry | None:
    """Return the attempt after one that failed with `error` on `routes[route]`, or None if the job fails with it.

    The job does not wait for a provider that asks for more time than the job has. After an error of the request itself,
    only routes with a condition for that error are tried: a larger context window, or another content policy.
    """
    condition = CONDITIONS.get(error.code or "")
    if condition is not None:
        return _go_on(routes, route, condition)
    if isinstance(error, UpstreamRefusedError):
        return None
    if error.retryable and retries + 1 < attempts_per_route:
        delay = max(backoff(retries), error.retry_after or 0)
        if delay < seconds_left:
            return Retry(route, retries + 1, delay)
    return _go_on(routes, route, routes[route].condition)


def _go_on(routes: Sequence[Route], route: int, condition: Condition | None) -> Retry | None:
    for index in range(route + 1, len(routes)):
        if routes[index].condition == condition:
            return Retry(index, 0, 0)
    return None
