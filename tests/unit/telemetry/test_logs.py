"""The form of a log line, for any logged text."""

from __future__ import annotations

import logging

import pytest

from headrace.errors import UpstreamRefusedError
from headrace.telemetry.logs import bind, log_formatter

FORGED = "2026-11-27 00:00:00,000 WARNING scheduler.main: forged"


def rendered(message: str, *args: object, error: BaseException | None = None) -> list[str]:
    info = None if error is None else (type(error), error, error.__traceback__)
    record = logging.LogRecord("test", logging.WARNING, __file__, 1, message, args, info)
    return log_formatter().format(record).split("\n")


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
    ("code", "said"), [("context_length_exceeded", " context_length_exceeded"), ("MY PROMPT", ""), (None, "")]
)
def test_the_log_of_an_error_has_no_text_of_the_provider(code: str | None, said: str) -> None:
    error = UpstreamRefusedError("MY PROMPT\n", param="MY PROMPT", code=code, status=422)
    assert error.summary() == f"UpstreamRefusedError 422 invalid_request_error{said}"
