from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import UpstreamError
from headrace.providers.sse import EventReader

STREAM = b': hello\ndata: {"a":1}\n\nevent: x\nid: 3\ndata: {"b":\ndata: 2}\n\n: only a comment\n\ndata:[DONE]\n\n'
EVENTS = [(b"", b'{"a":1}'), (b"x", b'{"b":\n2}'), (b"", b"[DONE]")]


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"], ids=["lf", "crlf", "cr"])
@given(cuts=st.sets(st.integers(0, 2 * len(STREAM)), max_size=30))
def test_events_are_the_same_however_the_bytes_are_split(line_end: bytes, cuts: set[int]) -> None:
    stream = STREAM.replace(b"\n", line_end)
    places = sorted({min(cut, len(stream)) for cut in cuts} | {0, len(stream)})
    reader = EventReader()
    pieces = [stream[start:end] for start, end in pairwise(places)]
    events = [event for piece in pieces for event in reader.feed(piece)]
    assert events + reader.close() == EVENTS


def test_an_empty_piece_between_two_line_ends_changes_nothing() -> None:
    reader = EventReader()
    pieces = [b"data: one\n", b"", b"\ndata: two\n", b"", b"", b"\n"]
    assert [event for piece in pieces for event in reader.feed(piece)] == [(b"", b"one"), (b"", b"two")]


def test_a_last_event_without_a_blank_line_is_read_at_the_close() -> None:
    reader = EventReader()
    assert reader.feed(b"data: 1\n\ndata: 2") == [(b"", b"1")]
    assert reader.close() == [(b"", b"2")]
    assert reader.close() == []


def test_an_event_without_end_is_refused() -> None:
    reader = EventReader()
    for _ in range(4):
        reader.feed(b"x" * 1024 * 1024)
    with pytest.raises(UpstreamError):
        reader.feed(b"x")


def test_a_large_event_is_read_in_the_smallest_of_pieces() -> None:
    reader, text = EventReader(), b"x" * 300_000
    stream = b"data: " + text + b"\r\n\r\ndata: 2\r\n\r\n"
    events = [event for at in range(len(stream)) for event in reader.feed(stream[at : at + 1])]
    assert events == [(b"", text), (b"", b"2")]


PARTS = st.sampled_from(
    [b"data: 1", b"data:2", b"event: x", b": c", b"data: 3 ", b'{"error":1}', b"\n", b"\n\n", b"\n\n\n"]
)


@given(parts=st.lists(PARTS, max_size=12))
def test_events_that_come_together_are_those_that_come_byte_by_byte(parts: list[bytes]) -> None:
    stream = b"".join(parts)
    together, singly = EventReader(), EventReader()
    events = [event for at in range(len(stream)) for event in singly.feed(stream[at : at + 1])]
    assert together.feed(stream) + together.close() == events + singly.close()
