"""A worker adds a response's turn to its conversation as it ends the job."""

from __future__ import annotations

import json
from typing import Any

import pytest

from headrace.conversations.queries import create_conversation, list_items
from headrace.ids import new_id
from headrace.jobs.state import State
from tests.fakes.provider import Provider, answer, status
from tests.integration.job_rows import Jobs
from tests.integration.worker.test_executor import Rig, collected, executing, rig, settings  # noqa: F401


def message(name: str, text: str) -> dict[str, Any]:
    content = [{"type": "input_text", "text": text}]
    return {"id": name, "type": "message", "role": "user", "status": "completed", "content": content}


async def conversation_of(jobs: Jobs) -> str:
    conversation_id = new_id("conv")
    await create_conversation(jobs.database, conversation_id, jobs.owner.account_id, metadata={}, items=(), most=1_000)
    return conversation_id


async def names_in(jobs: Jobs, conversation_id: str) -> list[str]:
    page, _ = await list_items(
        jobs.database, conversation_id, jobs.owner.account_id, after=None, limit=100, descending=False
    )
    return [item.id for item in page]


async def respond(worker: Rig, conversation_id: str, name: str, *, background: bool = True) -> tuple[str, State]:
    """Run a response whose own input is one message. Returns its job's id, and how the job ended."""
    document = {
        "model": worker.model,
        "input": [message("msg_old", "Hi."), message(name, "Hello!")],
        "context_items": 1,
    }
    job_id = await worker.jobs.submit(
        model=worker.model,
        request=json.dumps(document),
        format="responses",
        conversation_id=conversation_id,
        background=background,
    )
    await worker.executor.take([job_id], tier="default")
    return job_id, await worker.ended(job_id)


@pytest.mark.parametrize("background", [True, False])
async def test_an_answer_adds_its_own_input_and_its_output(
    rig: Rig,  # noqa: F811  (the fixture)
    provider: Provider,
    jobs: Jobs,
    background: bool,
) -> None:
    conversation = await conversation_of(jobs)
    provider.script(rig.model, answer("The first."), answer("The second.", finish="length"))
    for name in ("msg_1", "msg_2"):
        job_id, state = await respond(rig, conversation, name, background=background)
        assert state is State.COMPLETED
        [output] = json.loads((await jobs.row(job_id)).response)["output"]
        assert (await names_in(jobs, conversation))[-2:] == [name, output["id"]]
    assert len(await names_in(jobs, conversation)) == 4


async def test_a_failure_adds_nothing(
    rig: Rig,  # noqa: F811
    provider: Provider,
    jobs: Jobs,
) -> None:
    conversation = await conversation_of(jobs)
    provider.script(rig.model, status(400))
    _, state = await respond(rig, conversation, "msg_1")
    assert state is State.FAILED
    assert await names_in(jobs, conversation) == []


async def test_a_turn_that_postgres_refuses_fails_its_job_alone(
    rig: Rig,  # noqa: F811
    provider: Provider,
    jobs: Jobs,
) -> None:
    conversation = await conversation_of(jobs)
    provider.script(rig.model, answer("Lost."), answer("Kept."))
    _, state = await respond(rig, conversation, "msg_\0")
    assert state is State.FAILED
    _, state = await respond(rig, conversation, "msg_2")
    assert state is State.COMPLETED
    assert (await names_in(jobs, conversation))[0] == "msg_2"
