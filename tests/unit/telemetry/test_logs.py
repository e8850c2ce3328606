"""The form of a log line, for any logged text."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any

import pytest

from headrace.errors import UpstreamRefusedError
from headrace.telemetry.context import bind, note
from headrace.telemetry.log_formats import JsonFormatter, TextFormatter

FORGED = "2026-11-27 00:00:00,000 WARNING scheduler.main: forged"


def a_record(message: str, *args: object, error: BaseException | None = None) -> logging.LogRecord:
    info = None if error is None else (type(error), error, error.__traceback__)
    return logging.LogRecord("test", logging.WARNING, __file__, 1, message, args, info)


def rendered(message: str, *args: object, error: BaseException | None = None) -> list[str]:
    return TextFormatter().format(a_record(message, *args, error=error)).split("\n")


def as_json(message: str, *args: object, error: BaseException | None = None) -> dict[str, Any]:
    """Return the object of a record's only line."""
    text = JsonFormatter("api").format(a_record(message, *args, error=error))
    assert text.isascii()
    [line] = text.splitlines()
    document: dict[str, Any] = json.loads(line)
    return document


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n", "\x0b", "\x0c", "\x85", "\u2028", "\u2029"])
def test_no_text_begins_a_line_of_its_own(end: str) -> None:
    [line] = rendered("it said %s", f"a{end}{FORGED}")
    assert len(line.splitlines()) == 1
    with bind(job=f"j{end}{FORGED}"):
        [line] = rendered("it said %s", "a")
    assert len(line.splitlines()) == 1


def test_no_text_moves_the_cursor_or_fails_to_be_written() -> None:
    [line] = rendered("it said %s", "\x1b[2K\x08\u202e\ud800 ä 漢 🙂")
    assert r"\x1b[2K\x08\u202e\ud800 ä 漢 🙂" in line
    assert line.encode()


def test_each_line_of_a_record_begins_with_the_label() -> None:
    error = ValueError(f"a\n{FORGED}")
    lines = TextFormatter("api       ").format(a_record("it broke", error=error)).split("\n")
    assert len(lines) > 2
    assert all(line.startswith("api       ") for line in lines)
    assert all(line.startswith("api         | ") for line in lines[1:])


def test_a_traceback_stands_indented_below_its_line() -> None:
    first, *below = rendered("it broke", error=ValueError(f"a\n{FORGED}\r{FORGED}"))
    assert first.endswith("it broke")
    assert any("ValueError: a" in line for line in below)
    assert all(line.startswith("  | ") for line in below)
    assert not any("\r" in line for line in below)


def test_the_values_of_a_failed_statement_are_left_out() -> None:
    told = 'new row violates "c"\nDETAIL:  Failing row contains (job_1,\nMY PROMPT).\n[SQL: INSERT]'
    [line] = rendered("failed: %s", told)
    assert "MY PROMPT" not in line
    assert "[SQL: INSERT]" in line
    lines = rendered("failed", error=RuntimeError(told))
    assert "MY PROMPT" not in "".join(lines)
    assert "  | [SQL: INSERT]" in lines


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("context_length_exceeded", " context_length_exceeded"),
        ("MY PROMPT", ""),
        ("PROMPT", ""),
        ("prompt1", ""),
        (None, ""),
    ],
)
def test_the_log_of_an_error_has_no_text_of_the_provider(code: str | None, said: str) -> None:
    error = UpstreamRefusedError("MY PROMPT\n", param="MY PROMPT", code=code, status=422)
    assert error.summary() == f"UpstreamRefusedError 422 invalid_request_error{said}"


def test_a_text_line_has_time_level_logger_message_and_ids() -> None:
    record = a_record("%(method)s: %(status)d", {"method": "GET", "status": 200})
    with bind(request="req_1"):
        note(job="job_1", attempt=2)
        line = TextFormatter().format(record)
    at = datetime.fromtimestamp(int(record.created)).astimezone()
    assert line == (
        f"{at:%Y-%m-%d %H:%M:%S},{int(record.msecs):03} WARNING test: GET: 200 request=req_1 job=job_1 attempt=2"
    )


def test_a_json_line_has_its_ids_and_its_fields_as_members() -> None:
    before = datetime.now(UTC)
    with bind(request="req_1"):
        line = as_json("%(method)s: %(status)d", {"method": "GET", "status": 200, "seconds": 0.5})
    assert abs((datetime.fromisoformat(line.pop("time")) - before).total_seconds()) < 60
    assert line == {
        "level": "WARNING",
        "logger": "test",
        "part": "api",
        "message": "GET: 200",
        "request": "req_1",
        "method": "GET",
        "status": 200,
        "seconds": 0.5,
    }


@pytest.mark.parametrize("text", [f"a\n{FORGED}\r\x85\u2028", "\x1b[2K\x08\u202e\ud800 ä 漢 🙂", '"}\n{"a": "'])
def test_any_text_is_one_json_line(text: str) -> None:
    with bind(job=text):
        line = as_json("%s", text, error=ValueError(text))
    assert line["message"] == line["job"] == text
    assert f"ValueError: {text}" in line["exception"]


def test_no_secret_is_in_a_json_line() -> None:
    secrets = "sk-0123456789abc", "redis://:hunter2@host", "Bearer abcdef"
    told = f"{secrets}\nDETAIL:  Failing row contains (MY PROMPT).\n[SQL: INSERT]"
    line = as_json("%(error)s", {"error": " ".join(secrets)}, error=RuntimeError(told))
    for text in ("sk-0", "hunter2", "abcdef", "MY PROMPT"):
        assert text not in str(line)


def test_what_is_noted_outside_of_a_bind_belongs_to_no_line() -> None:
    note(job="job_1")
    with bind(request="req_1"):
        note(job="job_2")
    assert "job" not in as_json("a")
