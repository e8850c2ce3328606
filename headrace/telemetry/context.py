"""What the lines of a log belong to: the ids of the request, the job, the attempt, the account and the trace."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar

_bound: ContextVar[dict[str, str | int] | None] = ContextVar("headrace_log_context", default=None)


@contextlib.contextmanager
def bind(**fields: str | int) -> Iterator[None]:
    """Add fields, such as `job=job_…`, to every line that is logged within, also by tasks that start within."""
    token = _bound.set({**bound(), **fields})
    try:
        yield
    finally:
        _bound.reset(token)


def note(**fields: str | int) -> None:
    """Add fields that became known only inside of the innermost `bind`, to every further line of it."""
    if (fields_of_bind := _bound.get()) is not None:
        fields_of_bind.update(fields)


def bound() -> Mapping[str, str | int]:
    """Return the fields of a line that is logged now."""
    return _bound.get() or {}
