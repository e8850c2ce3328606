"""A job that ends as completed adds its turn to its conversation, in the statement that ends it."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest

from headrace.conversations.appending import Item
from headrace.conversations.queries import create_conversation, delete_conversation, find_conversation, list_items
from headrace.ids import new_id
from headrace.jobs.records import ClaimedJob, FinishedJob
from headrace.jobs.sql.run import rehearse
from headrace.jobs.state import State
from tests.integration.databases import Session, waiting
from tests.integration.job_rows import RESPONSE, Jobs, end_of


async def conversation_of(jobs: Jobs, *names: str) -> str:
    conversation_id = new_id("conv")
    items = [Item(name, json.dumps({"id": name})) for name in names]
    await create_conversation(
        jobs.database, conversation_id, jobs.owner.account_id, metadata={}, items=items, most=1000
    )
    return conversation_id


async def items_of(jobs: Jobs, conversation_id: str) -> list[str]:
    page, _ = await list_items(
        jobs.database, conversation_id, jobs.owner.account_id, after=None, limit=1000, descending=False
    )
    return [item.id for item in page]


async def run_in(jobs: Jobs, conversation_id: str) -> ClaimedJob:
    return await jobs.run(format="responses", conversation_id=conversation_id)


def with_turn(job: ClaimedJob, *names: str, state: State = State.COMPLETED) -> FinishedJob:
    return end_of(job, state, turn=[Item(name, json.dumps({"id": name})) for name in names])


async def test_a_claim_tells_the_conversation_and_the_end_adds_the_turn(jobs: Jobs) -> None:
    conversation = await conversation_of(jobs, "a")
    job = await run_in(jobs, conversation)
    assert job.conversation_id == conversation
    assert await jobs.finish(with_turn(job, "question", "answer")) == [True]
    assert await items_of(jobs, conversation) == ["a", "question", "answer"]


@pytest.mark.parametrize("state", [State.FAILED, State.CANCELLED, State.EXPIRED])
async def test_a_job_without_an_answer_adds_nothing(jobs: Jobs, state: State) -> None:
    conversation = await conversation_of(jobs)
    assert await jobs.finish(with_turn(await run_in(jobs, conversation), "question", state=state)) == [True]
    assert await items_of(jobs, conversation) == []


async def test_a_late_attempt_and_an_erased_job_add_nothing(jobs: Jobs) -> None:
    conversation = await conversation_of(jobs)
    late, erased = await run_in(jobs, conversation), await run_in(jobs, conversation)
    await jobs.retry(late)
    await jobs.delete(erased.id)
    assert await jobs.finish(with_turn(late, "a"), with_turn(erased, "b")) == [False, True]
    assert await items_of(jobs, conversation) == []


async def test_turns_of_one_statement_stay_whole_beside_jobs_without_a_conversation(jobs: Jobs) -> None:
    first, second = await conversation_of(jobs), await conversation_of(jobs)
    ends = [
        with_turn(await run_in(jobs, first), "1a", "1b"),
        end_of(await jobs.run()),
        with_turn(await run_in(jobs, second), "2a"),
        end_of(await jobs.run(), State.FAILED),
        with_turn(await run_in(jobs, first), "3a", "3b", "3c"),
    ]
    assert await jobs.finish(*ends) == [True] * 5
    assert await items_of(jobs, first) == ["1a", "1b", "3a", "3b", "3c"]
    assert await items_of(jobs, second) == ["2a"]
    assert [await jobs.state(ended.id) for ended in ends] == [ended.state for ended in ends]


async def test_responses_that_end_at_the_same_time_add_whole_turns_in_some_order(jobs: Jobs) -> None:
    conversations = [await conversation_of(jobs) for _ in range(3)]
    ends = [
        with_turn(await run_in(jobs, conversation), *(f"{number}-{index}" for index in range(4)))
        for number in range(8)
        for conversation in conversations
    ]
    # Each statement locks the rows of all conversations, and names them in another order.
    statements = [ends[at : at + 3] for at in range(0, len(ends), 3)]
    await asyncio.gather(*(jobs.finish(*(each if at % 2 else each[::-1])) for at, each in enumerate(statements)))
    for conversation in conversations:
        added = await items_of(jobs, conversation)
        turns = [added[at : at + 4] for at in range(0, len(added), 4)]
        assert sorted(turns) == [[f"{number}-{index}" for index in range(4)] for number in range(8)]


async def test_a_response_whose_conversation_is_deleted_meanwhile_ends(jobs: Jobs, other_session: Session) -> None:
    deleted, kept = await conversation_of(jobs, "a"), await conversation_of(jobs)
    first, second = await run_in(jobs, deleted), await run_in(jobs, kept)
    await delete_conversation(jobs.database, deleted, jobs.owner.account_id)
    assert await jobs.finish(with_turn(first, "b"), with_turn(second, "c")) == [True, True]
    assert (await jobs.row(first.id)).response == RESPONSE
    assert await items_of(jobs, kept) == ["c"]

    third = await run_in(jobs, kept)
    await other_session.execute("DELETE FROM conversations WHERE id = %s", [kept])
    finishing = asyncio.create_task(jobs.finish(with_turn(third, "d")))
    await waiting(other_session)
    await other_session.commit()
    assert await finishing == [True]
    assert await find_conversation(jobs.database, kept, jobs.owner.account_id) is None


async def test_a_turn_waits_for_another_addition_and_comes_after_it(jobs: Jobs, other_session: Session) -> None:
    conversation = await conversation_of(jobs, "a")
    job = await run_in(jobs, conversation)
    await other_session.execute("UPDATE conversations SET last_position = 3 WHERE id = %s", [conversation])
    await other_session.execute(
        "INSERT INTO conversation_items VALUES (%(id)s, 2, 'b', '{\"id\":\"b\"}'), (%(id)s, 3, 'c', '{\"id\":\"c\"}')",
        {"id": conversation},
    )
    finishing = asyncio.create_task(jobs.finish(with_turn(job, "d")))
    await waiting(other_session)
    await other_session.commit()
    assert await finishing == [True]
    assert await items_of(jobs, conversation) == ["a", "b", "c", "d"]


async def test_an_item_that_the_client_sent_back_is_not_added_twice(jobs: Jobs) -> None:
    conversation = await conversation_of(jobs, "a")
    ends = [with_turn(await run_in(jobs, conversation), "a", "b"), with_turn(await run_in(jobs, conversation), "b")]
    assert await jobs.finish(*ends) == [True, True]
    assert await items_of(jobs, conversation) == ["a", "b"]


async def test_an_end_that_postgres_refuses_adds_no_turn(jobs: Jobs) -> None:
    conversation = await conversation_of(jobs)
    job = await run_in(jobs, conversation)
    with pytest.raises(Exception, match="ck_jobs_"):
        await jobs.finish(replace(with_turn(job, "a"), response=None))
    assert await items_of(jobs, conversation) == []


async def test_the_statements_with_and_without_turns_run_without_a_job(jobs: Jobs) -> None:
    await rehearse(jobs.database, patience_seconds=5)
