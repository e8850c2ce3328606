"""What a row of the ledger adds to each amount, in SQL: the one reading that roll-ups and questions share."""

from __future__ import annotations

from headrace.usage.latency import step_of

TOKENS = (
    "prompt_tokens",
    "completion_tokens",
    "cached_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
    "prompt_audio_tokens",
    "completion_audio_tokens",
)
"""What a row counts of tokens."""


def _count(condition: str) -> str:
    return f"({condition})::int"


AMOUNTS_OF_ROW: dict[str, str] = {
    "requests": _count("kind = 'counted'"),
    **{name: f"CASE WHEN kind <> 'discarded' THEN {name} ELSE 0 END" for name in TOKENS},
    "estimated_requests": _count("kind = 'counted' AND estimated"),
    "unpriced_requests": _count("kind = 'counted' AND cost IS NULL"),
    "streamed_requests": _count("kind = 'counted' AND streamed"),
    "discarded_attempts": _count("kind = 'discarded'"),
    "discarded_tokens": "CASE WHEN kind = 'discarded' THEN prompt_tokens + completion_tokens ELSE 0 END",
    "queue_ms": "CASE WHEN kind = 'counted' THEN coalesce(queue_ms, 0) ELSE 0 END",
    "cost": "CASE WHEN kind <> 'discarded' THEN coalesce(cost, 0) ELSE 0 END",
    "discarded_cost": "CASE WHEN kind = 'discarded' THEN coalesce(cost, 0) ELSE 0 END",
}
"""By the names of the columns of roll-ups."""

STEPS_OF_ROW: dict[str, str] = {
    "first_token": step_of("first_token_ms"),
    "duration": step_of("duration_ms"),
}
"""How long an answer took, by what is measured. Only of rows that are counted and have it: `has_metric`."""


def has_metric(metric: str) -> str:
    """Return the condition for a row to say how long something took."""
    return f"kind = 'counted' AND {metric}_ms IS NOT NULL"


def total(expression: str, name: str) -> str:
    """Return the sum of an expression: money as a numeric, counts as a bigint, which JSON has as an integer."""
    total = f"coalesce(sum({expression}), 0)" if name.endswith("cost") else f"bigint_sum({expression})"
    return f"{total} AS {name}"


SUMS = ", ".join(total(name, name) for name in AMOUNTS_OF_ROW)
"""The sum of each amount."""
