"""How a stream's events are put together to pieces."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from api.http.sse import PING_AFTER_ID, EventWriter, LiveEvents, render_event
from headrace.events.job_events import Cursor, Deltas

LARGEST = 16 * 1024
EVENTS = st.lists(
    st.one_of(
        st.sampled_from([10, 4000, LARGEST - 9, LARGEST - 8, LARGEST - 7, 3 * LARGEST]).map(
            lambda size: render_event(b"x" * size)
        ),
        st.just(render_event(b'"\xe2\x80\xa8"')),
        st.just(PING_AFTER_ID),
    ),
    max_size=12,
)


class Sent:
    """What a client would get, piece by piece."""

    takes_more = True

    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    def write(self, piece: bytes) -> None:
        self.pieces.append(piece)

    async def send(self, message: Any) -> None:
        if message["more_body"]:
            self.pieces.append(message["body"])


@given(events=EVENTS)
async def test_events_are_written_whole_in_pieces_that_a_client_gets_in_one_read(events: list[bytes]) -> None:
    live, written = Sent(), Sent()
    client: Any = live
    assert LiveEvents(client, lambda _: events)(Deltas(Cursor(1, 1), []))
    await EventWriter(written.send).write(events)
    assert live.pieces == written.pieces
    assert b"".join(live.pieces) == b"".join(events).replace(b"\xe2\x80\xa8", b"\\u2028")
    for piece in live.pieces:
        assert piece
        assert piece.endswith((b"\n\n", PING_AFTER_ID))
        if len(piece) > LARGEST:
            assert piece.removeprefix(PING_AFTER_ID * piece.count(PING_AFTER_ID)).count(b"\n\n") == 1
