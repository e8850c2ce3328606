"""Requests that are sent again with their `Idempotency-Key`: each is done once, and its answer is returned again."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator

import httpx
import psycopg
import pytest
from psycopg.rows import DictRow

from tests.e2e import batches
from tests.e2e.batches import WHAT, jsonl, line, lines
from tests.e2e.jobs import chat, completed, job_of, leave, reaches, refused, submit
from tests.e2e.streams import EventStream, chunks_of, text_of
from tests.fakes.provider import DONE, Gate, Json, Provider, answer, chunk, hang, stream
from tests.fakes.receiver import running_receiver
from tests.service import BOOTSTRAP_KEY, Service, connect, second_api
from tests.waiting import eventually

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
        async with elsewhere.stream("POST", "/chat/completions", json=body, headers=key) as second:
            events, seen = EventStream(second), list[Json]()
            while text_of(seen) != "one two ":
                seen.append((await anext(events)).data)
            gate.release()
            *rest, done = await events.rest()
        assert "data: [DONE]" in [found async for found in lines]
    assert done.data == "[DONE]"
    assert text_of([*seen, *(event.data for event in rest)]) == "one two three"


async def test_a_client_that_is_cut_off_comes_back_for_the_answer(
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


async def upload(client: httpx.AsyncClient, data: bytes, headers: dict[str, str]) -> httpx.Response:
    files = {"file": ("in.jsonl", data)}
    return await client.post("/files", data={"purpose": "batch"}, files=files, headers=headers)


async def test_a_mistake_may_be_corrected_under_the_same_key(
    client: httpx.AsyncClient, model: str, key: dict[str, str]
) -> None:
    """Mistakes that no schema tells: only a request that is good claims its key."""
    file = (await upload(client, jsonl([line("a", model)]), {})).json()["id"]
    agent = (await client.post("/agents", json={"name": "a", "model": model})).json()["id"]
    corrections: list[tuple[str, Json, Json]] = [
        ("/chat/completions", chat("unknown-model"), chat(model)),
        ("/chat/completions", chat(model, fallbacks=["unknown-model"]), chat(model)),
        ("/jobs", {"request": chat("anthropic-x", logprobs=True)}, {"request": chat(model)}),
        ("/batches", {"input_file_id": "file-" + "0" * 32, **WHAT}, {"input_file_id": file, **WHAT}),
        ("/batches", {"input_file_id": file, "metadata": {"a": "\0"}, **WHAT}, {"input_file_id": file, **WHAT}),
        ("/agents", {"name": "a", "model": "unknown-model"}, {"name": "a", "model": model}),
        (f"/agents/{agent}", {"model": "unknown-model"}, {"model": model}),
        ("/api-keys", {"limits": {"alert_webhook": "http://[::1"}}, {}),
    ]
    for number, (path, wrong, right) in enumerate(corrections):
        header = {"idempotency-key": f"{key['idempotency-key']}-{number}"}
        first = await client.post(path, json=wrong, headers=header)
        assert first.status_code in {400, 404}, first.text
        second = await client.post(path, json=right, headers=header)
        assert second.status_code in {200, 202}, f"{path}: {second.text}"


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
    data = jsonl([line("a", model)])
    header = {"idempotency-key": key["idempotency-key"] + "file"}
    uploads = [await upload(client, data, header) for _ in range(3)]
    assert len({found.json()["id"] for found in uploads}) == 1
    assert [found.headers.get("idempotent-replayed") for found in uploads] == [None, "true", "true"]
    file = uploads[0].json()["id"]
    batch = await made("/batches", {"input_file_id": file, **WHAT}, "batch")
    refused(await upload(client, jsonl([line("b", model)]), header), 409, code="idempotency_key_reused")
    inputs = (await client.get("/files", params={"limit": 1, "purpose": "batch"})).json()
    assert inputs["first_id"] == file, "nothing is left of the others"
    await batches.reaches(client, batch, "completed")
    assert (await client.delete(f"/files/{file}")).status_code == 200
    assert await made("/batches", {"input_file_id": file, **WHAT}, "batch") == batch


async def test_an_upload_whose_api_died_before_its_end_is_ended_by_the_next(
    client: httpx.AsyncClient, database: Database, key: dict[str, str]
) -> None:
    data = b"x" * 300_000
    file = (await upload(client, data, key)).json()["id"]
    await database.execute("UPDATE files SET bytes = NULL, filename = '' WHERE id = %s", [file])
    refused(await client.get(f"/files/{file}"), 404)
    again = (await upload(client, data, key)).json()
    assert (again["id"], again["bytes"], again["filename"]) == (file, len(data), "in.jsonl")
    assert (await client.get(f"/files/{file}/content")).content == data


async def undo_claim(database: Database, key: dict[str, str]) -> None:
    """Leave a key as an API leaves it that claims it and dies."""
    await database.execute("UPDATE idempotency_keys SET applied = false WHERE key = %s", [key["idempotency-key"]])


async def test_a_secret_that_is_shown_once_is_not_shown_again(
    client: httpx.AsyncClient, database: Database, key: dict[str, str]
) -> None:
    created = await client.post("/api-keys", json={"name": "once"}, headers=key)
    assert created.status_code == 200
    refused(await client.post("/api-keys", json={"name": "once"}, headers=key), 409)
    rotation = {"idempotency-key": key["idempotency-key"] + "r"}
    path = f"/api-keys/{created.json()['id']}/rotate"
    assert (await client.post(path, headers=rotation)).status_code == 200
    refused(await client.post(path, headers=rotation), 409)
    await undo_claim(database, rotation)
    assert (await client.post(path, headers=rotation)).status_code == 200, "whose API died before it rotated the key"
    refused(await client.post(path, json={"overlap_seconds": 1}, headers=rotation), 409, code="idempotency_key_reused")
    rotation = {"idempotency-key": key["idempotency-key"] + "s"}
    found = [(await client.post("/webhook-secrets", headers=rotation)).json() for _ in range(2)]
    assert found[0] == found[1]


@pytest.fixture(params=["agent", "key", "account"])
async def changeable(request: pytest.FixtureRequest, client: httpx.AsyncClient, model: str) -> tuple[str, Json, Json]:
    """The path of something, and two changes of the same field."""
    if request.param == "agent":
        agent = await client.post("/agents", json={"name": "a", "model": model})
        return f"/agents/{agent.json()['id']}", {"name": "b"}, {"name": "c"}
    created = (await client.post("/api-keys", json={"account": f"account of {model}"})).json()
    if request.param == "key":
        return f"/api-keys/{created['id']}", {"name": "b"}, {"name": "c"}
    path = f"/account?account={created['account']}"
    return path, {"limits": {"jobs_queued": 1}}, {"limits": {"jobs_queued": 2}}


async def test_a_change_that_is_sent_again_undoes_no_later_one(
    client: httpx.AsyncClient, database: Database, key: dict[str, str], changeable: tuple[str, Json, Json]
) -> None:
    path, first, second = changeable
    answered = await client.post(path, json=first, headers=key)
    assert answered.status_code == 200, answered.text
    assert "idempotent-replayed" not in answered.headers
    later = (await client.post(path, json=second)).json()
    assert later != answered.json()
    again = await client.post(path, json=first, headers=key)
    assert (again.status_code, again.headers["idempotent-replayed"], again.json()) == (200, "true", later)
    assert (await client.get(path)).json().items() >= later.items()
    refused(await client.post(path, json=second, headers=key), 409, code="idempotency_key_reused")
    await undo_claim(database, key)
    done = await client.post(path, json=first, headers=key)
    assert "idempotent-replayed" not in done.headers
    assert {**done.json(), **first} == done.json(), "the API that claimed the key died before it changed anything"


async def test_an_account_by_another_name_is_another_request(
    client: httpx.AsyncClient, key: dict[str, str], model: str
) -> None:
    for name in (f"one {model}", f"two {model}"):
        await client.post("/api-keys", json={"account": name})
    body: Json = {"limits": {}}
    assert (await client.post(f"/account?account=one {model}", json=body, headers=key)).status_code == 200
    refused(await client.post(f"/account?account=two {model}", json=body, headers=key), 409)


async def test_the_same_change_at_once_in_two_processes_is_one(
    client: httpx.AsyncClient, elsewhere: httpx.AsyncClient, key: dict[str, str], model: str
) -> None:
    agent = (await client.post("/agents", json={"name": "a", "model": model})).json()["id"]
    asked = (asker.post(f"/agents/{agent}", json={"name": "b"}, headers=key) for asker in (client, elsewhere) * 3)
    answers = await asyncio.gather(*asked)
    assert {(found.status_code, found.json()["name"], found.json()["version"]) for found in answers} == {(200, "b", 2)}


async def test_a_job_is_cancelled_once(
    client: httpx.AsyncClient, provider: Provider, model: str, key: dict[str, str]
) -> None:
    provider.always(model, hang)
    mine, another = await submit(client, model), await submit(client, model)
    found = [await client.post(f"/jobs/{mine}/cancel", headers=key) for _ in range(2)]
    assert [answer.headers.get("idempotent-replayed") for answer in found] == [None, "true"]
    assert found[1].json()["status"] == (await reaches(client, mine, "cancelled"))["status"]
    refused(await client.post(f"/jobs/{another}/cancel", headers=key), 409, code="idempotency_key_reused")
    await client.post(f"/jobs/{another}/cancel")


async def test_a_batch_is_cancelled_once(
    client: httpx.AsyncClient, provider: Provider, model: str, key: dict[str, str]
) -> None:
    provider.always(model, hang)
    batch = await batches.submit(client, lines(model, 2))
    done = await batches.submit(client, lines(f"{model}-done", 1))
    await batches.reaches(client, done["id"], "completed")
    refused(await client.post(f"/batches/{done['id']}/cancel", headers=key), 409, code="conflict")
    found = [await client.post(f"/batches/{batch['id']}/cancel", headers=key) for _ in range(2)]
    assert [answer.headers.get("idempotent-replayed") for answer in found] == [None, "true"]
    await batches.reaches(client, batch["id"], "cancelled")
    last = await client.post(f"/batches/{batch['id']}/cancel", headers=key)
    assert (last.status_code, last.json()["status"]) == (200, "cancelled")


@pytest.mark.parametrize("kind", ["jobs", "batches"])
async def test_a_webhook_is_resent_once(
    client: httpx.AsyncClient, elsewhere: httpx.AsyncClient, model: str, key: dict[str, str], kind: str
) -> None:
    with running_receiver() as receiver:
        if kind == "jobs":
            subject = await submit(client, model, webhook=receiver.url)
        else:
            subject = (await batches.submit(client, lines(model, 1), webhook=receiver.url))["id"]
        path = f"/{kind}/{subject}/webhook-deliveries"

        async def delivered() -> str | None:
            found = (await client.get(path)).json()["data"]
            return found[0]["id"] if found and found[0]["status"] == "delivered" else None

        delivery = await eventually(delivered, "the webhook to be delivered")
        resend = f"{path}/{delivery}/resend"
        found = await asyncio.gather(*(asker.post(resend, headers=key) for asker in (client, elsewhere) * 3))
        assert {answer.status_code for answer in found} == {200}
        await eventually(delivered, "the webhook to be delivered again")
        late = await client.post(resend, headers=key)
        assert late.headers["idempotent-replayed"] == "true"
        assert late.json()["data"][0]["status"] == "delivered"
        assert len(receiver.messages) == 2
        refused(await client.post(f"{path}/{delivery}x/resend", headers=key), 404)
