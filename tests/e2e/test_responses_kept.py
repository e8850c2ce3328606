"""What holds for a response as for any job: chains, keys, disconnections, limits, and what is kept of it."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.e2e.test_responses import blocks_of, create, events_of, stream_of, text_of
from tests.fakes.provider import DONE, Gate, Json, Provider, answer, chunk, settled, status, stream
from tests.service import Service, connect
from tests.waiting import eventually

TOOL = {"type": "function", "name": "add", "parameters": {"type": "object", "properties": {"n": {"type": "integer"}}}}


def calling(number: int) -> Any:
    call = {"id": f"call_{number}", "type": "function", "function": {"name": "add", "arguments": f'{{"n":{number}}}'}}
    return answer("", message={"tool_calls": [call]}, finish="tool_calls")


async def test_a_chain_of_a_hundred_turns_of_calls_is_right_to_the_item(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    turns = 100
    provider.script(model, *map(calling, range(turns)), answer("All added."))
    fields: Json = {"input": [{"role": "user", "content": "Add."}]}
    for number in range(turns):
        response = await create(client, model, tools=[TOOL], **fields)
        [call] = response["output"]
        assert (call["type"], call["call_id"], call["arguments"]) == (
            "function_call",
            f"call_{number}",
            f'{{"n":{number}}}',
        )
        output = {"type": "function_call_output", "call_id": call["call_id"], "output": str(number)}
        fields = {"previous_response_id": response["id"], "input": [output]}
    last = await create(client, model, tools=[TOOL], **fields)
    assert text_of(last) == "All added."
    messages = provider.calls_for(model)[-1].body["messages"]
    assert [message["role"] for message in messages] == ["user", *["assistant", "tool"] * turns]
    for number in range(turns):
        [call] = messages[1 + 2 * number]["tool_calls"]
        assert (call["id"], messages[2 + 2 * number]["tool_call_id"]) == (f"call_{number}",) * 2
        assert messages[2 + 2 * number]["content"] in (str(number), [{"type": "text", "text": str(number)}])
    items: list[Json] = []
    page: Json = {"has_more": True, "last_id": None}
    while page["has_more"]:
        query: dict[str, str] = {"order": "asc", "limit": "100"} | ({"after": page["last_id"]} if items else {})
        page = (await client.get(f"/responses/{last['id']}/input_items", params=query)).json()
        items += page["data"]
    assert [item["type"] for item in items] == ["message", *["function_call", "function_call_output"] * turns]
    assert len({item["id"] for item in items}) == len(items)


@pytest.mark.parametrize("chained", [True, False])
@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
async def test_a_chat_model_gets_its_thoughts_back_in_a_loop_of_tools(
    client: httpx.AsyncClient, provider: Provider, model: str, chained: bool, field: str
) -> None:
    """DeepSeek refuses the next request without them."""
    call = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"n":1}'}}
    message = {"tool_calls": [call], field: "I should add."}
    provider.script(model, answer("", message=message, finish="tool_calls"), answer("Added."))
    asked = [{"role": "user", "content": "Add."}]
    first = await create(client, model, tools=[TOOL], input=asked)
    output = {"type": "function_call_output", "call_id": "call_1", "output": "1"}
    if chained:
        fields: Json = {"previous_response_id": first["id"], "input": [output]}
    else:
        fields = {"input": [*asked, *first["output"], output]}
    last = await create(client, model, tools=[TOOL], **fields)
    assert text_of(last) == "Added."
    assert provider.calls_for(model)[1].body["messages"][1][field] == "I should add."


@pytest.mark.parametrize("fields", [{}, {"stream": True}, {"background": True}, {"background": True, "stream": True}])
async def test_a_repeated_request_is_done_once(
    client: httpx.AsyncClient, provider: Provider, model: str, fields: Json
) -> None:
    body = {"model": model, "input": "Hi", **fields}
    headers = {"Idempotency-Key": f"key-{model}"}
    first = await client.post("/responses", json=body, headers=headers)
    again = await client.post("/responses", json=body, headers=headers)
    assert (first.status_code, again.status_code) == (200, 200), again.text
    assert again.headers["idempotent-replayed"] == "true"
    if fields.get("stream"):
        assert blocks_of(again.content) == blocks_of(first.content)
    else:
        assert again.json()["id"] == first.json()["id"]
        await stream_of(client, first.json()["id"])
    assert len(provider.calls_for(model)) == 1
    other = await client.post("/responses", json={**body, "input": "Ho"}, headers=headers)
    assert other.status_code == 409


@pytest.mark.parametrize("background", [True, False])
async def test_a_disconnection_cancels_a_foreground_response_alone(
    client: httpx.AsyncClient, provider: Provider, model: str, background: bool
) -> None:
    gate = Gate()
    provider.script(model, stream(chunk("One "), gate, chunk("two."), chunk(finish="stop"), DONE))
    body = {"model": model, "input": "Hi", "stream": True, "background": background}
    async with client.stream("POST", "/responses", json=body) as response:
        async for line in response.aiter_lines():
            if line.startswith("data: ") and json.loads(line[6:])["type"] == "response.output_text.delta":
                break
        response_id = "resp_" + response.headers["x-headrace-job"].removeprefix("job_")
    if background:
        gate.release()
        assert events_of(await stream_of(client, response_id))[-1]["type"] == "response.completed"
        return

    async def cancelled() -> bool:
        return bool((await client.get(f"/responses/{response_id}")).json()["status"] == "cancelled")

    await eventually(cancelled, "the cancellation")
    await settled(provider.calls_for(model)[0].disconnected)


async def test_a_job_shows_its_response(client: httpx.AsyncClient, provider: Provider, model: str) -> None:
    provider.script(model, stream(chunk("One"), chunk(finish="stop"), DONE))
    response = await create(client, model, background=True, metadata={"a": "b"})
    job_id = "job_" + response["id"].removeprefix("resp_")
    job = (await client.get(f"/jobs/{job_id}", params={"wait": "30"})).json()
    assert (job["status"], job["format"], job["metadata"]) == ("completed", "responses", {"a": "b"})
    assert job["result"] == (await client.get(f"/responses/{response['id']}")).json()
    assert job["usage"]["total_tokens"] > 0
    watched = (await client.get(f"/jobs/{job_id}/events")).text
    assert "event: job.delta" in watched
    assert '"type":"response.output_text.delta"' in watched
    assert "event: job.completed" in watched


async def test_usage_counts_the_whole_prompt(client: httpx.AsyncClient, provider: Provider, model: str) -> None:
    first = await create(client, model, input="many words " * 600)
    second = await create(client, model, input="y", previous_response_id=first["id"])
    assert second["usage"]["input_tokens"] > 1000
    counted = await client.post(
        "/responses/input_tokens", json={"model": model, "input": "y", "previous_response_id": first["id"]}
    )
    assert counted.json()["object"] == "response.input_tokens"
    assert counted.json()["input_tokens"] > 1000
    assert counted.headers["x-headrace-estimated"] == "true"


async def test_a_deadline_that_passes_fails_the_response(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    provider.script(model, stream(chunk("One"), Gate()))
    response = await create(client, model, background=True, timeout=1)
    events = events_of(await stream_of(client, response["id"]))
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert (events[-1]["type"], events[-1]["response"]["status"]) == ("response.failed", "failed")


async def test_a_failed_attempt_closes_its_items_and_the_next_one_adds_new_ones(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    gate = Gate()
    provider.script(
        model,
        stream(chunk("Lost "), gate),  # breaks off
        stream(chunk("Found."), chunk(finish="stop"), DONE),
    )
    response = await create(client, model, background=True)
    await settled(gate.reached)

    async def read() -> bool:
        async with client.stream("GET", f"/responses/{response['id']}", params={"stream": "true"}) as live:
            async for line in live.aiter_lines():
                if '"delta":"Lost "' in line:
                    return True
        return False

    assert await read()
    gate.release()
    events = events_of(await stream_of(client, response["id"]))
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert [item["status"] for item in done] == ["incomplete", "completed"]
    assert [item["content"][0]["text"] for item in done] == ["Lost ", "Found."]
    final = events[-1]["response"]
    assert final["output"] == [done[1]]
    assert final == (await client.get(f"/responses/{response['id']}")).json()
    whole = blocks_of(await stream_of(client, response["id"]))
    for number in range(len(whole)):
        assert blocks_of(await stream_of(client, response["id"], starting_after=number)) == whole[number + 1 :]


async def test_a_fallback_and_dropped_parameters_are_told(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    provider.script(model, *[status(500)] * 5)
    answered = await client.post(
        "/responses",
        json={"model": model, "fallbacks": [f"{model}-b"], "input": "Hi", "truncation": "auto", "max_tool_calls": 3},
    )
    assert answered.status_code == 200
    assert "truncation" in answered.headers["x-headrace-dropped-params"]


async def test_a_rate_counts_a_response(service: Service, provider: Provider, model: str) -> None:
    account = f"rate-{model}"
    key = service.create_key(account, "--rpm", "2")["key"]
    async with connect(service, str(key)) as limited:
        for _ in range(2):
            await create(limited, model)
        refused = await limited.post("/responses", json={"model": model, "input": "Hi"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
