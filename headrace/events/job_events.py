"""The events of a job as a reader gets them, and their ids.

An event's id is `attempt-seq`: `0-0` is `queued`, `n-0` the start of attempt n, `n-1` … its deltas, and the number
after the last delta its end. A job that ends outside of an attempt, in the queue or after its worker died, ends with
`n-0` for an attempt n that does not exist.

Some formats keep the deltas of all attempts as one log. Then numbers go on from one attempt to the next, a new attempt
voids no delta, and the end has the number after the log's last line.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from headrace.errors import invalid_parameter
from headrace.jobs.state import State
from headrace.usage.spent import Charge


class Cursor(NamedTuple):
    """The last event that a reader has."""

    attempt: int
    seq: int

    @classmethod
    def parse(cls, text: str, *, param: str) -> Cursor:
        """Read an event id.

        Raises:
            InvalidRequestError: It does not have the form of one.
        """
        match = re.fullmatch(r"([0-9]{1,6})-([0-9]{1,9})", text)
        if match is None:
            raise invalid_parameter(param, "an event id has the form 'attempt-seq'", code=None)
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.attempt}-{self.seq}"


START = Cursor(0, 0)


@dataclass(frozen=True, slots=True)
class Started:
    """A worker claimed the job."""

    cursor: Cursor


class Deltas(NamedTuple):
    """Lines of the answer in the job's format, numbered from `first.seq` on."""

    first: Cursor
    chunks: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class Retrying:
    """The attempt is over and the job starts again. The attempt's events are void, unless the format keeps its log."""

    attempt: int
    kept: bool = False
    """Whether the next attempt continues the log for the reader, as Postgres has every line that the reader has."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The job ended, with either a `response`, in its format, or an `error`, as JSON."""

    cursor: Cursor
    state: State
    response: bytes | None
    error: bytes | None
    charge: Charge


@dataclass(frozen=True, slots=True)
class Silence:
    """No event came for the listener's `patience_seconds`."""


Event = Started | Deltas | Retrying | Silence | Ended
