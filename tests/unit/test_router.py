from __future__ import annotations

from typing import Any

import pytest

from headrace.errors import (
    UpstreamError,
    UpstreamKeyError,
    UpstreamRateLimitError,
    UpstreamRefusedError,
    UpstreamTimeoutError,
)
from worker.router import Retry, backoff, next_attempt

FIRST: dict[str, Any] = {"route": 0, "retries": 0, "routes": 2, "attempts_per_route": 3, "seconds_left": 600}


@pytest.mark.parametrize("error", [UpstreamError(), UpstreamTimeoutError(), UpstreamRateLimitError()], ids=repr)
def test_a_passing_failure_is_tried_again_on_the_same_route(error: UpstreamError) -> None:
    retry = next_attempt(error, **FIRST)
    assert retry is not None
    assert (retry.route, retry.retries) == (0, 1)


def test_retry_after_is_honoured() -> None:
    retry = next_attempt(UpstreamRateLimitError(retry_after=17), **FIRST)
    assert retry is not None
    assert 17 <= retry.delay_seconds < 18


def test_a_provider_that_wants_more_time_than_the_job_has_is_not_waited_for() -> None:
    error = UpstreamRateLimitError(retry_after=900)
    assert next_attempt(error, **FIRST) == Retry(1, 0, 0)
    assert next_attempt(error, **{**FIRST, "routes": 1}) is None


def test_after_its_last_attempt_a_route_gives_way_to_the_next() -> None:
    assert next_attempt(UpstreamError(), **{**FIRST, "retries": 2}) == Retry(1, 0, 0)
    assert next_attempt(UpstreamError(), **{**FIRST, "retries": 2, "route": 1}) is None


def test_a_key_that_the_provider_does_not_take_is_not_tried_twice() -> None:
    assert next_attempt(UpstreamKeyError(), **FIRST) == Retry(1, 0, 0)


def test_a_refused_request_is_tried_nowhere_else() -> None:
    assert next_attempt(UpstreamRefusedError(status=400), **FIRST) is None


def test_backoff_doubles_up_to_a_bound() -> None:
    assert all(0 <= backoff(retries) <= min(30, 0.5 * 2**retries) for retries in range(20) for _ in range(50))
