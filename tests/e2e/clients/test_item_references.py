"""Turns as Vercel's AI SDK sends them: items that the service has stored are named by their ids, never sent again."""

from __future__ import annotations

import httpx
import openai

from tests.e2e.clients.answers import asked, calling
from tests.e2e.jobs import refused
from tests.fakes.provider import Json, Provider, answer


def reference(item_id: str | None) -> Json:
    return {"type": "item_reference", "id": item_id}


async def test_items_are_named_by_their_ids(
    openai_client: openai.AsyncOpenAI, client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    provider.script(model, calling(("weather", {}), text="I look it up."), answer("Rain."), answer("Yes."))
    said: Json = {"type": "message", "role": "user", "content": "Weather?"}
    first = await openai_client.responses.create(model=model, input="Weather?")
    message, call = first.output
    assert call.type == "function_call"
    returned: Json = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
    history = [said, reference(message.id), reference(call.id), returned]
    body = {"model": model, "input": history, "stream": False}
    second = (await client.post("/responses", json=body)).json()
    history += [reference(second["output"][0]["id"]), {"role": "user", "content": "A coat?"}]
    third = (await client.post("/responses", json={"model": model, "input": history})).json()
    assert third["status"] == "completed", third
    assert asked(provider.calls_for(model)[2]) == [
        ("user", "Weather?"),
        ("assistant", ["call_0"]),
        ("tool", "rain"),
        ("assistant", "Rain."),
        ("user", "A coat?"),
    ]
    # What was referred to is kept with the response, and outlives the one that it came from.
    await openai_client.responses.delete(first.id)
    items = (await client.get(f"/responses/{third['id']}/input_items", params={"order": "asc"})).json()["data"]
    kinds = [item["type"] for item in items]
    assert kinds == ["message", "message", "function_call", "function_call_output", "message", "message"]


async def test_an_item_that_is_not_there_is_refused(
    client: httpx.AsyncClient, other: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    foreign = (await other.post("/responses", json={"model": model, "input": "Hello."})).json()["output"][0]["id"]
    erased = (await client.post("/responses", json={"model": model, "input": "Hello.", "store": False})).json()
    for item_id in ("msg_nonsense", foreign, erased["output"][0]["id"], "msg_" + "0" * 36):
        body = {"model": model, "input": [{"role": "user", "content": "Hello."}, reference(item_id)]}
        response = await client.post("/responses", json=body)
        refused(response, response.status_code, param="input[1].id")
        assert response.status_code in {400, 404}
    assert len(provider.calls_for(model)) == 2
