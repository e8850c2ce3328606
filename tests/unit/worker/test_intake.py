"""A worker's intake gives way to the event loop, whatever becomes of the wake-ups that it was woken for."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

from headrace.settings import Settings
from worker.crowds import Crowds
from worker.intake import Intake
from worker.slots import Slots


class BoundedEvent(asyncio.Event):
    """An event that ends a loop which waits for it again and again without giving way."""

    waits = 0

    async def wait(self) -> Any:
        self.waits += 1
        assert self.waits < 100, "the loop never gives way"
        return await super().wait()


async def test_wake_ups_that_are_handed_back_before_their_turn_leave_the_loop_free() -> None:
    reachable = asyncio.Event()
    reachable.set()
    availability = SimpleNamespace(reachable=reachable, on_lost=lambda _: None)
    sent_back: list[str] = []

    async def run(*_: object) -> None:
        await asyncio.Event().wait()

    intake = Intake(
        Settings(),
        cast("Any", None),
        cast("Any", availability),
        tiers=["default"],
        slots=Slots(1, line_slots=1),
        crowds=Crowds(),
        run=run,
        send_back=lambda job_ids, _: sent_back.extend(job_ids),
    )
    intake._moved = BoundedEvent()
    intake.start("job_running", "default")
    hearing = asyncio.create_task(intake.hear(["job_waiting"], tier="default"))
    await asyncio.sleep(0)
    intake.hand_back_all()
    sharing = asyncio.create_task(intake.share())
    for _ in range(5):
        await asyncio.sleep(0)
    await hearing
    assert sent_back == ["job_waiting"]
    assert not sharing.done()
    for task in (sharing, *intake.tasks):
        task.cancel()
