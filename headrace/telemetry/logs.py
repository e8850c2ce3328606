"""Logs: one line an event on standard error, as text or as JSON, with the request and the job that it belongs to."""

from __future__ import annotations

import logging
import sys
from contextvars import Context
from types import TracebackType
from typing import TextIO

from headrace.settings import Settings
from headrace.telemetry.log_formats import JsonFormatter, TextFormatter
from headrace.telemetry.repeats import Repeats

log = logging.getLogger(__name__)


def configure_logging(settings: Settings, *, part: str, label: str = "") -> None:
    """Send the process's log to standard error; called once, when a part starts. Uncaught errors go there too.

    `label` is what each line of a log as text begins with.
    """
    handler = Lines()
    handler.setFormatter(JsonFormatter(part) if settings.log_format == "json" else TextFormatter(label))
    level = logging.getLevelNamesMapping()[settings.log_level]
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for noisy in ("httpx", "httpcore", "celery", "kombu", "alembic.runtime.plugins", "asyncio"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, level))
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    # No line shows these, and each line would pay for them.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None  # noqa: SLF001  (the way that logging's documentation names)


class Lines(logging.StreamHandler[TextIO]):
    """Writes to standard error, which needs no flush: Python writes each line of it once the line ends."""

    def __init__(self) -> None:
        super().__init__()
        self._repeats = Repeats()

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, unless it is a warning that repeats; before it the counts of warnings that did."""
        for counted in self._repeats.due():
            Context().run(super().emit, counted)  # without the ids of what logs now
        if not self._repeats.is_repeat(record):
            super().emit(record)

    def flush(self) -> None:
        """Do nothing."""


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    log.critical("this process ends with an uncaught error", exc_info=(kind, error, trace))
