"""Requests that are sent again with their `Idempotency-Key`: what they make is there once, and found again."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator

import httpx
import psycopg
import pytest
from psycopg.rows import DictRow

from tests.e2e.batches import WHAT, jsonl, line
from tests.e2e.jobs import chat, completed, job_of, leave, refused
from tests.e2e.streams import chunks_of, text_of
from tests.provider import DONE, Gate, Json, Provider, answer, chunk, stream
from tests.service import BOOTSTRAP_KEY, Service, connect, second_api

Database = psycopg.AsyncConnection[DictRow]


@pytest.fixture
def key() -> dict[str, str]:
    """The header of a request that may be sent again."""
    return {"idempotency-key": secrets.token_hex(16)}


@pytest.fixture
async def elsewhere(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    """A client of another API process."""
    async with second_api(service, BOOTSTRAP_KEY) as client:
        yield client


async def test_the_same_request_is_the_same_job(
    client: httpx.AsyncClient, provider: Provider, model: str, key: dict[str, str]
) -> None:
    body = chat(model, background=True)
    first = await client.post("/chat/completions", json=body, headers=key)
    assert first.status_code == 202
    assert "idempotent-replayed" not in first.headers
    again = await client.post("/chat/completions", json=dict(reversed(body.items())), headers=key)
    assert again.status_code == 202
    assert again.headers["idempotent-replayed"] == "true"
    assert again.headers["location"] == first.headers["location"]
    assert again.json()["id"] == first.json()["id"]
    await completed(client, first.json()["id"])
    late = await client.post("/chat/completions", json=body, headers=key)
    assert (late.status_code, late.json()["status"]) == (202, "completed")
    assert len(provider.calls_for(model)) == 1


async def test_without_a_key_it_is_another_one(client: httpx.AsyncClient, model: str) -> None:
    ids = {(await client.post("/chat/completions", json=chat(model, background=True))).json()["id"] for _ in range(2)}
    assert len(ids) == 2


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
async def test_at_once_in_two_processes_both_get_the_one_answer(
    client: httpx.AsyncClient,
    elsewhere: httpx.AsyncClient,
    provider: Provider,
    model: str,
    key: dict[str, str],
    streamed: bool,
) -> None:
    gate = Gate()
    provider.always(model, answer("the one answer", hold=gate))
    body = chat(model, stream=streamed)
    asked = [
        asyncio.create_task(asker.post("/chat/completions", json=body, headers=key))
        for asker in (client, elsewhere) * 3
    ]
    await provider.call(model)
    gate.release()
    answers = await asyncio.gather(*asked)
    assert {found.status_code for found in answers} == {200}
    assert len({found.headers["x-headrace-job"] for found in answers}) == 1
    if streamed:
        assert {text_of(await chunks_of(found)) for found in answers} == {"the one answer"}
    else:
        assert len({found.content for found in answers}) == 1
    again = await client.post("/chat/completions", json=body, headers=key)
    assert again.headers["idempotent-replayed"] == "true"
    assert len(provider.calls_for(model)) == 1


async def test_in_the_middle_of_a_stream_the_second_gets_all_of_it(
    client: httpx.AsyncClient, elsewhere: httpx.AsyncClient, provider: Provider, model: str, key: dict[str, str]
) -> None:
    gate = Gate()
    provider.script(model, stream(*map(chunk, ("one ", "two ")), gate, chunk("three"), chunk(finish="stop"), DONE))
    body = chat(model, stream=True)
    async with client.stream("POST", "/chat/completions", json=body, headers=key) as first:
        lines = first.aiter_lines()
        while "two" not in await anext(lines):
            pass
        second = asyncio.create_task(elsewhere.post("/chat/completions", json=body, headers=key))
        await asyncio.sleep(0.2)
        gate.release()
        rest = [found async for found in lines]
    assert "data: [DONE]" in rest
    assert text_of(await chunks_of(await second)) == "one two three"


async def test_whoever_is_cut_off_comes_back_for_the_answer(
    service: Service, client: httpx.AsyncClient, provider: Provider, model: str, key: dict[str, str]
) -> None:
    gate = Gate()
    provider.always(model, answer("worth the wait", hold=gate))
    async with connect(service, BOOTSTRAP_KEY) as leaving:
        request = asyncio.create_task(leaving.post("/chat/completions", json=chat(model), headers=key))
        await provider.call(model)
        await leave(request)
    gate.release()
    found = await client.post("/chat/completions", json=chat(model), headers=key)
    assert found.json()["choices"][0]["message"]["content"] == "worth the wait"
    assert (await job_of(client, model))["status"] == "completed"
    assert len(provider.calls_for(model)) == 1


async def test_another_request_with_the_key_is_refused(
    client: httpx.AsyncClient, other: httpx.AsyncClient, model: str, key: dict[str, str]
) -> None:
    first = await client.post("/chat/completions", json=chat(model), headers=key)
    assert first.status_code == 200
    for path, body in [
        ("/chat/completions", chat(model, "something else")),
        ("/jobs", {"request": chat(model)}),
        ("/agents", {"name": "a", "model": model}),
    ]:
        refused(
            await client.post(path, json=body, headers=key), 409, code="idempotency_key_reused", param="Idempotency-Key"
        )
    theirs = await other.post("/chat/completions", json=chat(model), headers=key)
    assert theirs.headers["x-headrace-job"] != first.headers["x-headrace-job"]


@pytest.mark.parametrize("text", ["", "x" * 256, "ä"])
async def test_what_is_no_key(client: httpx.AsyncClient, model: str, text: str) -> None:
    headers = {b"idempotency-key": text.encode()}
    response = await client.post("/chat/completions", json=chat(model), headers=headers)
    refused(response, 400, param="Idempotency-Key", code="invalid_value")


async def test_a_refused_request_makes_nothing_and_may_come_again(
    client: httpx.AsyncClient, model: str, key: dict[str, str]
) -> None:
    refused(await client.post("/chat/completions", json={"model": model}, headers=key), 400)
    assert (await client.post("/chat/completions", json=chat(model), headers=key)).status_code == 200


async def test_a_day_later_the_key_is_free(
    client: httpx.AsyncClient, database: Database, model: str, key: dict[str, str]
) -> None:
    first = await client.post("/chat/completions", json=chat(model), headers=key)
    await database.execute(
        "UPDATE idempotency_keys SET created_at = now() - interval '25 hours' WHERE key = %s", [key["idempotency-key"]]
    )
    second = await client.post("/chat/completions", json=chat(model, "else"), headers=key)
    assert second.status_code == 200
    assert second.headers["x-headrace-job"] != first.headers["x-headrace-job"]


async def test_jobs_batches_agents_and_files_are_made_once(
    client: httpx.AsyncClient, model: str, key: dict[str, str]
) -> None:
    async def made(path: str, body: Json, name: str) -> str:
        header = {"idempotency-key": key["idempotency-key"] + name}
        found = {str((await client.post(path, json=body, headers=header)).json()["id"]) for _ in range(3)}
        assert len(found) == 1, path
        return found.pop()

    await completed(client, await made("/jobs", {"request": chat(model)}, "job"))
    await made("/agents", {"name": "a", "model": model}, "agent")
    await made("/batches", {"requests": [line("a", model)], **WHAT}, "inline")
    uploads = []
    header = {"idempotency-key": key["idempotency-key"] + "file"}
    for _ in range(3):
        files = {"file": ("in.jsonl", jsonl([line("a", model)]))}
        response = await client.post("/files", data={"purpose": "batch"}, files=files, headers=header)
        uploads.append(response.json()["id"])
    assert len(set(uploads)) == 1
    await made("/batches", {"input_file_id": uploads[0], **WHAT}, "batch")
    other = {"file": ("in.jsonl", jsonl([line("b", model)]))}
    refused(
        await client.post("/files", data={"purpose": "batch"}, files=other, headers=header),
        409,
        code="idempotency_key_reused",
    )


async def test_a_secret_that_is_shown_once_is_not_shown_again(client: httpx.AsyncClient, key: dict[str, str]) -> None:
    created = await client.post("/api-keys", json={"name": "once"}, headers=key)
    assert created.status_code == 200
    refused(await client.post("/api-keys", json={"name": "once"}, headers=key), 409)
    rotation = {"idempotency-key": key["idempotency-key"] + "r"}
    path = f"/api-keys/{created.json()['id']}/rotate"
    assert (await client.post(path, headers=rotation)).status_code == 200
    refused(await client.post(path, headers=rotation), 409)
    rotation = {"idempotency-key": key["idempotency-key"] + "s"}
    found = [(await client.post("/webhook-secrets", headers=rotation)).json() for _ in range(2)]
    assert found[0] == found[1]
