"""The two formats of a log: text for people, and JSON for machines.

No text can forge a line. In text, control characters are escaped, and the lines of a traceback are indented. In JSON,
every character beyond ASCII is escaped, so that a record is always one line.

A message with named fields (`log.info("%(method)s …", {"method": …})`) has them in JSON as members of their own.
"""

from __future__ import annotations

import json
import logging
import re
import time
from typing import Any

from headrace.telemetry.context import bound
from headrace.telemetry.redaction import redact, redact_error

# Characters that could end a line, reorder it on a terminal, or not be encoded.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")
_encode = json.JSONEncoder(ensure_ascii=True, default=str).encode


def escape(text: str) -> str:
    """Return the text on one line, with each unprintable character as Python would write it."""
    if text.isascii() and text.isprintable():
        return text
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class TextFormatter(logging.Formatter):
    """Writes a record on a line of its own, and its traceback on indented lines after it."""

    def __init__(self, label: str = "") -> None:
        """Begin each line with a label."""
        super().__init__()
        self._label = label
        self._indent = f"\n{label}  | "
        self._second = 0
        self._rendered = ""

    def format(self, record: logging.LogRecord) -> str:
        """Return time, level, logger and message, the ids that the line belongs to, and how often it has repeated."""
        second = int(record.created)
        if second != self._second:  # lines of one second share all but its milliseconds
            self._second, self._rendered = second, time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second))
        message = redact_error(record.getMessage())
        line = f"{self._rendered},{int(record.msecs):03} {record.levelname} {record.name}: {message}"
        for name, value in bound().items():
            line += f" {name}={value}"
        if (repeated := record.__dict__.get("repeated")) is not None:
            line += f" repeated={repeated}"
        line = self._label + escape(line)
        if record.exc_info:
            line += self._indent + self.formatException(record.exc_info)
        return line

    def formatException(self, ei: Any) -> str:  # noqa: N802  (logging's name)
        """Return a traceback whose lines but the first are indented."""
        return self._indent.join(map(escape, redact_error(super().formatException(ei)).split("\n")))


class JsonFormatter(logging.Formatter):
    """Writes a record as one JSON object on one line."""

    def __init__(self, part: str) -> None:
        """Format the log of a process of the service: api, worker, scheduler or migrate."""
        super().__init__()
        self._part = part

    def format(self, record: logging.LogRecord) -> str:
        """Return the object: time, level, logger, part, message, its ids, its fields, `repeated` and `exception`."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(int(record.created)))
        document: dict[str, Any] = {
            "time": f"{seconds}.{int(record.msecs):03}Z",
            "level": record.levelname,
            "logger": record.name,
            "part": self._part,
            "message": redact_error(record.getMessage()),
            **bound(),
        }
        if isinstance(record.args, dict):
            for name, value in record.args.items():
                match value:
                    case str():
                        document[name] = redact(value)
                    case float():
                        document[name] = round(value, 3)
                    case _:
                        document[name] = value
        if (repeated := record.__dict__.get("repeated")) is not None:
            document["repeated"] = repeated
        if record.exc_info:
            document["exception"] = redact_error(self.formatException(record.exc_info))
        return _encode(document)
