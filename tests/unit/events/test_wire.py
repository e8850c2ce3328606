from __future__ import annotations

import asyncio
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.events.listener import Listener, ListenerClosedError
from headrace.events.wire import Frame, unpack

FRAMES = st.builds(
    Frame,
    job_id=st.from_regex(r"job_[0-9a-f]{32}", fullmatch=True),
    attempt=st.integers(0, 1000),
    first_seq=st.integers(0, 10**6),
    kind=st.sampled_from(["started", "retrying", "delta", "completed", "failed"]),
    lines=st.lists(st.binary(max_size=50).map(lambda line: line.replace(b"\n", b" ")), max_size=5),
)


@given(st.lists(FRAMES, max_size=10))
def test_frames_packed_together_come_out_as_they_went_in(frames: list[Frame]) -> None:
    assert list(unpack(b"".join(frame.pack() for frame in frames))) == frames


def test_bytes_that_are_no_frames_are_refused() -> None:
    with pytest.raises(ValueError, match=r"unpack|invalid literal"):
        list(unpack(b"no frame\n"))


def frame(seq: int, size: int = 10) -> Frame:
    return Frame("job_" + "0" * 32, 1, seq, "delta", [b"x" * size])


async def test_a_reader_that_overflows_is_sent_to_replay_and_then_goes_on() -> None:
    listener = Listener("job", own=True, limit_bytes=500, patience_seconds=60)
    listener.put(frame(1))
    listener.put(frame(2, size=1000))
    assert await listener.get() is None
    listener.put(frame(3))
    assert await listener.get() == [frame(3)]


async def test_a_reader_that_waits_hears_of_silence_after_its_patience() -> None:
    listener = Listener("job", own=True, limit_bytes=10_000, patience_seconds=60)
    loop = asyncio.get_running_loop()
    for _ in range(2):
        reading = asyncio.create_task(listener.get())
        await asyncio.sleep(0)
        began = loop.time()
        listener.end_silence(began + 59)
        await asyncio.sleep(0)
        assert not reading.done()
        listener.end_silence(began + 60)
        assert await reading == []


async def test_a_reader_that_does_not_wait_hears_of_no_silence() -> None:
    listener = Listener("job", own=True, limit_bytes=10_000, patience_seconds=60)
    listener.put(frame(1))
    assert await listener.get() == [frame(1)]
    listener.end_silence(math.inf)
    reading = asyncio.create_task(listener.get())
    await asyncio.sleep(0)
    listener.put(frame(2))
    listener.end_silence(math.inf)
    assert await reading == [frame(2)]


async def test_a_reader_that_is_to_hear_of_silence_sooner_does() -> None:
    listener = Listener("job", own=True, limit_bytes=10_000, patience_seconds=3600)
    reading = asyncio.create_task(listener.get())
    await asyncio.sleep(0)
    listener.patience_seconds = 1
    listener.end_silence(asyncio.get_running_loop().time() + 2)
    assert await reading == []


async def test_frames_put_back_come_before_later_ones() -> None:
    listener = Listener("job", own=True, limit_bytes=10_000, patience_seconds=60)
    listener.put(frame(3))
    listener.put_back([frame(1), frame(2)])
    assert await listener.get() == [frame(1), frame(2), frame(3)]


async def test_closing_wakes_a_reader_that_waits() -> None:
    listener = Listener("job", own=True, limit_bytes=500, patience_seconds=60)
    reading = asyncio.create_task(listener.get())
    await asyncio.sleep(0)
    listener.close()
    with pytest.raises(ListenerClosedError):
        await reading


async def test_only_a_reader_that_is_behind_with_nothing_to_read_is_sent_to_postgres() -> None:
    listener = Listener("job", own=True, limit_bytes=10_000, patience_seconds=60)
    listener.position = (1, 5)
    reading = asyncio.create_task(listener.get())
    await asyncio.sleep(0)
    listener.check((1, 5), ended=False)
    listener.end_silence(math.inf)
    assert await reading == []
    listener.check((1, 6), ended=False)
    assert await listener.get() is None
    listener.put(frame(6))
    listener.check((1, 6), ended=False)
    assert await listener.get() == [frame(6)]


async def test_a_replay_covers_what_was_missed_before_it_and_does_not_begin_for_a_reader_that_has_left() -> None:
    listener = Listener("job", own=False, limit_bytes=500, patience_seconds=60)
    listener.miss()
    listener.begin_replay()
    listener.put(frame(1))
    assert await listener.get() == [frame(1)]
    listener.close()
    with pytest.raises(ListenerClosedError):
        listener.begin_replay()
