"""Ids: a prefix for the kind of thing, 48 bits of time, by which ids sort by age, and 80 random bits."""

from __future__ import annotations

import os
import re
import time

AGENT_PREFIX = "agent_"
"""The beginning of a model name that is an agent's id."""

_DIGITS = re.compile(r"[0-9a-f]{32}")


def new_id(prefix: str) -> str:
    """Return a fresh id such as `job_019a…`: `prefix`, a separator, then 32 hexadecimal digits that sort by age.

    The separator is `_`, except for files, whose ids OpenAI writes as `file-…`.
    """
    return f"{prefix}{_separator(prefix)}{time.time_ns() // 1_000_000:012x}{os.urandom(10).hex()}"


def is_id(text: str, prefix: str) -> bool:
    """Return whether `text` has the form of an id with this prefix. No thing with this id need exist."""
    return text.startswith(prefix + _separator(prefix)) and _DIGITS.fullmatch(text, len(prefix) + 1) is not None


def id_before(seconds: float, prefix: str = "job") -> str:
    """Return a text that sorts after every id made more than `seconds` ago, and before every later id."""
    return f"{prefix}{_separator(prefix)}{max(0, int((time.time() - seconds) * 1000)):012x}"


def created_at(an_id: str) -> float:
    """Return the time at which an id was made, in Unix seconds."""
    return int(an_id[-32:-20], 16) / 1000


def _separator(prefix: str) -> str:
    return "-" if prefix == "file" else "_"


def completion_id(job_id: str) -> str:
    """Return the id of a job's completion, and of each of its chunks."""
    return "chatcmpl-" + job_id.removeprefix("job_")


def job_id_of(completion_id: str) -> str:
    """Return the id of the job that made a completion."""
    return "job_" + completion_id.removeprefix("chatcmpl-")


def batch_line_id(job_id: str) -> str:
    """Return the id of a line in a batch's output, made from its job's."""
    return "batch_req_" + job_id.removeprefix("job_")


def job_id_of_line(line_id: str) -> str:
    """Return the id of the job of a line in a batch's output."""
    return "job_" + line_id.removeprefix("batch_req_")


def response_id(job_id: str) -> str:
    """Return the id of a job's response."""
    return "resp_" + job_id.removeprefix("job_")


def job_id_of_response(response_id: str) -> str:
    """Return the id of the job that made a response."""
    return "job_" + response_id.removeprefix("resp_")


FIRST_INPUT_ITEM = 0x8000
"""The number of the first input item of a response. The numbers below are those of its output items."""

_ITEM_ID = re.compile(r"[a-z]+_([0-9a-f]{32})[0-9a-f]{4}")


def item_id(prefix: str, job_id: str, number: int) -> str:
    """Return the id of an item of a job's response, such as `msg_019a…0000`: the job's digits and the item's number.

    Output item number k has number k, over all attempts of the job; input item number i has `FIRST_INPUT_ITEM` + i.
    """
    return f"{prefix}_{job_id.removeprefix('job_')}{number:04x}"


def job_id_of_item(item_id: str) -> str | None:
    """Return the id of the job in whose response an item is, or None if the id is not one of Headrace's items."""
    match = _ITEM_ID.fullmatch(item_id)
    return None if match is None else "job_" + match[1]
