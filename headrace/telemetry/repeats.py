"""Warnings that repeat: the first is written, the next ones are counted, and their number follows.

An unavailable store may cause a warning for each request, which would hide all other lines and fill the disk. Errors
are unexpected, and each is written; so is each warning with a traceback.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

# Seconds for which a warning with the same text is counted, and not written.
_SECONDS = 10.0
# Different warnings that are remembered at a time; any further ones are written.
_MOST = 256


@dataclass(slots=True)
class _Repeated:
    """A warning that was written a moment ago."""

    until: float
    count: int = 0
    last: logging.LogRecord | None = None


class Repeats:
    """The warnings of the last seconds of one process."""

    def __init__(self) -> None:
        """Know of none yet."""
        self._recent: dict[tuple[str, str], _Repeated] = {}
        self._due = math.inf

    def due(self) -> Sequence[logging.LogRecord]:
        """Return the last record of each warning whose time is over and that came again, with `repeated`, its count."""
        if not self._recent or (now := time.monotonic()) < self._due:
            return ()
        over = [key for key, repeated in self._recent.items() if repeated.until <= now]
        ended = [self._recent.pop(key) for key in over]
        self._due = min((repeated.until for repeated in self._recent.values()), default=math.inf)
        return [_counted(repeated.last, repeated.count) for repeated in ended if repeated.last is not None]

    def is_repeat(self, record: logging.LogRecord) -> bool:
        """Return whether a record is a warning that was written a moment ago. Then it is counted."""
        if record.levelno != logging.WARNING or record.exc_info:
            return False
        key = (record.name, record.getMessage())
        repeated = self._recent.get(key)
        if repeated is not None:
            repeated.count += 1
            repeated.last = record
            return True
        if len(self._recent) < _MOST:
            until = time.monotonic() + _SECONDS
            self._recent[key] = _Repeated(until)
            self._due = min(self._due, until)
        return False


def _counted(record: logging.LogRecord, count: int) -> logging.LogRecord:
    counted = copy.copy(record)
    counted.__dict__["repeated"] = count
    return counted
