"""Conversations by OpenAI's own client, and by hand where no client would send it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs
import openai
import pytest

from headrace.ids import new_id
from tests.e2e.jobs import refused

Json = dict[str, Any]

SPECIFICATION = json.loads((Path(__file__).parent / "openai_conversations.schema.json").read_text())


def check(name: str, document: Json) -> Json:
    """Check an object against OpenAI's schema of that name, and return it."""
    jsonschema_rs.validator_for({"$ref": f"#/$defs/{name}", "$defs": SPECIFICATION["$defs"]}).validate(document)
    return document


def user(text: str) -> Json:
    return {"role": "user", "content": text}


ITEMS: list[Json] = [
    {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Be brief."}]},
    {"role": "user", "content": "What is the weather in Ulm?"},
    {"type": "reasoning", "summary": [{"type": "summary_text", "text": "A tool knows."}]},
    {"type": "function_call", "call_id": "call_1", "name": "weather", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "call_1", "output": "rain"},
    {"type": "custom_tool_call", "call_id": "call_2", "name": "note", "input": "rain"},
    {"type": "custom_tool_call_output", "call_id": "call_2", "output": "noted"},
    {"role": "assistant", "content": "It rains."},
]


async def create(client: httpx.AsyncClient, **body: Any) -> str:
    response = await client.post("/conversations", json=body)
    assert response.status_code == 200, response.text
    return str(check("ConversationResource", response.json())["id"])


async def add(client: httpx.AsyncClient, conversation: str, *items: Json, **headers: str) -> Json:
    response = await client.post(f"/conversations/{conversation}/items", json={"items": items}, headers=headers)
    assert response.status_code == 200, response.text
    return check("ConversationItemList", response.json())


async def test_openais_client_keeps_a_conversation(openai_client: openai.AsyncOpenAI) -> None:
    conversations = openai_client.conversations
    made = await conversations.create(metadata={"customer": "42"}, items=[{"role": "user", "content": "Hello!"}])
    assert made.metadata == {"customer": "42"}
    assert await conversations.retrieve(made.id) == made
    changed = await conversations.update(made.id, metadata={"customer": "43"})
    assert (changed.id, changed.created_at, changed.metadata) == (made.id, made.created_at, {"customer": "43"})

    added = await conversations.items.create(made.id, items=[{"role": "assistant", "content": "Good day."}])
    [answer] = added.data
    assert answer.type == "message"
    assert await conversations.items.retrieve(answer.id, conversation_id=made.id) == answer
    seen = [item async for item in conversations.items.list(made.id, order="asc", limit=1)]
    assert [item.role for item in seen if item.type == "message"] == ["user", "assistant"]
    left = await conversations.items.delete(answer.id, conversation_id=made.id)
    assert left == changed
    assert len((await conversations.items.list(made.id)).data) == 1

    deleted = await conversations.delete(made.id)
    assert (deleted.id, deleted.object, deleted.deleted) == (made.id, "conversation.deleted", True)
    with pytest.raises(openai.NotFoundError, match="not found"):
        await conversations.retrieve(made.id)


async def test_items_of_every_kind_come_back_as_openai_shapes_them(client: httpx.AsyncClient) -> None:
    conversation = await create(client, items=ITEMS)
    listed = check("ConversationItemList", (await client.get(f"/conversations/{conversation}/items?order=asc")).json())
    assert [item["type"] for item in listed["data"]] == [item.get("type", "message") for item in ITEMS]
    assert len({item["id"] for item in listed["data"]}) == len(ITEMS)
    assert (listed["first_id"], listed["last_id"]) == (listed["data"][0]["id"], listed["data"][-1]["id"])
    assert listed["data"][1]["content"] == [{"type": "input_text", "text": "What is the weather in Ulm?"}]
    assert listed["data"][-1]["content"][0]["text"] == "It rains."


async def test_a_given_id_is_replaced(client: httpx.AsyncClient) -> None:
    conversation = await create(client)
    given = {"id": "msg_mine", **user("Hello!")}
    added = await add(client, conversation, given, given)
    assert len({item["id"] for item in added["data"]} | {"msg_mine"}) == 3


async def test_pages_of_items_go_both_ways(client: httpx.AsyncClient) -> None:
    conversation = await create(client, items=[user(str(number)) for number in range(5)])
    path = f"/conversations/{conversation}/items"
    newest = (await client.get(path, params={"limit": 2})).json()
    assert [item["content"][0]["text"] for item in newest["data"]] == ["4", "3"]
    assert newest["has_more"] is True
    older = (await client.get(path, params={"limit": 3, "after": newest["last_id"]})).json()
    assert [item["content"][0]["text"] for item in older["data"]] == ["2", "1", "0"]
    assert older["has_more"] is False
    later = (await client.get(path, params={"order": "asc", "after": older["data"][0]["id"]})).json()
    assert [item["content"][0]["text"] for item in later["data"]] == ["3", "4"]


async def test_requests_that_are_sent_again_create_and_add_once(client: httpx.AsyncClient) -> None:
    key = new_id("key")
    body = {"items": [user("Hello!")]}
    made = [await client.post("/conversations", json=body, headers={"Idempotency-Key": key}) for _ in range(2)]
    assert made[0].json() == made[1].json()
    assert made[1].headers["idempotent-replayed"] == "true"
    conversation = made[0].json()["id"]
    headers = {"Idempotency-Key": new_id("key")}
    path = f"/conversations/{conversation}/items"
    again = await asyncio.gather(*(client.post(path, json=body, headers=headers) for _ in range(4)))
    assert len({response.text for response in again}) == 1
    assert len((await client.get(path)).json()["data"]) == 2
    [added] = again[0].json()["data"]
    assert (await client.delete(f"{path}/{added['id']}")).status_code == 200
    repeated = await client.post(path, json=body, headers=headers)
    assert repeated.json()["data"] == []
    assert len((await client.get(path)).json()["data"]) == 1
    update = {"Idempotency-Key": new_id("key")}
    for _ in range(2):
        await client.post(f"/conversations/{conversation}", json={"metadata": {"a": "1"}}, headers=update)
    assert (await client.get(f"/conversations/{conversation}")).json()["metadata"] == {"a": "1"}
    await client.delete(f"/conversations/{conversation}")
    refused(await client.post("/conversations", json=body, headers={"Idempotency-Key": key}), 404)
    refused(await client.get(f"/conversations/{conversation}"), 404)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        pytest.param({"items": [user("x")] * 21}, "items", id="21 items"),
        pytest.param({"items": "x"}, "items", id="a text"),
        pytest.param({"items": [1]}, "items[0]", id="a number"),
        pytest.param({"items": [user("x"), {"role": "user"}]}, "items[1].content", id="no content"),
        pytest.param({"items": [{"role": "king", "content": "x"}]}, "items[0].role", id="an unknown role"),
        pytest.param({"items": [{"type": "item_reference", "id": "msg_1"}]}, "items[0].type", id="a reference"),
        pytest.param({"items": [{"type": "riddle"}]}, "items[0].type", id="an unknown type"),
        pytest.param({"items": [{"id": "a\0", **user("x")}]}, "items[0].id", id="an id with U+0000"),
        pytest.param(
            {"items": [user("x"), {"role": "user", "content": [{"type": "input_text"}]}]},
            "items[1].content[0].text",
            id="a part without its text",
        ),
        pytest.param({"items": [], "name": "x"}, "name", id="an unknown field"),
    ],
)
async def test_items_that_are_not_valid_are_refused_by_their_path(
    client: httpx.AsyncClient, body: Json, param: str
) -> None:
    conversation = await create(client)
    for path in ("/conversations", f"/conversations/{conversation}/items"):
        assert refused(await client.post(path, json=body), 400)["param"] == param
    assert (await client.get(f"/conversations/{conversation}/items")).json()["data"] == []


async def test_an_id_that_does_not_exist_is_refused(client: httpx.AsyncClient) -> None:
    conversation = await create(client, items=[user("Hello!")])
    for unknown in (new_id("conv"), "conv_123", "%00"):
        for method, path in [("GET", ""), ("DELETE", ""), ("GET", "/items"), ("GET", "/items/msg_1")]:
            refused(await client.request(method, f"/conversations/{unknown}{path}"), 404)
        refused(await client.post(f"/conversations/{unknown}", json={"metadata": {}}), 404)
        refused(await client.post(f"/conversations/{unknown}/items", json={"items": []}), 404)
    for item in ("msg_123", "%00"):
        for method in ("GET", "DELETE"):
            refused(await client.request(method, f"/conversations/{conversation}/items/{item}"), 404)
        refused(await client.get(f"/conversations/{conversation}/items?after={item}"), 400)
    refused(await client.get(f"/conversations/{conversation}/items?include=everything"), 400)
    assert refused(await client.post(f"/conversations/{conversation}", json={}), 400)["param"] == "metadata"
    null = {"metadata": {"a": "\0"}}
    assert refused(await client.post(f"/conversations/{conversation}", json=null), 400)["param"] == "metadata.a"
