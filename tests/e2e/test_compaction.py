"""Compacting a conversation: passed on to a provider that has it, and counted as any job."""

from __future__ import annotations

import json
import secrets

import httpx
import openai
import pytest

from tests.e2e.test_responses import create
from tests.fakes.provider import Json, Provider, answer, raw, status
from tests.waiting import eventually

OUTPUT: list[Json] = [
    {"id": "msg_1", "type": "message", "role": "user", "status": "completed", "content": []},
    {"id": "cmp_1", "type": "compaction", "encrypted_content": "sealed"},
]
USAGE: Json = {
    "input_tokens": 900,
    "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
    "output_tokens": 40,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 940,
}
COMPACTED: Json = {"id": "cmpct_1", "object": "response.compaction", "created_at": 1, "output": OUTPUT, "usage": USAGE}


@pytest.fixture
def model() -> str:
    return f"responses-c{secrets.token_hex(6)}"


async def test_a_conversation_is_compacted_by_its_provider(
    openai_client: openai.AsyncOpenAI, client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    provider.script(model, answer("First."), raw(json.dumps(COMPACTED).encode()), answer("Second."))
    first = await create(client, model, input="A long story.")
    compacted = await openai_client.responses.compact(model=model, previous_response_id=first["id"], input="Go on.")
    assert compacted.id.startswith("resp_")
    assert [item.type for item in compacted.output] == ["message", "compaction"]
    assert compacted.usage.total_tokens == 940
    call = provider.calls_for(model)[1]
    assert call.path.endswith("/responses/compact")
    assert [item.get("role") for item in call.body["input"]] == ["user", "assistant", "user"]
    assert call.body.keys() == {"model", "input"}
    [usage] = (await client.get("/usage", params={"model": model})).json()["data"]
    assert usage["requests"] == 2
    assert usage["completion_tokens"] == 40 + first["usage"]["output_tokens"]
    second = await create(client, model, input=[*COMPACTED["output"][1:], {"role": "user", "content": "And?"}])
    assert second["status"] == "completed"
    assert provider.calls_for(model)[2].body["input"][0] == OUTPUT[1]


async def test_nothing_is_stored_of_a_compaction_by_an_agent(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    agent = (await client.post("/agents", json={"name": "Miller", "model": model})).json()
    provider.script(model, raw(json.dumps(COMPACTED).encode()))
    asked = {"model": agent["id"], "input": "x", "stream": True}
    compacted = await client.post("/responses/compact", json=asked)
    assert compacted.json()["object"] == "response.compaction", compacted.text

    async def erased() -> bool:
        return (await client.get(f"/responses/{compacted.json()['id']}")).status_code == 404

    await eventually(erased, "the erasure")


async def test_a_conversation_object_is_no_parameter_of_it(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    provider.script(model, *[raw(json.dumps(COMPACTED).encode())] * 2)
    conversation = (await client.post("/conversations", json={})).json()["id"]
    for named in (conversation, {"id": conversation}):
        answered = await client.post("/responses/compact", json={"model": model, "conversation": named, "input": "x"})
        error = answered.json()["error"]
        assert (answered.status_code, error["code"], error["param"]) == (400, "unknown_parameter", "conversation")
    assert (await client.get(f"/conversations/{conversation}/items")).json()["data"] == []


@pytest.mark.parametrize("body", [{"output": "x"}, {"error": {"message": "no"}}, []])
async def test_what_is_no_compaction_is_an_upstreams_error(
    client: httpx.AsyncClient, provider: Provider, model: str, body: Json
) -> None:
    provider.script(model, *[raw(json.dumps(body).encode())] * 3)
    answered = await client.post("/responses/compact", json={"model": model, "input": "x"})
    assert answered.status_code == 502


async def test_the_providers_refusal_is_the_clients(client: httpx.AsyncClient, provider: Provider, model: str) -> None:
    provider.script(model, status(400))
    assert (await client.post("/responses/compact", json={"model": model, "input": "x"})).status_code == 400


async def test_a_model_without_such_a_provider_cannot_compact(client: httpx.AsyncClient) -> None:
    answered = await client.post("/responses/compact", json={"model": "fake", "input": "x"})
    assert (answered.status_code, answered.json()["error"]["code"]) == (404, "unsupported")
    for body in ({"input": "x"}, {"model": "fake", "input": "x", "compacts": True}):
        assert (await client.post("/responses/compact", json=body)).status_code == 400
