"""Responses in a conversation, by OpenAI's own client, on a provider that knows only chat completions."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import openai
import psycopg
import pytest
from openai.types.responses import FunctionToolParam
from psycopg import sql
from psycopg.rows import DictRow

from headrace.ids import new_id
from tests.e2e.jobs import refused
from tests.fakes.provider import Gate, Provider, answer, settled, status
from tests.service import Stores, looking_at_rows
from tests.waiting import eventually

Json = dict[str, Any]

TOOLS: list[FunctionToolParam] = [
    {
        "type": "function",
        "name": "weather",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
        "strict": False,
    }
]
CALL = {
    "index": 0,
    "id": "call_1",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"place": "Ulm"}'},
}


async def items_of(client: openai.AsyncOpenAI, conversation: str) -> list[Json]:
    """Return a conversation's items, oldest first."""
    return [item.to_dict() async for item in client.conversations.items.list(conversation, order="asc", limit=3)]


def texts(items: list[Json]) -> list[str]:
    """Return the text of each message."""
    return [item["content"][0]["text"] for item in items if item["type"] == "message"]


async def test_turns_with_a_tool_build_on_one_another(
    openai_client: openai.AsyncOpenAI, provider: Provider, model: str
) -> None:
    conversation = await openai_client.conversations.create(items=[{"role": "user", "content": "I am in Ulm."}])
    provider.script(
        model,
        answer("", message={"tool_calls": [CALL]}, finish="tool_calls"),
        answer("It rains."),
        answer("It will snow."),
        answer("Bye."),
    )

    first = await openai_client.responses.create(
        model=model, conversation=conversation.id, input="What is the weather?", tools=TOOLS
    )
    assert first.conversation is not None
    assert first.conversation.id == conversation.id
    call = next(item for item in first.output if item.type == "function_call")
    second = await openai_client.responses.create(
        model=model,
        conversation={"id": conversation.id},
        input=[{"type": "function_call_output", "call_id": call.call_id, "output": "rain"}],
        tools=TOOLS,
    )
    assert second.output_text == "It rains."
    async with openai_client.responses.stream(
        model=model, conversation=conversation.id, input="And tomorrow?"
    ) as stream:
        third = await stream.get_final_response()
    assert third.output_text == "It will snow."
    fourth = await openai_client.responses.create(
        model=model, conversation=conversation.id, input="Thanks.", background=True
    )

    async def ended() -> bool:
        return (await openai_client.responses.retrieve(fourth.id)).status == "completed"

    await eventually(ended, "the end of the fourth")

    items = await items_of(openai_client, conversation.id)
    kinds = [item["type"] for item in items if item["type"] != "message"]
    assert kinds == ["function_call", "function_call_output"]
    said = ["I am in Ulm.", "What is the weather?", "It rains.", "And tomorrow?", "It will snow.", "Thanks.", "Bye."]
    assert texts(items) == said
    assert len({item["id"] for item in items}) == len(items) == 9
    assert items[2]["id"] == call.id
    assert items[4]["id"] == second.output[0].id
    roles = [message["role"] for message in provider.calls_for(model)[-1].body["messages"]]
    assert roles == ["user", "user", "assistant", "tool", "assistant", "user", "assistant", "user"]


async def test_turns_at_once_leave_a_conversation_that_goes_on(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    conversation = (await client.post("/conversations", json={})).json()["id"]

    async def respond(said: str | list[Json]) -> httpx.Response:
        body = {"model": model, "conversation": conversation, "input": said, "tools": TOOLS}
        return await client.post("/responses", json=body)

    gate = Gate()
    calls = answer("", message={"tool_calls": [CALL]}, finish="tool_calls", hold=gate)
    provider.script(model, calls, calls)
    asked = [asyncio.create_task(respond(said)) for said in ("One?", "Two?")]
    for number in (1, 2):
        await provider.call(model, number)
    gate.release()
    ids = [(await task).json()["output"][0]["call_id"] for task in asked]
    outputs: list[Json] = [{"type": "function_call_output", "call_id": call_id, "output": "rain"} for call_id in ids]
    gate = Gate()
    provider.script(model, answer("Rain.", hold=gate), answer("Rain.", hold=gate), answer("Bye."))
    sent_twice = [asyncio.create_task(respond(outputs)) for _ in range(2)]
    for number in (3, 4):
        await provider.call(model, number)
    gate.release()
    answered = [await task for task in sent_twice]
    assert [response.status_code for response in answered] == [200, 200], [response.text for response in answered]
    last = await respond("Thanks.")
    assert last.status_code == 200, last.text
    roles = [message["role"] for message in provider.calls_for(model)[-1].body["messages"]]
    assert roles == ["user", "assistant", "tool"] * 2 + ["assistant", "assistant", "user"]


async def test_a_turn_that_is_sent_again_gets_its_answer_and_is_added_once(
    openai_client: openai.AsyncOpenAI, provider: Provider, model: str
) -> None:
    conversation = await openai_client.conversations.create()
    provider.script(model, answer("", message={"tool_calls": [CALL]}, finish="tool_calls"), answer("It rains."))
    first = await openai_client.responses.create(
        model=model, conversation=conversation.id, input="What is the weather?", tools=TOOLS
    )
    call = next(item for item in first.output if item.type == "function_call")
    key = new_id("key")
    answers = [
        await openai_client.responses.create(
            model=model,
            conversation=conversation.id,
            input=[{"type": "function_call_output", "call_id": call.call_id, "output": "rain"}],
            extra_headers={"Idempotency-Key": key},
        )
        for _ in range(2)
    ]
    assert answers[0] == answers[1]
    assert len(await items_of(openai_client, conversation.id)) == 4
    await openai_client.conversations.delete(conversation.id)
    again = await openai_client.responses.create(
        model=model,
        conversation=conversation.id,
        input=[{"type": "function_call_output", "call_id": call.call_id, "output": "rain"}],
        extra_headers={"Idempotency-Key": key},
    )
    assert again == answers[0]


async def test_a_turn_is_found_that_the_first_request_adds_while_it_is_sent_again(
    client: httpx.AsyncClient,
    provider: Provider,
    model: str,
    database: psycopg.AsyncConnection[DictRow],
    stores: Stores,
) -> None:
    conversation = (await client.post("/conversations", json={})).json()
    provider.script(model, answer("", message={"tool_calls": [CALL]}, finish="tool_calls"))
    body = {"model": model, "conversation": conversation["id"], "input": "What is the weather?", "tools": TOOLS}
    headers = {"idempotency-key": new_id("key")}
    first = await client.post("/responses", json=body, headers=headers)
    assert first.status_code == 200, first.text
    async with looking_at_rows(stores) as second:

        async def waits() -> bool:
            query = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%conversation_items%'"
            return (await second.execute(query)).rowcount > 0

        # The second request does not find the first one's key when it starts, and its context has the whole turn.
        async with database.transaction():
            await database.execute("LOCK TABLE conversation_items IN ACCESS EXCLUSIVE MODE")
            kept = "DELETE FROM idempotency_keys WHERE key = %s RETURNING *"
            [claim] = await (await second.execute(kept, [headers["idempotency-key"]])).fetchall()
            again = asyncio.create_task(client.post("/responses", json=body, headers=headers))
            await eventually(waits, "the second request to read the conversation")
            names = sql.SQL(", ").join(map(sql.Identifier, claim))
            values = sql.SQL(", ").join(map(sql.Placeholder, claim))
            await second.execute(sql.SQL("INSERT INTO idempotency_keys ({}) VALUES ({})").format(names, values), claim)
    answered = await again
    assert answered.status_code == 200, answered.text
    assert answered.json() == first.json()
    assert answered.headers["idempotent-replayed"] == "true"


async def test_an_incomplete_response_adds_its_turn_and_a_failed_one_does_not(
    openai_client: openai.AsyncOpenAI, provider: Provider, model: str
) -> None:
    conversation = await openai_client.conversations.create()
    provider.script(model, status(400, "no"), answer("Cut", finish="length"))
    with pytest.raises(openai.BadRequestError):
        await openai_client.responses.create(model=model, conversation=conversation.id, input="One")
    assert await items_of(openai_client, conversation.id) == []
    cut = await openai_client.responses.create(model=model, conversation=conversation.id, input="Two")
    assert cut.status == "incomplete"
    assert texts(await items_of(openai_client, conversation.id)) == ["Two", "Cut"]


async def test_a_response_that_is_not_stored_adds_its_turn(
    openai_client: openai.AsyncOpenAI, provider: Provider, model: str
) -> None:
    conversation = await openai_client.conversations.create()
    provider.script(model, answer("Yes."))
    response = await openai_client.responses.create(
        model=model, conversation=conversation.id, input="Do you forget this?", store=False
    )

    async def gone() -> bool:
        try:
            await openai_client.responses.retrieve(response.id)
        except openai.NotFoundError:
            return True
        return False

    await eventually(gone, "the erasure of a response that is not stored")
    assert texts(await items_of(openai_client, conversation.id)) == ["Do you forget this?", "Yes."]


async def test_items_outlive_the_responses_that_added_them(
    openai_client: openai.AsyncOpenAI, provider: Provider, model: str
) -> None:
    conversation = await openai_client.conversations.create()
    provider.script(model, answer("Yes."), answer("Still."))
    first = await openai_client.responses.create(model=model, conversation=conversation.id, input="Are you there?")
    await openai_client.responses.delete(first.id)
    second = await openai_client.responses.create(model=model, conversation=conversation.id, input="And now?")
    assert second.output_text == "Still."
    assert texts(await items_of(openai_client, conversation.id)) == ["Are you there?", "Yes.", "And now?", "Still."]


async def test_responses_at_the_same_time_add_whole_turns_and_a_deleted_conversation_gets_none(
    openai_client: openai.AsyncOpenAI, provider: Provider, model: str
) -> None:
    conversation = await openai_client.conversations.create()
    gates = [Gate() for _ in range(3)]
    provider.script(model, *(answer(f"answer {number}", hold=gate) for number, gate in enumerate(gates)))
    running = []
    for number, gate in enumerate(gates):
        create = openai_client.responses.create(model=model, conversation=conversation.id, input=f"question {number}")
        running.append(asyncio.create_task(create))
        await settled(gate.reached)
    gates[1].release()
    await running[1]
    gates[0].release()
    await running[0]
    said = texts(await items_of(openai_client, conversation.id))
    assert said == ["question 1", "answer 1", "question 0", "answer 0"]
    await openai_client.conversations.delete(conversation.id)
    gates[2].release()
    last = await running[2]
    assert last.output_text == "answer 2"
    assert (await openai_client.responses.retrieve(last.id)).output_text == "answer 2"


async def test_a_conversation_that_is_not_there_is_refused(client: httpx.AsyncClient, model: str) -> None:
    for unknown in (new_id("conv"), "conv_123", {"id": new_id("conv")}):
        body = {"model": model, "input": "Hi", "conversation": unknown}
        assert refused(await client.post("/responses", json=body), 404)["param"] == "conversation"
    created = (await client.post("/conversations", json={})).json()
    both = {"model": model, "input": "Hi", "conversation": created["id"], "previous_response_id": new_id("resp")}
    refused(await client.post("/responses", json=both), 400)


async def test_an_item_that_the_conversation_has_is_refused(
    openai_client: openai.AsyncOpenAI, client: httpx.AsyncClient, model: str
) -> None:
    conversation = await openai_client.conversations.create(items=[{"role": "user", "content": "I am in Ulm."}])
    [item] = await items_of(openai_client, conversation.id)
    mine = {"id": "msg_mine", "role": "user", "content": "Hello!"}
    body: Json = {"model": model, "conversation": conversation.id}
    for given, param in [([item], "input[0].id"), ([mine, mine], "input[1].id")]:
        assert refused(await client.post("/responses", json={**body, "input": given}), 400)["param"] == param
    reference = {"type": "item_reference", "id": item["id"]}
    answered = await client.post("/responses", json={**body, "input": [reference, mine]})
    assert answered.status_code == 200, answered.text
    assert texts(await items_of(openai_client, conversation.id))[:2] == ["I am in Ulm.", "Hello!"]
