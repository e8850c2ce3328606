"""Whether a job is tried again after an attempt that failed."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

from headrace.errors import UpstreamOverloadedError
from worker.outcome import Outcomes
from worker.retry import Retry


def attempt(*, seconds_left: float, took: float) -> Any:
    """Return an attempt on the first of two routes, of a job that had so much time when the attempt began."""
    job = SimpleNamespace(route=0, retries=0, seconds_left=seconds_left, streamed=False, background=False)
    routes = [SimpleNamespace(route=SimpleNamespace(condition=None)) for _ in range(2)]
    deltas = SimpleNamespace(seq=0)
    return SimpleNamespace(job=job, index=0, routes=routes, deltas=deltas, began=time.monotonic() - took)


def test_a_job_waits_for_a_provider_only_for_the_time_that_the_attempt_has_left_it() -> None:
    outcomes: Any = Outcomes(None, None, attempts_per_route=2)  # type: ignore[arg-type]  # neither is asked
    error = UpstreamOverloadedError(retry_after=60)
    assert outcomes.next_attempt(attempt(seconds_left=120, took=0), error) == Retry(0, 1, 60)
    assert outcomes.next_attempt(attempt(seconds_left=120, took=80), error) == Retry(1, 0, 0)
