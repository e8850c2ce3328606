"""A chat completion that the client waits for."""

from __future__ import annotations

import asyncio
import re

import httpx
import pytest

from tests.e2e.jobs import chat, completed, get, job_of, refused
from tests.fakes.provider import Gate, Json, Provider, answer, hang, settled, usage_of
from tests.service import BOOTSTRAP_KEY, PROVIDER_KEY, Service

EVERY_PARAMETER: Json = {
    "audio": {"voice": "alloy", "format": "wav"},
    "frequency_penalty": 0.5,
    "logit_bias": {"50256": -100},
    "logprobs": True,
    "max_completion_tokens": 100,
    "metadata": {"project": "waterwheel"},
    "modalities": ["text"],
    "n": 1,
    "parallel_tool_calls": False,
    "prediction": {"type": "content", "content": "as before"},
    "presence_penalty": -0.5,
    "prompt_cache_key": "cache-1",
    "reasoning_effort": "low",
    "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}},
    "safety_identifier": "user-hash",
    "seed": 7,
    "service_tier": "default",
    "stop": ["a", "b", "c", "d"],
    "store": True,
    "temperature": 2,
    "tool_choice": {"type": "function", "function": {"name": "weather"}},
    "tools": [
        {
            "type": "function",
            "function": {
                "name": "weather",
                "description": "Weather of a place",
                "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
                "strict": True,
            },
        }
    ],
    "top_logprobs": 20,
    "top_p": 1,
    "user": "someone",
    "verbosity": "low",
    "web_search_options": {},
}

EVERY_ROLE: list[Json] = [
    {"role": "developer", "content": "Be brief."},
    {"role": "system", "content": [{"type": "text", "text": "Be kind."}]},
    {
        "role": "user",
        "name": "ann",
        "content": [
            {"type": "text", "text": "What is this?"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}},
            {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
            {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,AAAA"}},
        ],
    },
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
    {"role": "assistant", "content": "Rain.", "refusal": None},
    {"role": "user", "content": "Merci — 谢谢 🙏"},
]


async def test_a_plain_request_is_answered_in_openais_shape(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    provider.script(model, answer("The wheel turns.", usage=usage_of(12, 5)))
    response = await client.post("/chat/completions", json=chat(model))
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("application/json")
    assert response.headers["x-request-id"]
    body = response.json()
    assert re.fullmatch(r"chatcmpl-[0-9a-f]{32}", body["id"])
    assert body["object"] == "chat.completion"
    assert isinstance(body["created"], int)
    assert body["model"]
    assert body["choices"][0]["index"] == 0
    assert body["choices"][0]["finish_reason"] == "stop"
    message = body["choices"][0]["message"]
    assert message["role"] == "assistant"
    assert message["content"] == "The wheel turns."
    assert message.get("refusal") is None
    assert {name: body["usage"][name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")} == usage_of(
        12, 5
    )


async def test_the_completions_id_is_its_jobs_and_its_created_the_jobs_too(
    client: httpx.AsyncClient, model: str
) -> None:
    body = (await client.post("/chat/completions", json=chat(model))).json()
    job = await get(client, body["id"].replace("chatcmpl-", "job_"))
    assert job["status"] == "completed"
    assert job["model"] == model
    assert job["result"] == body
    assert job["created_at"] == body["created"]


@pytest.mark.parametrize("prefix", ["/api/v1", "/v1"])
async def test_every_path_is_served_under_both_prefixes(service: Service, model: str, prefix: str) -> None:
    async with httpx.AsyncClient(
        base_url=service.base_url + prefix, headers={"authorization": f"Bearer {BOOTSTRAP_KEY}"}, verify=False
    ) as client:
        body = (await client.post("/chat/completions", json=chat(model), timeout=60)).json()
        assert body["object"] == "chat.completion"
        job_id = body["id"].replace("chatcmpl-", "job_")
        for path in (
            f"/jobs/{job_id}",
            "/jobs",
            f"/chat/completions/{body['id']}",
            "/models",
            f"/jobs/{job_id}/events",
        ):
            assert (await client.get(path)).status_code == 200, path


async def test_x_api_key_stands_in_for_the_bearer(anonymous: httpx.AsyncClient, model: str) -> None:
    response = await anonymous.post("/chat/completions", json=chat(model), headers={"x-api-key": BOOTSTRAP_KEY})
    assert response.status_code == 200, response.text


async def test_every_documented_parameter_reaches_the_upstream_as_it_came(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    response = await client.post("/chat/completions", json={**chat(model), **EVERY_PARAMETER})
    assert response.status_code == 200, response.text
    sent = (await provider.call(model)).body
    # These are ours to act on as well; a provider may or may not be told.
    ours = {"metadata", "store", "service_tier"}
    assert {name: sent.get(name) for name in EVERY_PARAMETER.keys() - ours} == {
        name: value for name, value in EVERY_PARAMETER.items() if name not in ours
    }


async def test_every_role_and_content_part_reaches_the_upstream_as_it_came(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    response = await client.post("/chat/completions", json={"model": model, "messages": EVERY_ROLE})
    assert response.status_code == 200, response.text
    assert (await provider.call(model)).body["messages"] == EVERY_ROLE


async def test_parameters_newer_than_us_pass_through(client: httpx.AsyncClient, provider: Provider, model: str) -> None:
    response = await client.post("/chat/completions", json=chat(model, brand_new={"deep": [1, None, 2.5]}, top_k=40))
    assert response.status_code == 200, response.text
    sent = (await provider.call(model)).body
    assert sent["brand_new"] == {"deep": [1, None, 2.5]}
    assert sent["top_k"] == 40


async def test_our_extensions_are_not_sent_upstream(client: httpx.AsyncClient, provider: Provider, model: str) -> None:
    response = await client.post("/chat/completions", json=chat(model, background=True, timeout=60))
    assert response.status_code == 202, response.text
    sent = (await provider.call(model)).body
    assert not sent.keys() & {"background", "timeout", "webhook", "fallbacks", "priority"}
    await completed(client, response.json()["id"])


async def test_the_upstream_gets_the_providers_key_and_none_of_ours(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    await client.post("/chat/completions", json=chat(model))
    call = await provider.call(model)
    assert call.headers["authorization"] == f"Bearer {PROVIDER_KEY}"
    assert BOOTSTRAP_KEY not in str(call.headers)


async def test_a_route_may_rename_the_model_and_the_client_sees_its_own_name_in_the_job(
    client: httpx.AsyncClient, provider: Provider
) -> None:
    body = (await client.post("/chat/completions", json=chat("renamed"))).json()
    assert (await provider.call("upstream-name")).body["model"] == "upstream-name"
    job = await get(client, body["id"].replace("chatcmpl-", "job_"))
    assert job["model"] == "renamed"
    assert job["provider"] == "fake"


async def test_a_long_text_of_every_kind_of_character_comes_through_unharmed(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    text = 'tab\t newline\n return\r quote" backslash\\ null-ish \u0001 line\u2028sep 🜄 é 漢字 data: [DONE]\n\n ' * 50
    provider.script(model, answer(text))
    body = (await client.post("/chat/completions", json=chat(model, text))).json()
    assert body["choices"][0]["message"]["content"] == text
    assert (await provider.call(model)).body["messages"][0]["content"] == text


async def test_many_requests_at_once_get_each_its_own_answer(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    gate = Gate()
    provider.script(model, *[answer(hold=gate)] * 40)
    requests = [
        asyncio.create_task(client.post("/chat/completions", json=chat(model, f"number {n}"))) for n in range(40)
    ]
    # All forty calls are in flight in one worker before the first is answered.
    await provider.call(model, 40)
    gate.release()
    for number, response in enumerate(await asyncio.gather(*requests)):
        assert response.json()["choices"][0]["message"]["content"] == f"You said: number {number}"


async def test_the_deadline_ends_a_request_that_the_upstream_never_answers(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    provider.script(model, hang)
    response = await client.post("/chat/completions", json=chat(model, timeout=4))
    refused(response, 504)
    await settled((await provider.call(model)).disconnected)


async def test_a_request_that_another_client_cancels_is_answered_with_an_error(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    provider.script(model, hang)
    request = asyncio.create_task(client.post("/chat/completions", json=chat(model)))
    await provider.call(model)
    job = await job_of(client, model)
    assert (await client.post(f"/jobs/{job['id']}/cancel")).status_code == 200
    response = await request
    refused(response, response.status_code, code="job_cancelled")
    assert response.status_code >= 400
