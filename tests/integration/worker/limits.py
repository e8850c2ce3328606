"""Providers as a worker's throttle sees them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Provider:
    """What a configuration says of a provider's limits."""

    max_concurrency: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    adaptive_concurrency: bool = True
