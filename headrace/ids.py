"""Ids: a prefix that says what it is, 48 bits of time that sort by age, and 80 random bits that nobody guesses."""

from __future__ import annotations

import os
import re
import time

_ID = re.compile(r"[a-z]+_[0-9a-f]{32}")


def new_id(prefix: str) -> str:
    """Return a fresh id such as `job_019a…`: `prefix`, `_`, then 32 hexadecimal digits that sort by creation time."""
    return f"{prefix}_{time.time_ns() // 1_000_000:012x}{os.urandom(10).hex()}"


def is_id(text: str, prefix: str) -> bool:
    """Tell whether `text` has the form of an id with this prefix; it says nothing on whether it exists."""
    return text.startswith(prefix + "_") and _ID.fullmatch(text) is not None


def completion_id(job_id: str) -> str:
    """Return the id of a job's completion, and of each of its chunks."""
    return "chatcmpl-" + job_id.removeprefix("job_")


def job_id_of(completion_id: str) -> str:
    """Return the id of the job that made a completion."""
    return "job_" + completion_id.removeprefix("chatcmpl-")
