"""A provider's error status as one of Headrace's errors, whose class says whether to try again."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from headrace.errors import (
    UpstreamError,
    UpstreamKeyError,
    UpstreamOverloadedError,
    UpstreamRateLimitError,
    UpstreamRefusedError,
    UpstreamTimeoutError,
)

# Statuses that are tried again, like 5xx.
_RETRYABLE = frozenset({408, 409, 425, 429})
# A key that is wrong, an account without credit, and a key that may not do this: another route may have another key.
_KEY = frozenset({401, 402, 403})
# Service unavailable, and Anthropic's own status for an overload.
_OVERLOADED = frozenset({503, 529})
# Characters of a provider's text that an error keeps.
_LONGEST_TEXT = 1000
# What providers write of a prompt that does not fit into the context window.
_TOO_LONG = re.compile(
    r"maximum (context|prompt|input|model) length"
    r"|prompt is too long|too long for (the |this )?(requested )?model"
    r"|model'?s context length"
    r"|(exceeds?|longer than) (the )?(available |model'?s? )?(maximum )?context"
    r"|token count .{0,40}exceeds the maximum",
    re.IGNORECASE,
)


def says_too_long(message: str) -> bool:
    """Return whether a provider's message says that the prompt is too long for the model."""
    return _TOO_LONG.search(message) is not None


def failure(said: Mapping[str, Any], status: int, *, retry_after: float | None = None) -> UpstreamError:
    """Return the error for a provider's status; `said` is OpenAI's error object, whole or in part.

    `retry_after` is in seconds, and wins over the one in `said`.
    """
    message = _text(said, "message") or f"The model's provider answered with status {status}."
    code, param = _text(said, "code"), _text(said, "param")
    if retry_after is None:
        retry_after = _seconds(said)
    if status in _KEY or code == "invalid_api_key":
        return UpstreamKeyError()
    if status == 429:
        return UpstreamRateLimitError(message, code=code, retry_after=retry_after)
    if status in (408, 504):
        return UpstreamTimeoutError(retry_after=retry_after)
    if 400 <= status < 500 and status not in _RETRYABLE:
        return UpstreamRefusedError(message, param=param, code=code, status=status)
    kind = UpstreamOverloadedError if status in _OVERLOADED else UpstreamError
    return kind(message, retry_after=retry_after)


def reported(kind: type[UpstreamError], said: Mapping[str, Any]) -> UpstreamError:
    """Return the error of a `kind` that an answer with status 200 reports; `said` is OpenAI's error object, in part."""
    if kind is UpstreamKeyError:
        return UpstreamKeyError()
    message = f"The model's provider reported an error: {(_text(said, 'message') or 'it did not say which')[:500]}"
    return kind(message, code=_text(said, "code"), retry_after=_seconds(said))


def _seconds(said: Mapping[str, Any]) -> float | None:
    """Return the seconds that a provider asks to wait. It may have written anything there, such as `"20s"`."""
    value = said.get("retry_after")
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        seconds = float(value)
    except ValueError:
        return None
    return seconds if 0 <= seconds < math.inf else None


def _text(said: Mapping[str, Any], name: str) -> str | None:
    value = said.get(name)
    return value[:_LONGEST_TEXT] if isinstance(value, str) else None
