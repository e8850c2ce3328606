"""A foreground request whose client disconnects, at every stage of the request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import httpx
import psycopg
import pytest
from psycopg.rows import DictRow

from tests.e2e.jobs import chat, ended, get, job_of, leave, refused, submit
from tests.e2e.streams import EventStream
from tests.fakes.provider import DONE, Gate, Provider, chunk, hang, settled, status, stream
from tests.service import BOOTSTRAP_KEY, Service, Stores, connect, running_service, second_api


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory, stores: Stores, config: str) -> Iterator[Service]:
    """A service without a worker: accepted jobs stay queued."""
    with running_service(tmp_path_factory.mktemp("idle"), stores.fresh(), config, "api") as service:
        yield service


@pytest.fixture
async def idle_client(idle: Service) -> AsyncIterator[httpx.AsyncClient]:
    async with connect(idle, BOOTSTRAP_KEY) as client:
        yield client


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
async def test_while_it_is_queued_the_job_is_cancelled(
    idle: Service, idle_client: httpx.AsyncClient, model: str, streamed: bool
) -> None:
    async with connect(idle, BOOTSTRAP_KEY) as leaving:
        request = asyncio.create_task(leaving.post("/chat/completions", json=chat(model, stream=streamed)))
        job = await job_of(idle_client, model)
        assert job["status"] == "queued"
        await leave(request)
    assert (await ended(idle_client, job["id"]))["status"] == "cancelled"


async def test_a_wait_ends_at_its_limit(idle: Service, idle_client: httpx.AsyncClient, model: str) -> None:
    job_id = await submit(idle_client, model)
    async with second_api(idle, BOOTSTRAP_KEY, HEADRACE_WAIT_LIMIT_SECONDS="0.1") as client:
        waited = await client.get(f"/jobs/{job_id}", params={"wait": 3600})
    assert (waited.status_code, waited.json()["status"]) == (200, "queued")


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
async def test_before_the_upstream_has_answered_its_call_is_ended(
    service: Service, client: httpx.AsyncClient, provider: Provider, model: str, streamed: bool
) -> None:
    provider.script(model, hang)
    async with connect(service, BOOTSTRAP_KEY) as leaving:
        request = asyncio.create_task(leaving.post("/chat/completions", json=chat(model, stream=streamed)))
        call = await provider.call(model)
        job = await job_of(client, model)
        await leave(request)
    await settled(call.disconnected)
    assert (await ended(client, job["id"]))["status"] == "cancelled"
    assert len(provider.calls_for(model)) == 1


async def test_in_the_middle_of_a_stream_the_upstream_call_is_ended(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    gate = Gate()
    provider.script(model, stream(chunk({"role": "assistant", "content": "a"}), gate, chunk(finish="stop"), DONE))
    async with client.stream("POST", "/chat/completions", json=chat(model, stream=True)) as response:
        first = (await anext(EventStream(response))).data
    await settled((await provider.call(model)).disconnected)
    job = await ended(client, first["id"].replace("chatcmpl-", "job_"))
    assert job["status"] == "cancelled"
    assert job["result"] is None


async def test_in_the_middle_of_a_fast_stream_the_upstream_call_is_ended(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    script: list[object] = [chunk({"role": "assistant", "content": ""})]
    for _ in range(3000):
        script += [chunk("word "), 0.01]
    provider.script(model, stream(*script, chunk(finish="stop"), DONE))
    async with client.stream("POST", "/chat/completions", json=chat(model, stream=True)) as response:
        first = (await anext(EventStream(response))).data
    await settled((await provider.call(model)).disconnected)
    assert (await ended(client, first["id"].replace("chatcmpl-", "job_")))["status"] == "cancelled"


async def test_tokens_that_were_spent_before_are_in_the_ledger(
    client: httpx.AsyncClient, provider: Provider, model: str, database: psycopg.AsyncConnection[DictRow]
) -> None:
    gate = Gate()
    text = "a good many words that the provider will want to be paid for"
    provider.script(model, stream(chunk({"role": "assistant", "content": text}), gate, chunk(finish="stop"), DONE))
    async with client.stream("POST", "/chat/completions", json=chat(model, stream=True)) as response:
        first = (await anext(EventStream(response))).data
    job = await ended(client, first["id"].replace("chatcmpl-", "job_"))
    rows = await (await database.execute("SELECT * FROM usage WHERE job_id = %s", [job["id"]])).fetchall()
    assert len(rows) == 1
    assert rows[0]["estimated"]
    assert rows[0]["completion_tokens"] > 0


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
async def test_between_two_attempts_the_job_is_cancelled(
    service: Service, client: httpx.AsyncClient, provider: Provider, model: str, streamed: bool
) -> None:
    provider.script(model, status(503, retry_after=60))
    async with connect(service, BOOTSTRAP_KEY) as leaving:
        request = asyncio.create_task(leaving.post("/chat/completions", json=chat(model, stream=streamed)))
        await settled((await provider.call(model)).answered)
        job = await job_of(client, model)
        await leave(request)
    assert (await ended(client, job["id"]))["status"] == "cancelled"
    assert len(provider.calls_for(model)) == 1


async def test_while_its_body_is_still_on_the_way_no_job_is_made(
    service: Service, client: httpx.AsyncClient, model: str
) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", service.port)
    writer.write(
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {BOOTSTRAP_KEY}\r\n"
        f'content-type: application/json\r\ncontent-length: 500\r\n\r\n{{"model": "{model}"'.encode()
    )
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    # The next request through the same API is served, and nothing was made of the half one.
    assert (await client.get("/jobs", params={"model": model})).json()["data"] == []


async def test_a_queued_job_says_where_it_stands_and_is_cancelled_at_once(
    idle_client: httpx.AsyncClient, model: str
) -> None:
    ids = [await submit(idle_client, model) for _ in range(3)]
    positions = [(await get(idle_client, job_id))["queue_position"] for job_id in ids]
    assert positions == sorted(positions)
    assert len(set(positions)) == 3
    # A job is the same object in a list.
    listed = (await idle_client.get("/jobs", params={"model": model, "order": "asc"})).json()["data"]
    assert [job["queue_position"] for job in listed] == positions
    response = await idle_client.post(f"/jobs/{ids[0]}/cancel")
    assert response.status_code == 200
    assert response.json()["status"] == "cancelled"
    job = await get(idle_client, ids[0])
    assert job["status"] == "cancelled"
    assert job["attempt"] == 0
    assert job["started_at"] is None


async def test_events_of_a_queued_job_answer_at_once_and_stay_open(idle_client: httpx.AsyncClient, model: str) -> None:
    job_id = await submit(idle_client, model)
    async with idle_client.stream("GET", f"/jobs/{job_id}/events") as response:
        events = EventStream(response)
        assert (await anext(events)).name == "job.queued"
        await events.comment()
        await idle_client.post(f"/jobs/{job_id}/cancel")
        assert [event.name for event in await events.rest()] == ["job.cancelled"]


async def test_a_stream_in_the_queue_is_kept_open_and_told_when_it_is_cancelled(
    idle_client: httpx.AsyncClient, model: str
) -> None:
    async with idle_client.stream("POST", "/chat/completions", json=chat(model, stream=True)) as response:
        assert response.status_code == 200
        events = EventStream(response)
        assert await events.comment() == "ping"
        job = await job_of(idle_client, model)
        await idle_client.post(f"/jobs/{job['id']}/cancel")
        rest = await events.rest()
    assert any("error" in event.data for event in rest if isinstance(event.data, dict))


async def test_a_request_in_the_queue_is_told_when_it_is_cancelled(idle_client: httpx.AsyncClient, model: str) -> None:
    request = asyncio.create_task(idle_client.post("/chat/completions", json=chat(model)))
    job = await job_of(idle_client, model)
    await idle_client.post(f"/jobs/{job['id']}/cancel")
    response = await request
    assert response.status_code >= 400
    refused(response, response.status_code, code="job_cancelled")


async def test_deleting_a_queued_job_erases_it(idle_client: httpx.AsyncClient, model: str) -> None:
    job_id = await submit(idle_client, model)
    assert (await idle_client.delete(f"/jobs/{job_id}")).status_code == 200
    refused(await idle_client.get(f"/jobs/{job_id}"), 404)
