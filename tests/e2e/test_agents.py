"""Agents as models: made, changed, asked, and deleted while their jobs run."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.jobs import chat, completed, get, refused, submit
from tests.e2e.streams import chunks_of, text_of
from tests.fakes.provider import Gate, Provider, answer, usage_of

Json = dict[str, Any]


def definition(model: str, **fields: Any) -> Json:
    return {"name": "Miller", "bio": "You run a mill.", "system_prompt": "Be brief.", "model": model, **fields}


async def create(client: httpx.AsyncClient, model: str, **fields: Any) -> Json:
    response = await client.post("/agents", json=definition(model, **fields))
    assert response.status_code == 200, response.text
    agent: Json = response.json()
    return agent


async def test_an_agent_is_created_read_listed_and_deleted(client: httpx.AsyncClient, model: str) -> None:
    agent = await create(client, model, bio=["One.", "Two."], metadata={"team": "mill"})
    assert agent["object"] == "agent"
    assert agent["version"] == 1
    assert agent["bio"] == ["One.", "Two."]
    assert agent["description"] is None
    assert (await client.get(f"/agents/{agent['id']}")).json() == agent
    listed = (await client.get("/agents", params={"limit": 1})).json()
    assert listed["data"] == [agent]
    deleted = await client.delete(f"/agents/{agent['id']}")
    assert deleted.json() == {"id": agent["id"], "object": "agent.deleted", "deleted": True}
    refused(await client.get(f"/agents/{agent['id']}"), 404)
    refused(await client.delete(f"/agents/{agent['id']}"), 404)
    assert agent["id"] not in (await client.get("/agents")).text


async def test_pages_of_agents_go_both_ways(client: httpx.AsyncClient, model: str) -> None:
    made = [(await create(client, model, name=f"Number {number}"))["id"] for number in range(3)]
    newest = (await client.get("/agents", params={"limit": 2})).json()
    assert [agent["id"] for agent in newest["data"]] == [made[2], made[1]]
    assert newest["has_more"] is True
    older = (await client.get("/agents", params={"limit": 1, "after": newest["last_id"]})).json()
    assert [agent["id"] for agent in older["data"]] == [made[0]]
    later = (await client.get("/agents", params={"order": "asc", "after": made[0]})).json()
    assert [agent["id"] for agent in later["data"]] == made[1:]


async def test_a_change_makes_a_version_and_leaves_the_rest(client: httpx.AsyncClient, model: str) -> None:
    agent = await create(client, model, parameters={"temperature": 0.2})
    changed = await client.post(f"/agents/{agent['id']}", json={"name": "Baker", "parameters": None})
    assert changed.status_code == 200, changed.text
    assert changed.json() == {
        **agent,
        "name": "Baker",
        "parameters": None,
        "version": 2,
        "updated_at": changed.json()["updated_at"],
    }
    assert (await client.get(f"/agents/{agent['id']}", params={"version": 1})).json()["name"] == "Miller"
    refused(await client.get(f"/agents/{agent['id']}", params={"version": 3}), 404)
    versions = (await client.get(f"/agents/{agent['id']}/versions")).json()
    assert [version["version"] for version in versions["data"]] == [2, 1]
    assert (await client.patch(f"/agents/{agent['id']}", json={"name": "Smith"})).json()["version"] == 3


async def test_changes_at_once_are_all_kept_or_told(client: httpx.AsyncClient, model: str) -> None:
    agent = await create(client, model)
    answers = await asyncio.gather(
        *(client.post(f"/agents/{agent['id']}", json={"name": f"Number {number}"}) for number in range(8))
    )
    assert {response.status_code for response in answers} <= {200, 409}
    kept = sum(response.status_code == 200 for response in answers)
    assert kept >= 1
    assert (await client.get(f"/agents/{agent['id']}")).json()["version"] == 1 + kept


async def test_an_agent_answers_as_a_model(
    openai_client: openai.AsyncOpenAI, client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    agent = await create(client, model, parameters={"temperature": 0.25, "seed": 7})
    provider.script(model, answer("Quite so."))
    completion = await openai_client.chat.completions.create(
        model=agent["id"],
        messages=[{"role": "system", "content": "Rhyme."}, {"role": "user", "content": "Hi"}],
        seed=8,
    )
    assert completion.choices[0].message.content == "Quite so."
    (call,) = provider.calls_for(model)
    assert [message["content"] for message in call.body["messages"]] == [
        "You are Miller.\nYou run a mill.\n\nBe brief.",
        "Rhyme.",
        "Hi",
    ]
    assert (call.body["temperature"], call.body["seed"]) == (0.25, 8)
    job = await get(client, completion.id.replace("chatcmpl-", "job_"))
    assert (job["agent_id"], job["agent_version"], job["model"]) == (agent["id"], 1, model)


async def test_an_agent_streams(client: httpx.AsyncClient, provider: Provider, model: str) -> None:
    agent = await create(client, model)
    provider.script(model, answer("Word by word."))
    async with client.stream("POST", "/chat/completions", json=chat(agent["id"], stream=True)) as response:
        assert text_of(await chunks_of(response)) == "Word by word."


async def test_jobs_and_usage_are_told_apart_by_agent(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    agent = await create(client, model)
    provider.always(model, answer("Counted.", usage=usage_of(10, 5)))
    job = await completed(client, await submit(client, agent["id"]))
    await completed(client, await submit(client, model))
    listed = (await client.get("/jobs", params={"agent_id": agent["id"]})).json()["data"]
    assert [listed_job["id"] for listed_job in listed] == [job["id"]]
    rows = (await client.get("/usage", params={"group_by": "agent"})).json()["data"]
    assert [row["total_tokens"] for row in rows if row["agent"] == agent["id"]] == [15]


async def test_a_running_job_keeps_what_it_ran_with(client: httpx.AsyncClient, provider: Provider, model: str) -> None:
    agent = await create(client, model)
    gate = Gate()
    provider.script(model, answer("From before.", hold=gate))
    job_id = await submit(client, agent["id"])
    await provider.call(model)
    assert (await client.post(f"/agents/{agent['id']}", json={"system_prompt": "Be long."})).is_success
    assert (await client.delete(f"/agents/{agent['id']}")).is_success
    gate.release()
    job = await completed(client, job_id)
    assert (job["agent_id"], job["agent_version"]) == (agent["id"], 1)
    completion_id = job["result"]["id"]
    messages = (await client.get(f"/chat/completions/{completion_id}/messages")).json()["data"]
    assert "Be brief." in messages[0]["content"]
    refused(await client.post("/chat/completions", json=chat(agent["id"])), 404, code="model_not_found", param="model")


async def test_agents_are_models_of_their_account(
    client: httpx.AsyncClient, other: httpx.AsyncClient, model: str
) -> None:
    agent = await create(client, model)
    (listed,) = [found for found in (await client.get("/models")).json()["data"] if found["id"] == agent["id"]]
    assert listed["owned_by"] == "agent"
    assert listed["prices"]["input"] == "2.5"
    assert (await client.get(f"/models/{agent['id']}")).json() == listed
    assert agent["id"] not in (await other.get("/models")).text
    for path in (f"/agents/{agent['id']}", f"/models/{agent['id']}", f"/agents/{agent['id']}/versions"):
        refused(await other.get(path), 404)
    refused(await other.post(f"/agents/{agent['id']}", json={"name": "x"}), 404)
    refused(await other.delete(f"/agents/{agent['id']}"), 404)
    refused(await other.post("/chat/completions", json=chat(agent["id"])), 404, code="model_not_found")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"parameters": {"temperature": 3}}, "parameters.temperature"),
        ({"parameters": {"background": True}}, "parameters.background"),
        ({"name": ""}, "name"),
        ({"colour": "red"}, "colour"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ],
)
async def test_a_mistake_is_named(client: httpx.AsyncClient, model: str, fields: Json, param: str) -> None:
    refused(await client.post("/agents", json=definition(model, **fields)), 400, param=param)
    agent = await create(client, model)
    refused(await client.post(f"/agents/{agent['id']}", json=fields), 400, param=param)
    assert (await client.get(f"/agents/{agent['id']}")).json()["version"] == 1


async def test_an_agent_over_an_agent_is_refused(client: httpx.AsyncClient, model: str) -> None:
    agent = await create(client, model)
    refused(await client.post("/agents", json=definition(agent["id"])), 400, param="model")
    refused(await client.post(f"/agents/{agent['id']}", json={"model": agent["id"]}), 400, param="model")


async def test_a_model_that_is_not_there_is_refused(client: httpx.AsyncClient) -> None:
    refused(await client.post("/agents", json=definition("nobody")), 404, code="model_not_found", param="model")


@pytest.mark.parametrize("agent_id", ["agent_0", "agent_" + "0" * 32, "agent_\0", "job_" + "0" * 32])
async def test_an_unknown_or_malformed_id_is_not_found(client: httpx.AsyncClient, agent_id: str) -> None:
    refused(await client.post("/chat/completions", json=chat(agent_id)), 404, param="model")
    if "\0" not in agent_id:
        refused(await client.get(f"/agents/{agent_id}"), 404)


async def test_what_is_wrong_together_is_refused(client: httpx.AsyncClient, provider: Provider, model: str) -> None:
    """A parameter of the call's that only makes sense with another one, which neither the call nor the agent has."""
    agent = await create(client, model, parameters={"logprobs": False})
    refused(await client.post("/chat/completions", json=chat(agent["id"], top_logprobs=3)), 400, param="top_logprobs")
    assert not provider.calls_for(model)


async def test_nothing_odd_in_a_text_breaks_anything(client: httpx.AsyncClient, provider: Provider, model: str) -> None:
    agent = await create(client, model, bio="null \0 and 😀")
    assert (await client.post("/chat/completions", json=chat(agent["id"]))).status_code == 200
    assert "null \0 and 😀" in provider.calls_for(model)[0].body["messages"][0]["content"]


async def test_an_agent_is_asked_by_the_responses_api_and_continued(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    described = {
        "name": "Miller",
        "system_prompt": "Be brief.",
        "model": model,
        "parameters": {"max_completion_tokens": 300},
        "messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "The miller."}],
    }
    agent = (await client.post("/agents", json=described)).json()
    provider.always(model, answer("The wheel turns."))
    asked: Json = {"model": agent["id"], "input": "Hi", "instructions": "In Dutch."}
    first = await client.post("/responses", json=asked)
    assert first.status_code == 200, first.text
    second = await client.post(
        "/responses", json={"model": agent["id"], "input": "And?", "previous_response_id": first.json()["id"]}
    )
    assert second.status_code == 200, second.text
    calls = [call.body for call in provider.calls_for(model)]
    assert [call["max_completion_tokens"] for call in calls] == [300, 300]
    persona = "You are Miller.\n\nBe brief."
    assert calls[0]["messages"][0]["content"] == f"{persona}\n\nIn Dutch."
    assert calls[1]["messages"][0]["content"] == persona
    roles = ["system", "user", "assistant", "user"]
    assert [[message["role"] for message in call["messages"]] for call in calls] == [
        roles,
        [*roles, "assistant", "user"],
    ]
    job = (await client.get(f"/jobs/{first.json()['id'].replace('resp_', 'job_')}")).json()
    assert (job["agent_id"], job["agent_version"], job["model"]) == (agent["id"], 1, model)

    conversation = await client.post("/conversations", json={"items": [{"role": "user", "content": "I am Ada."}]})
    for turn in (1, 2):
        asked = {"model": agent["id"], "input": "Hi", "conversation": conversation.json()["id"]}
        assert (await client.post("/responses", json=asked)).status_code == 200
        said = [message["content"] for message in provider.calls_for(model)[-1].body["messages"][1:]]
        assert said == ["Who?", "The miller.", "I am Ada.", *["Hi", "The wheel turns."] * (turn - 1), "Hi"]
    items = (await client.get(f"/conversations/{conversation.json()['id']}/items")).json()["data"]
    assert len(items) == 5


async def test_the_persona_of_an_agent_counts_as_input(client: httpx.AsyncClient, model: str) -> None:
    agent = await create(client, model, system_prompt="Be brief. " * 300)

    async def count(name: str) -> httpx.Response:
        return await client.post("/responses/input_tokens", json={"model": name, "input": "Hi"})

    counted, bare = await count(agent["id"]), await count(model)
    assert counted.status_code == 200, counted.text
    assert counted.json()["input_tokens"] > bare.json()["input_tokens"] + 300
    assert (await client.delete(f"/agents/{agent['id']}")).is_success
    refused(await count(agent["id"]), 404, code="model_not_found", param="model")
