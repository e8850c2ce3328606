from __future__ import annotations

from typing import Any

import pytest

from headrace.catalogue.models import Condition, Model, Provider, Route
from headrace.errors import (
    UpstreamError,
    UpstreamKeyError,
    UpstreamRateLimitError,
    UpstreamRefusedError,
    UpstreamTimeoutError,
)
from worker.retry import Retry, backoff, next_attempt

PROVIDER = Provider(kind="openai", base_url="http://127.0.0.1:1/v1")


def routes(*conditions: Condition | None) -> list[Route]:
    return [Route("p", PROVIDER, "m", Model(routes=["p/m"]), condition) for condition in conditions]


FIRST: dict[str, Any] = {
    "route": 0,
    "retries": 0,
    "routes": routes(None, None),
    "attempts_per_route": 3,
    "seconds_left": 600,
}


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
    assert next_attempt(error, **{**FIRST, "routes": routes(None)}) is None


def test_after_its_last_attempt_a_route_gives_way_to_the_next() -> None:
    assert next_attempt(UpstreamError(), **{**FIRST, "retries": 2}) == Retry(1, 0, 0)
    assert next_attempt(UpstreamError(), **{**FIRST, "retries": 2, "route": 1}) is None


def test_a_key_that_the_provider_does_not_take_is_not_tried_twice() -> None:
    assert next_attempt(UpstreamKeyError(), **FIRST) == Retry(1, 0, 0)


def test_a_refused_request_is_tried_nowhere_else() -> None:
    assert next_attempt(UpstreamRefusedError(status=400), **FIRST) is None


def test_what_is_too_long_goes_to_the_routes_with_a_larger_window() -> None:
    there = routes(None, None, "context_window", "content_filter", "context_window")
    error = UpstreamRefusedError(code="context_length_exceeded")
    assert next_attempt(error, **{**FIRST, "routes": there}) == Retry(2, 0, 0)
    assert next_attempt(error, **{**FIRST, "routes": there, "route": 2}) == Retry(4, 0, 0)
    assert next_attempt(error, **{**FIRST, "routes": there, "route": 4}) is None
    assert next_attempt(error, **FIRST) is None


def test_what_a_filter_withheld_goes_to_the_routes_for_it() -> None:
    there = routes(None, "context_window", "content_filter")
    error = UpstreamRefusedError(code="content_filter")
    assert next_attempt(error, **{**FIRST, "routes": there}) == Retry(2, 0, 0)
    assert next_attempt(error, **FIRST) is None


def test_an_ordinary_failure_leads_to_no_route_that_is_for_another() -> None:
    there = routes(None, "context_window", None, "context_window")
    assert next_attempt(UpstreamError(), **{**FIRST, "routes": there, "retries": 2}) == Retry(2, 0, 0)
    assert next_attempt(UpstreamError(), **{**FIRST, "routes": there, "retries": 2, "route": 1}) == Retry(3, 0, 0)
    assert next_attempt(UpstreamError(), **{**FIRST, "routes": there, "retries": 2, "route": 2}) is None


def test_backoff_doubles_up_to_a_bound() -> None:
    assert all(0 <= backoff(retries) <= min(30, 0.5 * 2**retries) for retries in range(20) for _ in range(50))
