"""What providers sent that we do not know: skipped, but counted, and told once each."""

from __future__ import annotations

import logging
from collections import Counter

log = logging.getLogger(__name__)

SKIPPED: Counter[tuple[str, str]] = Counter()
"""How often this process has skipped what, by format."""


def skip(kind: str, what: str) -> None:
    """Count something of a format that is newer than us."""
    name = (kind, what[:100])
    SKIPPED[name] += 1
    if SKIPPED[name] == 1:
        log.warning("skipped from a provider that speaks %s: %s", *name)
