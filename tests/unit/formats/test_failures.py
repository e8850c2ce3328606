from __future__ import annotations

import pytest

from headrace.errors import UpstreamError, UpstreamKeyError, UpstreamOverloadedError, UpstreamRateLimitError
from headrace.formats.error_objects import error_of
from headrace.formats.failures import failure, reported


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (429, UpstreamRateLimitError),
        (500, UpstreamError),
        (502, UpstreamError),
        (503, UpstreamOverloadedError),
        (529, UpstreamOverloadedError),
    ],
)
def test_a_status_tells_whether_the_provider_has_too_many_calls(status: int, kind: type[UpstreamError]) -> None:
    error = failure({}, status, retry_after=3)
    assert type(error) is kind
    assert error.retry_after == 3
    assert error.retryable


@pytest.mark.parametrize("status", [429, 500, 503, 504])
@pytest.mark.parametrize(
    ("said", "seconds"),
    [("20", 20), (1.5, 1.5), (0, 0), ("20s", None), ([20], None), ({}, None), (True, None), (-1, None), ("nan", None)],
)
def test_seconds_to_wait_are_taken_from_a_body_only_if_they_are_a_number(
    status: int, said: object, seconds: float | None
) -> None:
    assert failure({"message": "busy", "retry_after": said}, status).retry_after == seconds
    error = reported(UpstreamError, {"message": "busy", "code": ["busy"], "retry_after": said})
    assert (error.retry_after, error.code) == (seconds, UpstreamError.code)


@pytest.mark.parametrize("status", [401, 402, 403])
def test_what_is_wrong_with_our_account_is_not_the_clients_to_read(status: int) -> None:
    error = failure({"message": "Insufficient Balance", "code": "invalid_request_error"}, status)
    assert type(error) is UpstreamKeyError
    assert "Balance" not in error.message


@pytest.mark.parametrize("code", [402, "402", "billing_error", "insufficient_credits", "payment_required"])
def test_an_account_without_credit_is_known_in_a_stream_too(code: object) -> None:
    assert type(error_of({"error": {"code": code, "message": "Insufficient credits"}})) is UpstreamKeyError
