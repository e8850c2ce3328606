"""A reader of a log that goes on over all attempts, and has lines that Postgres never got."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.events import follow
from headrace.events.job_events import START, Cursor, Deltas, Ended, Retrying, Started
from headrace.events.listener import Listener
from headrace.events.wire import Frame
from headrace.jobs.records import Progress
from headrace.jobs.sql.read import Page
from headrace.jobs.state import State
from headrace.usage.spent import NOTHING

JOB = "job_" + "5" * 32
ERROR = '{"error":{"message":"The answer was interrupted."}}'
PROGRESS = Progress(State.FAILED, 1, False, 0, 0, None, ERROR, NOTHING, "responses")


@pytest.mark.parametrize("unwritten", [1, 2, 3])
async def test_a_reader_ahead_of_postgres_gets_the_end(monkeypatch: pytest.MonkeyPatch, unwritten: int) -> None:
    written = 2
    listener = Listener(JOB, own=True, limit_bytes=1000, patience_seconds=60)
    follower = follow._LogFollower(None, listener, START)  # type: ignore[arg-type]  # nothing is asked of it
    lines = [b"{}"] * (written + unwritten)
    events, missed = follower.take_all([Frame(JOB, 1, 0, "started", []), Frame(JOB, 1, 1, "delta", lines)])
    assert (len(events), missed) == (2, [])

    async def ended(*_: Any, **__: Any) -> Any:
        return PROGRESS

    async def nothing(*_: Any, **__: Any) -> Page:
        return Page([])

    async def length(*_: Any) -> int:
        return written

    monkeypatch.setattr(follow, "_progress_of", ended)
    monkeypatch.setattr(follow, "read_log", nothing)
    monkeypatch.setattr(follow, "read_log_length", length)
    [end] = await follower.replay()
    assert isinstance(end, Ended)
    assert (end.state, end.error, end.cursor > Cursor(1, len(lines))) == (State.FAILED, ERROR.encode(), True)
    assert follower.over


async def test_a_log_that_is_newer_than_the_job_s_state_voids_no_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replay reads the state, then the log: the job may have been claimed again in between."""
    listener = Listener(JOB, own=True, limit_bytes=1000, patience_seconds=60)
    follower = follow._LogFollower(None, listener, START)  # type: ignore[arg-type]  # nothing is asked of it

    async def queued(*_: Any, **__: Any) -> Any:
        return Progress(State.QUEUED, 1, False, 0, 0, None, None, NOTHING, "responses")

    async def log(*_: Any, **__: Any) -> Page:
        return Page([(1, 1, [b"{}"]), (2, 2, [b"{}"])])

    monkeypatch.setattr(follow, "_progress_of", queued)
    monkeypatch.setattr(follow, "read_log", log)
    events = await follower.replay()
    assert [type(event) for event in events] == [Started, Deltas, Retrying, Started, Deltas]
    live, missed = follower.take_all([Frame(JOB, 2, 3, "delta", [b"{}"])])
    assert (live, missed) == ([Deltas(Cursor(2, 3), [b"{}"])], [])


async def test_lines_too_large_for_a_message_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their frame comes without them, and the reader goes on live after it has read them from Postgres."""
    listener = Listener(JOB, own=True, limit_bytes=1000, patience_seconds=60)
    follower = follow._LogFollower(None, listener, START)  # type: ignore[arg-type]  # nothing is asked of it
    large, later = Frame(JOB, 1, 1, "delta", []), Frame(JOB, 1, 3, "delta", [b"{}"])
    events, missed = follower.take_all([Frame(JOB, 1, 0, "started", []), large, later])
    assert (events, missed) == ([Started(Cursor(1, 0))], [large, later])

    async def running(*_: Any, **__: Any) -> Any:
        return Progress(State.RUNNING, 1, True, 0, 0, None, None, NOTHING, "responses")

    async def log(*_: Any, **__: Any) -> Page:
        return Page([(1, 1, [b"{}", b"{}"])])

    monkeypatch.setattr(follow, "_progress_of", running)
    monkeypatch.setattr(follow, "read_log", log)
    assert await follower.replay() == [Deltas(Cursor(1, 1), [b"{}", b"{}"])]
    assert follower.take_all(missed) == ([Deltas(Cursor(1, 3), [b"{}"])], [])


async def test_frames_that_are_put_back_count_as_unread() -> None:
    listener = Listener(JOB, own=True, limit_bytes=1000, patience_seconds=60)
    listener.put_back([Frame(JOB, 1, 2, "delta", [b"x" * 900])])
    listener.put(Frame(JOB, 1, 3, "delta", [b"x" * 900]))
    assert await listener.get() is None, "it replays instead"
