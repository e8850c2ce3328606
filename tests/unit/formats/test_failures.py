from __future__ import annotations

import pytest

from headrace.errors import UpstreamError, UpstreamOverloadedError, UpstreamRateLimitError
from headrace.formats.failures import failure


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
