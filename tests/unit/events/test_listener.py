"""A reader's buffer, and frames that pass it by."""

from __future__ import annotations

import asyncio

import pytest

from headrace.events.listener import Listener
from headrace.events.wire import Frame
from tests.waiting import PATIENCE

JOB = "job_" + "7" * 32


def frame(seq: int) -> Frame:
    return Frame(JOB, 1, seq, "delta", [b"{}"])


@pytest.fixture
def listener() -> Listener:
    return Listener(JOB, own=True, limit_bytes=1000, patience_seconds=60)


async def test_a_frame_passes_by_only_while_the_reader_waits(listener: Listener) -> None:
    passed: list[Frame] = []

    def pass_on(frame: Frame) -> bool:
        passed.append(frame)
        return frame.first_seq < 3

    async with asyncio.timeout(PATIENCE):
        listener.put(frame(0))
        assert await listener.get(pass_on) == [frame(0)]
        reading = asyncio.create_task(listener.get(pass_on))
        await asyncio.sleep(0)
        for seq in range(1, 6):  # the third is not taken, and so wakes the reader
            listener.put(frame(seq))
        assert await reading == [frame(3), frame(4), frame(5)]
        assert passed == [frame(1), frame(2), frame(3)]
        listener.put(frame(6))
        assert await listener.get() == [frame(6)]


async def test_what_fails_while_a_frame_passes_by_fails_the_reader(listener: Listener) -> None:
    def pass_on(frame: Frame) -> bool:
        raise RuntimeError(f"cannot write {frame.first_seq}")

    reading = asyncio.create_task(listener.get(pass_on))
    await asyncio.sleep(0)
    listener.put(frame(1))
    listener.put(frame(2))
    with pytest.raises(RuntimeError, match="cannot write 1"):
        await reading
