"""What never reaches a log: keys, passwords in URLs, and the values that a statement failed on."""

from __future__ import annotations

import re

# Keys of Headrace and of known providers. No line has one on purpose; errors of libraries and providers may.
_SECRET = re.compile(r"\b(hr_|sk-|AIza)[A-Za-z0-9_\-]{8,}|(?<=://)[^/\s:@]*:[^/\s@]+(?=@)|(?<=[Bb]earer )\S+")
# A line without any of these has none: most lines, and these are found faster.
_SIGNS = ("hr_", "sk-", "AIza", "://", "earer ")
# Postgres's lines with the values that a statement failed on, up to the next line of SQLAlchemy or a traceback.
_VALUES = re.compile(
    r"\n(?:DETAIL|CONTEXT):.*?(?=\n\[SQL:|\n\(Background on|\n\nThe above exception|\n\nDuring handling|\Z)", re.DOTALL
)


def redact(text: str) -> str:
    """Return the text without keys, and without passwords in URLs."""
    for sign in _SIGNS:
        if sign in text:
            return _SECRET.sub("***", text)
    return text


def redact_error(text: str) -> str:
    """Return an error's text without keys and passwords, and without the values of a failed statement."""
    return redact(_VALUES.sub("", text) if "\n" in text else text)
