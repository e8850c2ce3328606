"""The events of a response whose first attempt was lost, and of one that is silent for a while."""

from __future__ import annotations

import json

import httpx2
import openai

from api.jobs.response_events import ResponseEvents
from headrace.errors import UnavailableError
from headrace.events.job_events import START, Cursor, Deltas, Ended, Event, Retrying, Silence, Started
from headrace.formats.responses.events import render_line, render_lines
from headrace.ids import new_id
from headrace.jobs.state import State
from headrace.usage.spent import Charge

LINE = b'{"type":"response.output_text.delta","delta":"a"}'
RESPONSE = b'{"id":"resp_1","object":"response","created_at":1,"status":"completed","output":[]}'


def kinds(*events: Event) -> list[tuple[int, str]]:
    """Return the numbers and types of what a reader of a foreground response gets for a job's events."""
    written = ResponseEvents({"model": "fake", "input": []}, new_id("job"), 1, background=False)
    stream = b"".join(block for event in events if not written.over for block in written.render(event))
    told = [json.loads(block.partition(b"data: ")[2]) for block in stream.split(b"\n\n")[:-1]]
    return [(event["sequence_number"], event["type"]) for event in told]


def first_attempt(*, kept: bool) -> list[Event]:
    """Return the events of an attempt that is over after one line, and of the start of the next."""
    return [Started(Cursor(1, 0)), Deltas(Cursor(1, 1), [LINE]), Retrying(1, kept=kept), Started(Cursor(2, 1))]


def test_a_replay_goes_on_from_a_lost_attempt_to_the_next() -> None:
    end = Ended(Cursor(2, 3), State.COMPLETED, RESPONSE, None, Charge(0, None))
    assert kinds(*first_attempt(kept=True), Deltas(Cursor(2, 2), [LINE]), end) == [
        (0, "response.created"),
        (1, "response.in_progress"),
        (2, "response.output_text.delta"),
        (3, "response.output_text.delta"),
        (4, "response.completed"),
    ]


def test_a_live_reader_that_may_have_lost_lines_gets_a_failure() -> None:
    assert kinds(*first_attempt(kept=False))[2:] == [
        (2, "response.output_text.delta"),
        (3, "response.failed"),
    ]


def test_events_in_a_row_are_numbered_like_single_ones() -> None:
    other = LINE.replace(b"output_text", b"refusal")
    lines = [LINE, LINE, other, LINE] * 5
    for first in (2, 500, 10_000):
        singly = [render_line(line, number) for number, line in enumerate(lines, first)]
        assert render_lines(lines, first) == b"".join(singly)
    assert render_line(other, 512) == (
        b"event: response.refusal.delta\nid: 512\n"
        b'data: {"sequence_number":512,"type":"response.refusal.delta","delta":"a"}\n\n'
    )
    assert render_lines((), 3) == b""


def test_a_comment_is_no_event_to_openais_client() -> None:
    """The client keeps the last id, and takes a blank line after it for the end of one more event."""
    written = ResponseEvents({"model": "fake", "input": "Hi"}, new_id("job"), 1, background=True)
    sent = [block for event in (Silence(), Started(START), Silence()) for block in written.render(event)]
    assert b"".join(sent).count(b": ping\n") == 2
    served = httpx2.MockTransport(lambda _: httpx2.Response(200, content=b"".join(sent)))
    with openai.OpenAI(api_key="k", http_client=httpx2.Client(transport=served), max_retries=0) as client:
        read = list(client.responses.create(model="fake", input="Hi", background=True, stream=True))
    assert [event.type for event in read] == ["response.created", "response.queued", "response.in_progress"]


def test_an_error_outside_of_the_log_takes_no_event_s_place() -> None:
    written = ResponseEvents({"model": "fake", "input": []}, new_id("job"), 1, background=True)
    written.render(Started(Cursor(1, 0)))
    read = written.render(Deltas(Cursor(1, 1), [LINE]))
    last = json.loads(read[-1].partition(b"data: ")[2])["sequence_number"]
    error = written.refuse(UnavailableError("This server is shutting down."))
    assert b"\nid:" not in error
    assert json.loads(error.partition(b"data: ")[2])["sequence_number"] == last
