"""Warnings that repeat, as the log of a process has them."""

from __future__ import annotations

import io
import json
import logging
from types import SimpleNamespace
from typing import Any

import pytest

from headrace.telemetry.context import bind
from headrace.telemetry.log_formats import JsonFormatter
from headrace.telemetry.logs import Lines


class Log:
    """The log of a process whose clock the test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("headrace.telemetry.repeats.time", SimpleNamespace(monotonic=lambda: self.now))
        self._stream = io.StringIO()
        lines = Lines()
        lines.setStream(self._stream)
        lines.setFormatter(JsonFormatter("api"))
        self.logger, self.another = (logging.getLogger(f"tests.{name}") for name in ("repeats", "another"))
        for logger in (self.logger, self.another):
            logger.handlers = [lines]
            logger.setLevel(logging.INFO)

    @property
    def lines(self) -> list[tuple[str, int | None]]:
        """The message of each line, and how often it has repeated."""
        return [(line["message"], line.get("repeated")) for line in self.objects]

    @property
    def objects(self) -> list[dict[str, Any]]:
        """The lines."""
        return [json.loads(line) for line in self._stream.getvalue().splitlines()]


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    return Log(monkeypatch)


def test_a_warning_that_repeats_is_written_once_and_then_its_count(log: Log) -> None:
    for number in range(1000):
        with bind(request=f"req_{number}"):
            log.logger.warning("Postgres is unavailable: %s", "refused")
    assert log.lines == [("Postgres is unavailable: refused", None)]
    log.now += 11
    with bind(request="req_later"):
        log.logger.info("a request")
    assert log.lines[1:] == [("Postgres is unavailable: refused", 999), ("a request", None)]
    assert [line.get("request") for line in log.objects] == ["req_0", None, "req_later"]


def test_one_that_goes_on_has_a_line_and_a_count_for_each_time(log: Log) -> None:
    for _ in range(5):
        for _ in range(100):
            log.logger.warning("full")
        log.now += 11
    assert log.lines == [("full", None), *[("full", 99), ("full", None)] * 4]


def test_different_warnings_are_all_written(log: Log) -> None:
    for number in range(1000):
        log.logger.warning("job_%d may have been accepted", number)
    log.another.warning("job_0 may have been accepted")
    assert len(log.lines) == 1001


def test_errors_and_lines_of_requests_are_all_written(log: Log) -> None:
    for _ in range(3):
        log.logger.info("a request")
        log.logger.error("a request failed", exc_info=ValueError())
    assert len(log.lines) == 6
