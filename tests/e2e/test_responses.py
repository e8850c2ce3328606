"""The Responses API as its clients use it: whole, streamed, in the background, resumed, continued."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import openai
import psycopg
import pytest
from psycopg.rows import DictRow

from tests.fakes.provider import DONE, Gate, Json, Provider, answer, chunk, hang, settled, status, stream
from tests.service import Stores, looking_at_rows
from tests.unit.formats.responses.contract import check_event, check_response
from tests.waiting import eventually


def events_of(body: bytes) -> list[Json]:
    """Return the events of a stream; their names, ids and numbers have to agree."""
    found = []
    for block in body.decode().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if line and not line.startswith(":"))
        if "data" in fields:
            event = json.loads(fields["data"])
            assert fields["event"] == event["type"]
            assert fields["id"] == str(event["sequence_number"])
            check_event(event)
            found.append(event)
    return found


def blocks_of(body: bytes) -> list[bytes]:
    """Return the events of a stream as they came, without comments."""
    return [block for block in body.replace(b": ping\n", b"").split(b"\n\n") if block]


async def create(client: httpx.AsyncClient, model: str, **fields: Any) -> Json:
    answered = await client.post("/responses", json={"model": model, "input": "Hi", **fields})
    assert answered.status_code == 200, answered.text
    response: Json = answered.json()
    check_response(response)
    return response


async def stream_of(client: httpx.AsyncClient, response_id: str, **query: Any) -> bytes:
    answered = await client.get(f"/responses/{response_id}", params={"stream": "true", **query})
    assert answered.status_code == 200, answered.text
    return answered.content


def text_of(response: Json) -> str:
    return "".join(part["text"] for item in response["output"] for part in item["content"])


async def test_a_whole_response_is_stored(client: httpx.AsyncClient, provider: Provider, model: str) -> None:
    provider.script(model, answer("The wheel turns."))
    response = await create(client, model, metadata={"a": "b"}, instructions="Be brief.")
    assert response["status"] == "completed"
    assert text_of(response) == "The wheel turns."
    assert response["metadata"] == {"a": "b"}
    found = await client.get(f"/responses/{response['id']}")
    assert found.json() == response
    assert (await client.get(f"/chat/completions/chatcmpl-{response['id'][5:]}")).status_code == 404


async def test_a_stream_is_numbered_from_0_and_equals_its_replay(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    provider.script(model, stream(chunk("One "), chunk("two."), chunk(finish="stop"), DONE))
    streamed = await client.post("/responses", json={"model": model, "input": "Hi", "stream": True})
    events = events_of(streamed.content)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    response = events[-1]["response"]
    assert (await client.get(f"/responses/{response['id']}")).json() == response
    assert blocks_of(await stream_of(client, response["id"])) == blocks_of(streamed.content)


@pytest.mark.parametrize("background", [True, False])
async def test_any_cut_resumes_to_the_same_bytes(
    client: httpx.AsyncClient, provider: Provider, model: str, background: bool
) -> None:
    provider.script(model, stream(*map(chunk, "abcdef"), chunk(finish="stop"), DONE))
    fields = {"model": model, "input": "Hi", "stream": True, "background": background}
    whole = blocks_of((await client.post("/responses", json=fields)).content)
    response_id = events_of(whole[0])[0]["response"]["id"]
    for number in range(len(whole) + 2):
        resumed = blocks_of(await stream_of(client, response_id, starting_after=number))
        assert resumed == whole[number + 1 :]
    by_header = await client.get(f"/responses/{response_id}", params={"stream": "true"}, headers={"last-event-id": "3"})
    assert blocks_of(by_header.content) == whole[4:]


async def test_a_background_response_runs_without_its_client(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    gate = Gate()
    provider.script(model, stream(chunk("One "), gate, chunk("two."), chunk(finish="stop"), DONE))
    response = await create(client, model, background=True)
    assert response["status"] in {"queued", "in_progress"}
    await settled(gate.reached)
    assert (await client.get(f"/responses/{response['id']}")).json()["status"] == "in_progress"
    gate.release()
    events = events_of(await stream_of(client, response["id"]))
    assert [event["type"] for event in events[:3]] == ["response.created", "response.queued", "response.in_progress"]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert text_of(events[-1]["response"]) == "One two."


async def test_a_response_continues_another(client: httpx.AsyncClient, provider: Provider, model: str) -> None:
    provider.script(model, answer("First."), answer("Second."))
    first = await create(client, model, input="One", instructions="Only here.")
    second = await create(client, model, input="Two", previous_response_id=first["id"])
    assert second["previous_response_id"] == first["id"]
    said = [(message["role"], message["content"]) for message in provider.calls_for(model)[-1].body["messages"]]
    assert [role for role, _ in said] == ["user", "assistant", "user"]
    items = (await client.get(f"/responses/{second['id']}/input_items", params={"order": "asc"})).json()
    assert [item["role"] for item in items["data"]] == ["user", "assistant", "user"]
    assert items["data"][1]["id"] == first["output"][0]["id"]


async def test_a_cancelled_response_ends_its_streams(client: httpx.AsyncClient, provider: Provider, model: str) -> None:
    provider.script(model, hang)
    response = await create(client, model, background=True)
    for _ in range(2):
        cancelled = await client.post(f"/responses/{response['id']}/cancel")
        assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelled")
    events = events_of(await stream_of(client, response["id"]))
    assert events[-1]["type"] == "response.failed"
    assert events[-1]["response"]["status"] == "cancelled"
    assert [event["sequence_number"] for event in events] == list(range(len(events)))


async def test_a_response_that_completes_before_its_cancellation_is_not_cancelled(
    client: httpx.AsyncClient,
    provider: Provider,
    model: str,
    database: psycopg.AsyncConnection[DictRow],
    stores: Stores,
) -> None:
    gate = Gate()
    provider.script(model, answer("The wheel turns.", hold=gate))
    response = await create(client, model, background=True)
    await settled(gate.reached)
    async with looking_at_rows(stores) as second:

        async def waits(statement: str) -> bool:
            query = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE %s"
            return (await second.execute(query, [f"%{statement}%"])).rowcount > 0

        async with database.transaction():
            job_id = response["id"].replace("resp_", "job_")
            await database.execute("SELECT FROM jobs WHERE id = %s FOR NO KEY UPDATE", [job_id])
            gate.release()
            await eventually(lambda: waits("WITH finished AS"), "the worker to end the job")
            cancelling = asyncio.create_task(client.post(f"/responses/{response['id']}/cancel"))
            await eventually(lambda: waits("SET cancel_requested_at"), "the cancellation")
    cancelled = await cancelling
    assert cancelled.status_code == 400, cancelled.text
    assert cancelled.json()["error"]["param"] == "response_id"
    assert (await client.get(f"/responses/{response['id']}")).json()["status"] == "completed"


async def test_a_failed_response_says_why(client: httpx.AsyncClient, provider: Provider, model: str) -> None:
    provider.script(model, *[status(400)] * 3)
    response = await create(client, model, background=True)
    events = events_of(await stream_of(client, response["id"]))
    assert events[-1]["type"] == "response.failed"
    assert events[-1]["response"]["error"]["message"]
    assert (await client.get(f"/responses/{response['id']}")).json()["status"] == "failed"


async def test_an_erased_response_is_gone(
    client: httpx.AsyncClient, other: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    response = await create(client, model)
    path = f"/responses/{response['id']}"
    assert (await other.get(path)).status_code == 404
    assert (await other.delete(path)).status_code == 404
    deleted = await client.delete(path)
    assert deleted.json() == {"id": response["id"], "object": "response", "deleted": True}
    assert (await client.get(path)).status_code == 404
    refused = await client.post(
        "/responses", json={"model": model, "input": "x", "previous_response_id": response["id"]}
    )
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "previous_response_not_found"


async def test_openais_client_works_unmodified(
    openai_client: openai.AsyncOpenAI, provider: Provider, model: str
) -> None:
    provider.script(model, answer("Hello."), stream(chunk("One "), chunk("two."), chunk(finish="stop"), DONE))
    response = await openai_client.responses.create(model=model, input="Hi")
    assert response.output_text == "Hello."
    async with openai_client.responses.stream(model=model, input="Hi") as events:
        final = await events.get_final_response()
    assert final.output_text == "One two."
    again = await openai_client.responses.retrieve(final.id, stream=True, starting_after=4)
    assert [event.sequence_number async for event in again] == [5, 6, 7, 8, 9]
    listed = await openai_client.responses.input_items.list(final.id)
    assert [item.type async for item in listed] == ["message"]
    await openai_client.responses.delete(final.id)
