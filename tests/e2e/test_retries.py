"""Which errors are retried, which are final, and which route the next attempt takes."""

from __future__ import annotations

import re
import secrets

import httpx
import psycopg
import pytest
from psycopg.rows import DictRow

from tests.e2e.jobs import chat, completed, ended, get, refused, submit
from tests.e2e.streams import chunks_of, text_of
from tests.fakes.provider import Behaviour, Provider, answer, chunk, connection_reset, status, stream
from tests.service import Service
from tests.waiting import eventually

RETRYABLE: list[tuple[str, Behaviour]] = [
    ("408", status(408)),
    ("409", status(409)),
    ("425", status(425)),
    ("429", status(429)),
    ("429 with Retry-After", status(429, retry_after=1)),
    ("429 with a date in Retry-After", status(429, retry_after="Wed, 21 Oct 2015 07:28:00 GMT")),
    ("429 with nonsense in Retry-After", status(429, retry_after="soon")),
    ("500", status(500)),
    ("502", status(502)),
    ("503", status(503)),
    ("529", status(529)),
    ("connection reset", connection_reset),
]


def job_id_of(completion: dict[str, str]) -> str:
    return completion["id"].replace("chatcmpl-", "job_")


@pytest.mark.parametrize("behaviour", [b for _, b in RETRYABLE], ids=[name for name, _ in RETRYABLE])
async def test_a_failure_of_the_moment_is_tried_again(
    client: httpx.AsyncClient, provider: Provider, model: str, behaviour: Behaviour
) -> None:
    provider.script(model, behaviour, answer("At last."))
    response = await client.post("/chat/completions", json=chat(model))
    assert response.status_code == 200, response.text
    assert response.json()["choices"][0]["message"]["content"] == "At last."
    assert len(provider.calls_for(model)) == 2


async def test_retry_after_is_honoured(client: httpx.AsyncClient, provider: Provider, model: str) -> None:
    provider.script(model, status(429, retry_after=2), answer("At last."))
    assert (await client.post("/chat/completions", json=chat(model))).status_code == 200
    first, second = provider.calls_for(model)
    assert second.arrived_at - first.arrived_at >= 2


async def test_a_stream_that_has_sent_nothing_yet_is_tried_again(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    provider.script(model, status(500), connection_reset, answer("At last."))
    async with client.stream("POST", "/chat/completions", json=chat(model, stream=True)) as response:
        assert response.status_code == 200
        chunks = await chunks_of(response)
    assert text_of(chunks) == "At last."


async def test_each_attempt_counts(client: httpx.AsyncClient, provider: Provider, model: str) -> None:
    provider.script(model, status(500), status(500), answer("At last."))
    job = await completed(client, await submit(client, model))
    assert job["attempt"] == 3


async def test_a_provider_that_stays_over_its_limit_is_a_429_in_the_end(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    provider.always(model, status(429, retry_after=0))
    refused(await client.post("/chat/completions", json=chat(model)), 429)
    assert 2 <= len(provider.calls_for(model)) <= 5


async def test_a_provider_that_stays_broken_is_a_502_in_the_end(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    provider.always(model, status(500))
    response = await client.post("/chat/completions", json=chat(model))
    refused(response, 502, type="upstream_error")


async def test_a_streams_error_has_the_same_status_after_all_attempts(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    provider.always(model, status(429, retry_after=0))
    async with client.stream("POST", "/chat/completions", json=chat(model, stream=True)) as response:
        body = (await response.aread()).decode()
    assert '"error"' in body
    assert response.status_code in {200, 429}


async def test_a_provider_that_is_not_there_is_a_502_or_503(client: httpx.AsyncClient) -> None:
    response = await client.post("/chat/completions", json=chat("absent"))
    assert response.status_code in {502, 503}
    refused(response, response.status_code)


async def test_the_next_route_is_taken_when_the_first_fails(client: httpx.AsyncClient, provider: Provider) -> None:
    model = f"routed-{secrets.token_hex(6)}"
    provider.script(model, *[status(500)] * 3, answer("From the second."))
    body = (await client.post("/chat/completions", json=chat(model))).json()
    assert body["choices"][0]["message"]["content"] == "From the second."
    paths = [call.path for call in provider.calls_for(model)]
    assert paths[0] == "/second/v1/chat/completions"
    assert paths[-1] == "/v1/chat/completions"
    assert (await get(client, job_id_of(body)))["provider"] == "fake"


async def test_the_first_route_answers_when_it_can(client: httpx.AsyncClient, provider: Provider) -> None:
    model = f"routed-{secrets.token_hex(6)}"
    body = (await client.post("/chat/completions", json=chat(model))).json()
    assert [call.path for call in provider.calls_for(model)] == ["/second/v1/chat/completions"]
    assert (await get(client, job_id_of(body)))["provider"] == "second"


async def test_a_route_to_nowhere_is_passed_over(client: httpx.AsyncClient, provider: Provider) -> None:
    model = f"detour-{secrets.token_hex(6)}"
    body = (await client.post("/chat/completions", json=chat(model))).json()
    assert body["choices"][0]["message"]["content"] == "You said: hello there"
    assert (await get(client, job_id_of(body)))["provider"] == "fake"


async def test_the_callers_own_error_takes_no_other_route(client: httpx.AsyncClient, provider: Provider) -> None:
    model = f"routed-{secrets.token_hex(6)}"
    provider.script(model, status(400))
    refused(await client.post("/chat/completions", json=chat(model)), 400)
    assert len(provider.calls_for(model)) == 1


@pytest.mark.parametrize("code", [400, 404, 413, 422])
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
async def test_a_refusal_of_the_provider_is_passed_on_as_openai_words_it(
    client: httpx.AsyncClient, provider: Provider, model: str, code: int, streamed: bool
) -> None:
    error = {
        "message": "Unsupported value: 'n' must be 1.",
        "type": "invalid_request_error",
        "param": "n",
        "code": "unsupported_value",
    }
    provider.script(model, status(code, {"error": error}))
    response = await client.post("/chat/completions", json=chat(model, stream=streamed))
    assert refused(response, code) == error
    assert len(provider.calls_for(model)) == 1


@pytest.mark.parametrize(
    "body", [{"detail": "no"}, {"error": "no"}, {"error": {"message": None}}, [], "no", None], ids=str
)
async def test_a_refusal_in_another_shape_gets_openais(
    client: httpx.AsyncClient, provider: Provider, model: str, body: object
) -> None:
    provider.script(model, status(400, body if body is not None else {}))
    refused(await client.post("/chat/completions", json=chat(model)), 400)


@pytest.mark.parametrize("code", [401, 403])
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
async def test_a_provider_that_refuses_our_key_is_not_the_clients_authentication_error(
    client: httpx.AsyncClient, provider: Provider, model: str, code: int, streamed: bool
) -> None:
    error = {"message": "Incorrect API key provided: sk-pr***1234.", "type": "invalid_request_error",
             "param": None, "code": "invalid_api_key"}  # fmt: skip
    provider.always(model, status(code, {"error": error}))
    response = await client.post("/chat/completions", json=chat(model, stream=streamed))
    assert response.status_code >= 500
    got = refused(response, response.status_code)
    assert got["code"] != "invalid_api_key"
    assert "sk-pr" not in response.text


async def test_a_background_job_that_loses_its_stream_starts_over(
    client: httpx.AsyncClient, provider: Provider, model: str, database: psycopg.AsyncConnection[DictRow]
) -> None:
    provider.script(model, stream(chunk({"role": "assistant", "content": "thrown away"})), answer("Kept."))
    job = await completed(client, await submit(client, model))
    assert job["result"]["choices"][0]["message"]["content"] == "Kept."
    assert job["attempt"] == 2
    rows = await (
        await database.execute("SELECT * FROM usage WHERE job_id = %s ORDER BY attempt", [job["id"]])
    ).fetchall()
    assert [(row["attempt"], row["kind"]) for row in rows] == [(1, "discarded"), (2, "counted")]
    assert rows[0]["completion_tokens"] > 0
    assert rows[0]["estimated"]


async def test_a_background_job_that_never_succeeds_fails(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    provider.always(model, status(500))
    job = await ended(client, await submit(client, model))
    assert job["status"] == "failed"
    assert job["error"].keys() >= {"message", "type", "param", "code"}
    assert job["result"] is None


async def test_a_job_tells_its_attempts(client: httpx.AsyncClient, provider: Provider) -> None:
    model = f"routed-{secrets.token_hex(6)}"
    provider.script(model, status(500), status(401), answer("From the second route."))
    job = await completed(client, await submit(client, model))
    first, second, third = job["attempts"]
    assert [first["status"], second["status"], third["status"]] == ["failed", "failed", "completed"]
    assert [first["provider"], second["provider"], third["provider"]] == ["second", "second", "fake"]
    assert {first["model"], second["model"], third["model"]} == {model}
    assert "scripted 500" in first["error"]["message"]
    assert second["error"]["code"] == "upstream_authentication"
    assert third["error"] is None
    assert job["created_at"] - 1 < first["started_at"] <= first["ended_at"] <= second["started_at"] < third["ended_at"]


async def test_why_there_is_no_connection_is_told_to_the_log_and_in_the_jobs_attempts(
    client: httpx.AsyncClient, service: Service, config: str
) -> None:
    [address] = re.findall(r'\[providers\.absent\]\n(?:.+\n)*?base_url = "(\S+)/v1"', config)
    job = await ended(client, await submit(client, "absent"))
    assert job["error"]["message"] == "The connection to the model's provider failed."
    assert {attempt["error"]["code"] for attempt in job["attempts"]} == {"upstream_error"}
    for attempt in job["attempts"]:
        assert f"({address}: " in attempt["error"]["message"]
        assert "onnect" in attempt["error"]["message"].partition(address)[2]

    def is_logged() -> bool:
        return any(job["id"] in line and f"upstream_error: {address}: " in line for line in service.logs().splitlines())

    await eventually(is_logged, "an attempt's line")
