"""Logs: one line an event on standard error, with the request and the job that it belongs to."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator
from contextvars import ContextVar

_context: ContextVar[dict[str, str]] = ContextVar("headrace_log_context", default={})  # noqa: B039  never mutated

# Keys of ours and of the providers that we know. Nothing logs one on purpose; this is for what others' errors carry.
_SECRET = re.compile(r"\b(hr_|sk-|AIza)[A-Za-z0-9_\-]{8,}|(?<=://)[^/\s:@]*:[^/\s@]+(?=@)|(?<=[Bb]earer )\S+")


def redact(text: str) -> str:
    """Return the text without what looks like a key or a password in a URL."""
    return _SECRET.sub("***", text)


@contextlib.contextmanager
def bind(**fields: str) -> Iterator[None]:
    """Put fields, such as `job=job_…`, into every line that is logged within."""
    token = _context.set({**_context.get(), **fields})
    try:
        yield
    finally:
        _context.reset(token)


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {name}={value}" for name, value in _context.get().items())
        return redact(super().format(record)) + fields


def configure_logging(level: str) -> None:
    """Send the process's log to standard error; called once, when a part starts."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for noisy in ("httpx", "httpcore", "celery", "kombu", "alembic.runtime.plugins", "asyncio"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLevelName(level.upper())))
