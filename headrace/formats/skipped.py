"""Parts of providers' answers that Headrace does not know: skipped, counted, and logged once each."""

from __future__ import annotations

import logging
import re
from collections import Counter

# Characters that a name does not have. Sentences lose theirs, so that no quoted prompt gets into the log unchanged.
_NOT_OF_A_NAME = re.compile(r"[^A-Za-z0-9 _.:/\-]")
# Names that are counted, at most.
_MOST_NAMES = 1000

log = logging.getLogger(__name__)

SKIPPED: Counter[tuple[str, str]] = Counter()
"""How often this process has skipped a part, by format and name."""


def skip(kind: str, what: str) -> None:
    """Count a part of a format that is newer than Headrace."""
    name = (kind, _NOT_OF_A_NAME.sub("?", what[:60]))
    if name not in SKIPPED and len(SKIPPED) >= _MOST_NAMES:
        return
    SKIPPED[name] += 1
    if SKIPPED[name] == 1:
        log.warning("skipped from a provider that speaks %s: %s", *name)
