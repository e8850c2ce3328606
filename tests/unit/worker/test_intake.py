"""A worker's intake gives way to the event loop, and holds lines back whichever jobs wait beside them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from headrace.settings import Settings
from worker import intake as intake_module
from worker.crowds import Crowds, Key
from worker.intake import Intake
from worker.slots import Slots
from worker.wakeups import Message, WakeUps


class BoundedEvent(asyncio.Event):
    """An event that ends a loop which waits for it again and again without giving way."""

    waits = 0

    async def wait(self) -> Any:
        self.waits += 1
        assert self.waits < 100, "the loop never gives way"
        return await super().wait()


@pytest.mark.parametrize("tier", ["default", "batch"])
def test_a_message_that_names_a_job_twice_is_gone_with_the_job(tier: str) -> None:
    waiting, message = WakeUps(), Message()
    waiting.add("job_1", tier, message)
    waiting.add("job_1", tier, message)
    assert waiting.competing(tier) == 1
    waiting.drop("job_1")
    assert message.gone.is_set()
    assert [waiting.competing(tier) for tier in ("default", "batch")] == [0, 0]


async def test_lines_that_are_held_back_do_not_start_with_the_jobs_of_other_tiers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def find_none(*_: object, **__: object) -> list[object]:
        return []

    async def find_lines(_: object, job_ids: Sequence[str]) -> dict[str, Key]:
        return dict.fromkeys(job_ids, ("acct", "model"))

    for name, found in (("find_fair", find_none), ("find_taken", find_none), ("find_lines", find_lines)):
        monkeypatch.setattr(intake_module, name, found)
    started: list[str] = []

    async def run(job_id: str, *_: object) -> None:
        started.append(job_id)

    crowds = Crowds()
    crowd = crowds.of(("acct", "model"))
    for _ in range(100):
        crowd.join()
    crowd.leave(granted=False)
    intake = Intake(
        Settings(),
        cast("Any", None),
        cast("Any", SimpleNamespace(on_lost=lambda _: None)),
        tiers=["default", "batch"],
        slots=Slots(8, line_slots=8),
        crowds=crowds,
        run=run,
        send_back=lambda *_: None,
        waiting=list,
    )
    intake._wakeups.add("job_line", "batch", Message())
    intake._wakeups.add("job_other", "default", Message())
    await intake._share_once()
    await asyncio.gather(*intake.tasks)
    assert started == ["job_other"]


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
        waiting=list,
    )
    intake._moved = BoundedEvent()
    intake.start("job_running", "default")
    hearing = asyncio.create_task(intake.take(["job_waiting"], tier="default"))
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
