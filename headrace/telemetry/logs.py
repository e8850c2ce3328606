"""Logs: one line an event on standard error, with the request and the job that it belongs to.

No text can forge a line: control characters are escaped, and the lines of a traceback are indented.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

_context: ContextVar[dict[str, str]] = ContextVar("headrace_log_context", default={})  # noqa: B039  never mutated

# Keys of Headrace and of known providers. No line has one on purpose; errors of libraries and providers may.
_SECRET = re.compile(r"\b(hr_|sk-|AIza)[A-Za-z0-9_\-]{8,}|(?<=://)[^/\s:@]*:[^/\s@]+(?=@)|(?<=[Bb]earer )\S+")

# Characters that could end a line, reorder it on a terminal, or not be encoded.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")
# Postgres's lines with the values that a statement failed on, up to the next line of SQLAlchemy or a traceback.
_VALUES = re.compile(
    r"\n(?:DETAIL|CONTEXT):.*?(?=\n\[SQL:|\n\(Background on|\n\nThe above exception|\n\nDuring handling|\Z)", re.DOTALL
)
_TRACE_INDENT = "\n  | "


def redact(text: str) -> str:
    """Return the text without keys, and without passwords in URLs."""
    return _SECRET.sub("***", text)


@contextlib.contextmanager
def bind(**fields: str) -> Iterator[None]:
    """Add fields, such as `job=job_…`, to every line that is logged within."""
    token = _context.set({**_context.get(), **fields})
    try:
        yield
    finally:
        _context.reset(token)


def escape(text: str) -> str:
    """Return the text on one line, with each unprintable character as Python would write it."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class _Formatter(logging.Formatter):
    """Writes a record on a line of its own, and its traceback on indented lines after it."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  (logging's name)
        record.message = escape(redact(_VALUES.sub("", record.message)))
        fields = "".join(f" {name}={escape(value)}" for name, value in _context.get().items())
        return super().formatMessage(record) + fields

    def formatException(self, ei: Any) -> str:  # noqa: N802  (logging's name)
        lines = redact(_VALUES.sub("", super().formatException(ei))).split("\n")
        return _TRACE_INDENT.lstrip("\n") + _TRACE_INDENT.join(map(escape, lines))


def log_formatter() -> logging.Formatter:
    """Return the formatter of every record of this process."""
    return _Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")


def configure_logging(level: str) -> None:
    """Send the process's log to standard error; called once, when a part starts."""
    handler = logging.StreamHandler()
    handler.setFormatter(log_formatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for noisy in ("httpx", "httpcore", "celery", "kombu", "alembic.runtime.plugins", "asyncio"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLevelName(level.upper())))
