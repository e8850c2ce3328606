"""What the lines of a log belong to: the ids of the request, the job, the attempt, the account and the trace."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar

_NONE: Mapping[str, str | int] = {}
_bound: ContextVar[dict[str, str | int] | None] = ContextVar("headrace_log_context", default=None)


class bind:  # noqa: N801  (it is used as a function; a generator would take five times its memory for each stream)
    """Add fields, such as `job=job_…`, to every line that is logged within, also by tasks that start within."""

    __slots__ = ("_fields", "_token")

    def __init__(self, **fields: str | int) -> None:
        self._fields: Mapping[str, str | int] = fields

    def __enter__(self) -> None:
        """Add the fields."""
        self._token = _bound.set({**bound(), **self._fields})
        self._fields = _NONE

    def __exit__(self, *_: object) -> None:
        """Remove them."""
        _bound.reset(self._token)


def note(**fields: str | int) -> None:
    """Add fields that became known only inside of the innermost `bind`, to every further line of it."""
    if (fields_of_bind := _bound.get()) is not None:
        fields_of_bind.update(fields)


def bound() -> Mapping[str, str | int]:
    """Return the fields of a line that is logged now."""
    return _bound.get() or _NONE
