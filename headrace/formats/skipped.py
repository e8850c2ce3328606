"""What providers sent that we do not know: skipped, but counted, and told once each."""

from __future__ import annotations

import logging
import re
from collections import Counter

# What a provider may have a name of: no sentence, so no prompt that it quotes.
_NOT_OF_A_NAME = re.compile(r"[^A-Za-z0-9 _.:/\-]")
_MOST_NAMES = 1000

log = logging.getLogger(__name__)

SKIPPED: Counter[tuple[str, str]] = Counter()
"""How often this process has skipped what, by format."""


def skip(kind: str, what: str) -> None:
    """Count something of a format that is newer than us."""
    name = (kind, _NOT_OF_A_NAME.sub("?", what[:60]))
    if name not in SKIPPED and len(SKIPPED) >= _MOST_NAMES:
        return
    SKIPPED[name] += 1
    if SKIPPED[name] == 1:
        log.warning("skipped from a provider that speaks %s: %s", *name)
