"""How many seconds a provider asks to wait before the next call, from its answer's headers. Pure: no I/O.

The families of headers, and who sends them:

* `Retry-After` in seconds or as a date (RFC 9110, 10.2.3), from all of them; `retry-after-ms` from Azure and OpenAI.
* `x-ratelimit-remaining-requests: 0` with `x-ratelimit-reset-requests: 6m0s`, and the same for tokens: OpenAI
  (https://platform.openai.com/docs/guides/rate-limits, of 2026-06-26) and its imitators, Groq with `7.66s`.
* `anthropic-ratelimit-requests-remaining: 0` with `anthropic-ratelimit-requests-reset: 2026-05-04T12:34:56Z`, which is
  RFC 3339, and the same for `tokens`, `input-tokens` and `output-tokens`: Anthropic
  (https://docs.anthropic.com/en/api/rate-limits, read 2026-11-23).

Both kinds of reset say when a limit is whole again, which is later than when the next call fits. So they are read
only where there is no Retry-After.
"""

from __future__ import annotations

import contextlib
import email.utils
import math
import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime

_KINDS = ("requests", "tokens", "project-tokens", "input-tokens", "output-tokens")
_FAMILIES = [
    *((f"x-ratelimit-remaining-{kind}", f"x-ratelimit-reset-{kind}") for kind in _KINDS),
    *((f"anthropic-ratelimit-{kind}-remaining", f"anthropic-ratelimit-{kind}-reset") for kind in _KINDS),
]
_UNIT_SECONDS = {"d": 86_400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_PART = r"(\d+(?:\.\d+)?)(ms|[dhms])"
_DURATION = re.compile(rf"(?:{_PART})+")
_EACH_PART = re.compile(_PART)
# Seconds. A larger number without a unit is a point in time, whose unit is unknown.
_LONGEST_DURATION = 30 * 86_400.0


def cooldown_seconds(headers: Mapping[str, str], *, now: float | None = None) -> float | None:
    """Return the seconds that a provider asks to wait, or None if it does not ask.

    Names in `headers` are in lower case, or the mapping takes any case. Malformed values are ignored.
    `now` is in Unix seconds, by default the present.
    """
    now = time.time() if now is None else now
    asked = _retry_after(headers, now)
    if asked is not None:
        return asked
    resets = [
        seconds
        for remaining, reset in _FAMILIES
        if (headers.get(remaining) or "").strip() == "0"
        and (seconds := _parse_reset((headers.get(reset) or "").strip(), now)) is not None
    ]
    return max(resets, default=None)


def _retry_after(headers: Mapping[str, str], now: float) -> float | None:
    if (milliseconds := _parse_number(headers.get("retry-after-ms") or "")) is not None:
        return milliseconds / 1000
    value = (headers.get("retry-after") or "").strip()
    if (seconds := _parse_number(value)) is not None:
        return seconds
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - now)
    return None


def _parse_reset(value: str, now: float) -> float | None:
    """Return the seconds until a reset, which is a duration ("6m0s", "20ms", "1.5") or a date with a time."""
    if _DURATION.fullmatch(value):
        return sum(float(number) * _UNIT_SECONDS[unit] for number, unit in _EACH_PART.findall(value))
    if (seconds := _parse_number(value)) is not None:
        return seconds if seconds <= _LONGEST_DURATION else None
    with contextlib.suppress(ValueError, OverflowError):
        moment = datetime.fromisoformat(value)
        return max(0.0, (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() - now)
    return None


def _parse_number(value: str) -> float | None:
    with contextlib.suppress(ValueError):
        number = float(value)
        return max(0.0, number) if math.isfinite(number) else None
    return None
