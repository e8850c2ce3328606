"""What a provider's error means: which of our errors it is, and so whether another try can cure it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headrace.errors import (
    UpstreamError,
    UpstreamKeyError,
    UpstreamRateLimitError,
    UpstreamRefusedError,
    UpstreamTimeoutError,
)

# Statuses that another try may cure, besides 5xx.
_RETRYABLE = frozenset({408, 409, 425, 429})
# Characters that are kept of a provider's text.
_LONGEST_TEXT = 1000


def failure(said: Mapping[str, Any], status: int, *, retry_after: float | None = None) -> UpstreamError:
    """Return the error for a status of a provider's; `said` is OpenAI's error object, or what came of one.

    `retry_after` is in seconds, and goes before what is in `said`.
    """
    message = _text(said, "message") or f"The model's provider answered with status {status}."
    code, param = _text(said, "code"), _text(said, "param")
    if retry_after is None:
        retry_after = said.get("retry_after")
    if status in (401, 403) or code == "invalid_api_key":
        return UpstreamKeyError()
    if status == 429:
        return UpstreamRateLimitError(message, code=code, retry_after=retry_after)
    if status in (408, 504):
        return UpstreamTimeoutError(retry_after=retry_after)
    if 400 <= status < 500 and status not in _RETRYABLE:
        return UpstreamRefusedError(message, param=param, code=code, status=status)
    return UpstreamError(message, retry_after=retry_after)


def _text(said: Mapping[str, Any], name: str) -> str | None:
    value = said.get(name)
    return value[:_LONGEST_TEXT] if isinstance(value, str) else None
