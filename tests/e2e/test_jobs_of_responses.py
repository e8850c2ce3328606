"""Jobs of the Responses API under the paths of jobs, of stored completions and of operators."""

from __future__ import annotations

import json

import httpx
import psycopg
import pytest
from psycopg.rows import DictRow

from tests.e2e.jobs import completed, refused, submit
from tests.e2e.streams import EventStream
from tests.e2e.test_events import read
from tests.fakes.provider import Json, Provider, answer, status
from tests.service import Service, connect

CONTENT = "The wheel turns and turns."


async def respond(client: httpx.AsyncClient, model: str) -> str:
    """Create a background response and return its job's id."""
    response = await client.post("/responses", json={"model": model, "input": "hello there", "background": True})
    assert response.status_code == 200, response.text
    return str(response.json()["id"].replace("resp_", "job_"))


@pytest.fixture
async def response_job(client: httpx.AsyncClient, provider: Provider, model: str) -> Json:
    """A completed job of the Responses API, beside a chat job of the same model."""
    provider.always(model, answer(CONTENT))
    await completed(client, await submit(client, model))
    return await completed(client, await respond(client, model))


async def test_its_result_is_the_response(response_job: Json) -> None:
    result = response_job["result"]
    assert response_job["format"] == "responses"
    assert (result["object"], result["status"]) == ("response", "completed")
    assert result["id"] == response_job["id"].replace("job_", "resp_")
    assert result["output"][0]["content"][0]["text"] == CONTENT
    assert response_job["usage"]["total_tokens"] == result["usage"]["total_tokens"]


async def test_its_deltas_are_the_events_of_the_response(client: httpx.AsyncClient, response_job: Json) -> None:
    events = await read(client, response_job["id"])
    assert [event.name for event in events[:2]] == ["job.queued", "job.started"]
    assert events[-1].data == response_job
    deltas = [event.data for event in events if event.name == "job.delta"]
    assert len(deltas) == len(events) - 3
    assert deltas[0]["type"] == "response.output_item.added"
    assert deltas[-1]["type"] == "response.output_item.done"
    assert deltas[-1]["item"] == response_job["result"]["output"][0]
    text = "".join(delta["delta"] for delta in deltas if delta["type"] == "response.output_text.delta")
    assert text == CONTENT
    for at, event in enumerate(events[1:-1], start=1):
        assert event.id is not None
        assert await read(client, response_job["id"], params={"after": event.id}) == events[at + 1 :]
    assert events[-1].id is not None
    assert await read(client, response_job["id"], params={"after": events[-1].id}) == []


async def test_an_event_that_it_does_not_have_is_refused(client: httpx.AsyncClient, response_job: Json) -> None:
    for event_id in ("1-9999", "0-9999", "9-0"):
        response = await client.get(f"/jobs/{response_job['id']}/events", params={"after": event_id})
        refused(response, 400, param="after")


async def test_after_a_retry_its_numbers_go_on(client: httpx.AsyncClient, provider: Provider, model: str) -> None:
    provider.script(model, status(503), answer(CONTENT))
    job_id = await respond(client, model)
    job = await completed(client, job_id)
    assert job["attempt"] == 2
    async with client.stream("GET", f"/jobs/{job_id}/events") as stream:
        events = await EventStream(stream).rest()
    numbers = [int((event.id or "").partition("-")[2]) for event in events if event.name == "job.delta"]
    assert numbers == list(range(1, len(numbers) + 1))
    assert events[-1].data == job


async def test_a_list_is_narrowed_by_format(client: httpx.AsyncClient, response_job: Json) -> None:
    async def listed(**query: str) -> list[str]:
        response = await client.get("/jobs", params={"model": response_job["model"], **query})
        assert response.status_code == 200, response.text
        return [job["format"] for job in response.json()["data"]]

    assert await listed() == ["responses", "chat"]
    assert await listed(format="responses") == ["responses"]
    assert await listed(format="chat") == ["chat"]
    refused(await client.get("/jobs", params={"format": "gemini"}), 400, param="format")


async def test_it_is_no_stored_completion(client: httpx.AsyncClient, response_job: Json) -> None:
    listed = (await client.get("/chat/completions", params={"model": response_job["model"]})).json()["data"]
    assert [each["object"] for each in listed] == ["chat.completion"]
    path = f"/chat/completions/{response_job['id'].replace('job_', 'chatcmpl-')}"
    refused(await client.get(path), 404)
    refused(await client.get(path, params={"stream": True}), 404)
    refused(await client.get(f"{path}/messages"), 404)
    refused(await client.post(path, json={"metadata": {"a": "b"}}), 404)
    refused(await client.delete(path), 404)
    assert (await client.get(f"/jobs/{response_job['id']}")).json() == response_job


async def test_it_is_erased_like_any_job(client: httpx.AsyncClient, response_job: Json) -> None:
    assert (await client.delete(f"/jobs/{response_job['id']}")).status_code == 200
    refused(await client.get(f"/jobs/{response_job['id']}"), 404)


async def test_an_operator_sees_its_text(service: Service, response_job: Json) -> None:
    shown = service.run("jobs", "show", response_job["id"])
    assert CONTENT in shown
    assert json.loads(service.run("jobs", "show", response_job["id"], "--json"))["result"] == response_job["result"]


async def test_its_events_are_made_of_its_result_once_its_deltas_are_pruned(
    client: httpx.AsyncClient, database: psycopg.AsyncConnection[DictRow], response_job: Json
) -> None:
    await database.execute("DELETE FROM job_deltas WHERE job_id = %s", [response_job["id"]])
    await database.execute("UPDATE jobs SET delta_count = 0 WHERE id = %s", [response_job["id"]])
    events = await read(client, response_job["id"])
    assert events == await read(client, response_job["id"])
    assert events[-1].data == response_job
    deltas = [event.data for event in events if event.name == "job.delta"]
    assert deltas[-1]["item"] == response_job["result"]["output"][0]
    stream = await client.get(f"/responses/{response_job['result']['id']}", params={"stream": True})
    assert stream.text.count("event: response.output_item.done\n") == 1
    assert stream.text.count("event: response.completed\n") == 1


async def test_a_rate_counts_what_it_continues(service: Service, provider: Provider, model: str) -> None:
    provider.always(model, answer(CONTENT))
    key = service.create_key(f"rate-{model}", "--tpm", "3000")
    async with connect(service, key["key"]) as client:
        long = {"model": model, "input": "word " * 2000, "max_output_tokens": 16}
        first = await client.post("/responses", json=long)
        assert first.status_code == 200, first.text
        short = {"model": model, "input": "And?", "max_output_tokens": 16}
        assert (await client.post("/responses", json=short)).status_code == 200
        refused(await client.post("/responses", json=short | {"previous_response_id": first.json()["id"]}), 429)
