"""Formats other than chat completions, end to end: OpenAI's client gets the same answers from each provider."""

from __future__ import annotations

import asyncio
import json
import secrets
from typing import Any

import httpx
import openai
import psycopg
import pytest
from psycopg.rows import DictRow

from tests.e2e.jobs import chat, completed, ended, get, reaches, refused, submit
from tests.e2e.streams import chunks_of, text_of
from tests.fakes.provider import RESET, Exchange, Gate, Provider, answer, hang, html, sse, status, stream, usage_of
from tests.service import PROVIDER_KEY
from tests.waiting import eventually

FORMATS = ["anthropic", "gemini", "responses"]
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {}}}}
    for name in ("get_weather", "get_time")
]


@pytest.fixture(params=FORMATS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(kind: str) -> str:
    return f"{kind}-x{secrets.token_hex(6)}"


def text_event(kind: str, text: str) -> Any:
    if kind == "anthropic":
        return {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}
    if kind == "responses":
        return {
            "type": "response.output_text.delta",
            "item_id": "m",
            "output_index": 0,
            "content_index": 0,
            "delta": text,
        }
    return {"candidates": [{"index": 0, "content": {"parts": [{"text": text}]}}], "modelVersion": "upstream"}


def first_events(kind: str) -> list[Any]:
    """Return what comes before the first text."""
    if kind == "gemini":
        return []
    if kind == "responses":
        item = {"id": "m", "type": "message", "role": "assistant", "content": []}
        return [
            {"type": "response.created", "response": {"id": "r", "model": "upstream", "output": []}},
            {"type": "response.output_item.added", "output_index": 0, "item": item},
        ]
    message = {"id": "m", "model": "upstream", "content": [], "usage": {"input_tokens": 3, "output_tokens": 1}}
    block = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    return [{"type": "message_start", "message": message}, block]


def error_event(kind: str) -> Any:
    if kind == "anthropic":
        return {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    if kind == "responses":
        return {"type": "error", "code": "server_error", "message": "Overloaded", "param": None}
    return {"error": {"code": 503, "message": "Overloaded", "status": "UNAVAILABLE"}}


# -- what works -------------------------------------------------------------------------------------------------------


async def test_a_plain_completion(openai_client: openai.AsyncOpenAI, provider: Provider, model: str, kind: str) -> None:
    provider.script(model, answer("Hello there.", usage=usage_of(12, 3)))
    completion = await openai_client.chat.completions.create(
        model=model,
        messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
    )
    assert completion.choices[0].message.content == "Hello there."
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage is not None
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (12, 3)
    (call,) = provider.calls_for(model)
    assert call.kind == kind
    if kind == "responses":
        assert call.headers["authorization"] == f"Bearer {PROVIDER_KEY}"
        assert call.body["input"][0] == {"type": "message", "role": "system", "content": "Be brief."}
        return
    assert call.headers[{"anthropic": "x-api-key", "gemini": "x-goog-api-key"}[kind]] == PROVIDER_KEY
    assert "authorization" not in call.headers
    assert "system" in call.body or "systemInstruction" in call.body


async def test_a_stream(client: httpx.AsyncClient, provider: Provider, model: str) -> None:
    provider.script(model, answer("Streams come in words.", usage=usage_of(12, 4)))
    body = chat(model, stream=True, stream_options={"include_usage": True})
    async with client.stream("POST", "/chat/completions", json=body) as response:
        assert response.status_code == 200
        chunks = await chunks_of(response)
    assert text_of(chunks) == "Streams come in words."
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert sum(bool(chunk["choices"] and chunk["choices"][0]["delta"].get("content")) for chunk in chunks) == 4
    assert [c["choices"][0]["finish_reason"] for c in chunks if c["choices"]][-1] == "stop"
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["total_tokens"] == 16


async def test_tools_there_and_back(openai_client: openai.AsyncOpenAI, provider: Provider, model: str) -> None:
    calls = [("call_1", "get_weather", {"place": "Ghent"}), ("call_2", "get_time", {"zone": "CET"})]
    provider.script(model, answer("I look.", calls=calls, finish="tool_calls"), answer("It rains at noon."))
    history: list[Any] = [{"role": "user", "content": "Weather and time?"}]
    async with await openai_client.chat.completions.create(
        model=model, messages=history, tools=TOOLS, stream=True
    ) as chunks:
        said, finish = "", None
        called: dict[int, Any] = {}
        async for chunk in chunks:
            choice = chunk.choices[0]
            said += choice.delta.content or ""
            finish = choice.finish_reason or finish
            for part in choice.delta.tool_calls or ():
                known = called.setdefault(part.index, {"id": part.id, "name": "", "arguments": ""})
                assert part.function is not None
                known["name"] += part.function.name or ""
                known["arguments"] += part.function.arguments or ""
    assert (said, finish) == ("I look.", "tool_calls")
    assert [(c["id"], c["name"], json.loads(c["arguments"])) for c in called.values()] == calls
    history.append(
        {
            "role": "assistant",
            "content": said,
            "tool_calls": [
                {"id": c["id"], "type": "function", "function": {"name": c["name"], "arguments": c["arguments"]}}
                for c in called.values()
            ],
        }
    )
    history += [{"role": "tool", "tool_call_id": id_, "content": "rain"} for id_, _, _ in calls]
    completion = await openai_client.chat.completions.create(model=model, messages=history, tools=TOOLS)
    assert completion.choices[0].message.content == "It rains at noon."
    sent = json.dumps(provider.calls_for(model)[1].body)
    assert "I look." in sent
    assert all(id_ in sent and name in sent for id_, name, _ in calls)


@pytest.mark.parametrize("streamed", [False, True])
async def test_thought_comes_back(client: httpx.AsyncClient, provider: Provider, model: str, streamed: bool) -> None:
    provider.script(model, answer("42", thoughts=["Let me", " see."]))
    if streamed:
        completion = (await completed(client, await submit(client, model, reasoning_effort="high")))["result"]
    else:
        completion = (await client.post("/chat/completions", json=chat(model, reasoning_effort="high"))).json()
    message = completion["choices"][0]["message"]
    assert message["reasoning_content"] == "Let me see."
    assert message["content"] == "42"
    sent = json.dumps(provider.calls_for(model)[0].body)
    assert ("effort" if model.startswith("responses") else "thinking") in sent


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("kind", ["responses"])
async def test_encrypted_thoughts_come_and_go_back(
    openai_client: openai.AsyncOpenAI, provider: Provider, model: str, streamed: bool
) -> None:
    calls = [("call_1", "get_weather", {"place": "Ghent"})]
    provider.script(model, answer("", thoughts=["Hm."], calls=calls, finish="tool_calls"), answer("Rain."))
    history: list[Any] = [{"role": "user", "content": "Weather?"}]
    if streamed:
        async with openai_client.chat.completions.stream(model=model, messages=history, tools=TOOLS) as events:
            completion: Any = await events.get_final_completion()
    else:
        completion = await openai_client.chat.completions.create(model=model, messages=history, tools=TOOLS)
    message = completion.choices[0].message
    history += [message.model_dump(exclude_none=True), {"role": "tool", "tool_call_id": "call_1", "content": "wet"}]
    await openai_client.chat.completions.create(model=model, messages=history, tools=TOOLS)
    sent = provider.calls_for(model)[1].body["input"]
    assert [item["type"] for item in sent] == ["message", "reasoning", "function_call", "function_call_output"]
    assert (sent[1]["id"], sent[1]["encrypted_content"]) == ("rs_upstream", "c2ln")


async def test_thought_is_streamed(client: httpx.AsyncClient, provider: Provider, model: str) -> None:
    provider.script(model, answer("42", thoughts=["Let me", " see."]))
    async with client.stream("POST", "/chat/completions", json=chat(model, stream=True)) as response:
        chunks = await chunks_of(response)
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    assert [delta["reasoning_content"] for delta in deltas if "reasoning_content" in delta] == ["Let me", " see."]
    assert text_of(chunks) == "42"


@pytest.mark.parametrize("streamed", [False, True])
async def test_several_choices(
    client: httpx.AsyncClient, provider: Provider, model: str, kind: str, streamed: bool
) -> None:
    """Gemini gives them in one call; of Anthropic's there are as many, whose usage is added up."""
    provider.always(model, answer("One of three.", usage=usage_of(10, 3)))
    body = chat(model, n=3, stream=streamed)
    if streamed:
        async with client.stream("POST", "/chat/completions", json=body) as response:
            chunks = await chunks_of(response)
        job_id = chunks[0]["id"].replace("chatcmpl-", "job_")
        for index in range(3):
            of_it = [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]
            assert "".join(c["delta"].get("content") or "" for c in of_it) == "One of three."
            assert of_it[-1]["finish_reason"] == "stop"
    else:
        response = await client.post("/chat/completions", json=body)
        assert [choice["index"] for choice in response.json()["choices"]] == [0, 1, 2]
        assert {choice["message"]["content"] for choice in response.json()["choices"]} == {"One of three."}
        job_id = response.json()["id"].replace("chatcmpl-", "job_")
    calls = 1 if kind == "gemini" else 3
    assert len(provider.calls_for(model)) == calls
    job = await completed(client, job_id)
    assert job["usage"]["total_tokens"] == 13 * calls
    assert [choice["message"]["content"] for choice in job["result"]["choices"]] == ["One of three."] * 3


async def test_a_background_job_can_be_watched_and_polled(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    provider.script(model, answer("Watched and polled."))
    job_id = await submit(client, model)
    job = await completed(client, job_id)
    async with client.stream("GET", f"/chat/completions/{job['result']['id']}?stream=true") as response:
        assert text_of(await chunks_of(response)) == "Watched and polled."
    assert job["result"]["choices"][0]["message"]["content"] == "Watched and polled."


async def test_usage_and_cost_are_kept(
    client: httpx.AsyncClient,
    provider: Provider,
    model: str,
    kind: str,
    stores: Any,
    database: psycopg.AsyncConnection[DictRow],
) -> None:
    del stores
    thought = {"reasoning_tokens": 0 if kind == "anthropic" else 30}
    usage = usage_of(1000, 100, prompt_tokens_details={"cached_tokens": 400}, completion_tokens_details=thought)
    provider.script(model, answer("Counted.", usage=usage))
    job = await completed(client, await submit(client, model))
    assert job["usage"]["prompt_tokens"] == 1000
    assert job["usage"]["prompt_tokens_details"]["cached_tokens"] == 400
    row = await (await database.execute("SELECT * FROM usage WHERE job_id = %s", (job["id"],))).fetchone()
    assert row is not None
    assert (row["prompt_tokens"], row["cached_tokens"], row["completion_tokens"]) == (1000, 400, 100)
    assert row["reasoning_tokens"] == thought["reasoning_tokens"]
    assert not row["estimated"]
    assert float(row["cost"]) == pytest.approx({"anthropic": 0.0045, "gemini": 0.00055, "responses": 0.0035}[kind])


async def test_a_schema_reaches_the_provider(client: httpx.AsyncClient, provider: Provider, model: str) -> None:
    provider.script(model, answer('{"a": 1}'))
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}}
    response = await client.post("/chat/completions", json=chat(model, response_format=form))
    assert json.loads(response.json()["choices"][0]["message"]["content"]) == {"a": 1}
    assert '"required": ["a"]' in json.dumps(provider.calls_for(model)[0].body)


# -- parameters that a format has nothing for -------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["whole", "stream", "background"])
async def test_what_is_dropped_is_named(client: httpx.AsyncClient, model: str, how: str) -> None:
    said = {"type": "content", "content": "x"}
    body = chat(model, prediction=said, newer="x", stream=how == "stream", background=how == "background")
    response = await client.post("/chat/completions", json=body)
    assert response.is_success
    assert response.headers["x-headrace-dropped-params"] == "prediction, newer"


async def test_names_that_are_no_header_do_no_harm(client: httpx.AsyncClient, model: str) -> None:
    response = await client.post("/chat/completions", json=chat(model) | {"näme\r\nx-evil: 1": 1})
    assert response.status_code == 200
    assert response.headers["x-headrace-dropped-params"] == "n%C3%A4me%0D%0Ax-evil%3A%201"


async def test_nothing_dropped_nothing_named(client: httpx.AsyncClient, model: str) -> None:
    response = await client.post("/chat/completions", json=chat(model, max_tokens=50, temperature=0.5, n=1))
    assert "x-headrace-dropped-params" not in response.headers


async def test_strictness_makes_it_an_error(client: httpx.AsyncClient, provider: Provider, model: str) -> None:
    response = await client.post("/chat/completions", json=chat(model, thinks=1, strict_params=True))
    refused(response, 400, param="thinks", code="unsupported_parameter")
    assert not provider.calls_for(model)


async def test_what_matters_is_refused(client: httpx.AsyncClient, provider: Provider, model: str) -> None:
    response = await client.post("/chat/completions", json=chat(model, logit_bias={"50256": -100}))
    refused(response, 400, param="logit_bias", code="unsupported_parameter")
    assert not provider.calls_for(model)


async def test_a_route_that_can_honour_it_is_taken(client: httpx.AsyncClient, provider: Provider) -> None:
    model = f"either-{secrets.token_hex(6)}"
    assert (await client.post("/chat/completions", json=chat(model))).status_code == 200
    assert (await client.post("/chat/completions", json=chat(model, logprobs=True))).status_code == 200
    assert [call.kind for call in provider.calls_for(model)] == ["anthropic", "openai"]


@pytest.mark.parametrize("kind", ["anthropic", "gemini"])
async def test_a_medium_that_makes_no_sense_is_the_callers_error(client: httpx.AsyncClient, model: str) -> None:
    url = "data:image/png;base64,$$$"
    part = {"type": "image_url", "image_url": {"url": url}}
    body = chat(model) | {"messages": [{"role": "user", "content": [part]}]}
    refused(await client.post("/chat/completions", json=body), 400, param="messages[0].content[0].image_url.url")
    said = {"role": "user", "content": [{"type": "input_image", "image_url": url}]}
    body = {"model": model, "instructions": "Look.", "input": [said]}
    refused(await client.post("/responses", json=body), 400, param="input[0].content[0].image_url")


# -- faults -----------------------------------------------------------------------------------------------------------


async def test_a_refusal_is_passed_on(client: httpx.AsyncClient, provider: Provider, model: str) -> None:
    provider.script(model, status(400))
    response = await client.post("/chat/completions", json=chat(model))
    refused(response, 400)
    assert "scripted 400" in response.json()["error"]["message"]


@pytest.mark.parametrize("code", [429, 500, 503, 529])
async def test_a_failure_of_the_moment_is_tried_again(
    client: httpx.AsyncClient, provider: Provider, model: str, code: int
) -> None:
    provider.script(model, status(code), answer("At last."))
    response = await client.post("/chat/completions", json=chat(model))
    assert response.json()["choices"][0]["message"]["content"] == "At last."


async def test_a_delay_in_the_body_is_honoured(client: httpx.AsyncClient, provider: Provider) -> None:
    """Gemini says when to come back in its error, not in a header."""
    model = f"gemini-x{secrets.token_hex(6)}"
    delayed = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "1.5s"}
    error = {"error": {"code": 429, "message": "m", "status": "RESOURCE_EXHAUSTED", "details": [delayed]}}
    provider.script(model, status(429, error), answer("At last."))
    assert (await client.post("/chat/completions", json=chat(model))).status_code == 200
    first, second = provider.calls_for(model)
    assert second.arrived_at - first.arrived_at >= 1.5


async def test_an_error_before_any_text_is_tried_again(
    client: httpx.AsyncClient, provider: Provider, model: str, kind: str
) -> None:
    provider.script(model, stream(*first_events(kind), error_event(kind)), answer("At last."))
    async with client.stream("POST", "/chat/completions", json=chat(model, stream=True)) as response:
        assert text_of(await chunks_of(response)) == "At last."


@pytest.mark.parametrize("end", ["error", "half", "reset", "garbage"])
async def test_a_stream_that_breaks_ends_with_an_error(
    client: httpx.AsyncClient, provider: Provider, model: str, kind: str, end: str
) -> None:
    last: list[Any] = {
        "error": [0.2, error_event(kind)],
        "half": [],
        "reset": [0.2, RESET],
        "garbage": [0.2, sse({"type": 7, "candidates": 5})],
    }[end]
    provider.script(model, stream(*first_events(kind), text_event(kind, "Half"), *last))
    async with client.stream("POST", "/chat/completions", json=chat(model, stream=True)) as response:
        lines = [line async for line in response.aiter_lines() if line.startswith("data: ")]
    assert "Half" in lines[0] + lines[1]
    assert "error" in json.loads(lines[-1].removeprefix("data: "))


async def test_a_background_job_starts_over(
    client: httpx.AsyncClient, provider: Provider, model: str, kind: str
) -> None:
    provider.script(model, stream(*first_events(kind), text_event(kind, "Half")), answer("The whole."))
    job = await completed(client, await submit(client, model))
    assert job["attempt"] == 2
    assert job["result"]["choices"][0]["message"]["content"] == "The whole."


async def test_a_web_page_is_no_answer(client: httpx.AsyncClient, provider: Provider, model: str) -> None:
    provider.always(model, html())
    refused(await client.post("/chat/completions", json=chat(model)), 502)


@pytest.mark.parametrize("n", [1, 3])
async def test_a_cancel_ends_every_call(client: httpx.AsyncClient, provider: Provider, model: str, n: int) -> None:
    provider.always(model, hang)
    job_id = await submit(client, model, n=n)
    await provider.call(model)
    await reaches(client, job_id, "running")

    async def all_there() -> bool:
        return len(provider.calls_for(model)) == (1 if model.startswith("gemini") else n)

    await eventually(all_there, "every call")
    assert (await client.post(f"/jobs/{job_id}/cancel")).is_success
    assert (await ended(client, job_id))["status"] == "cancelled"

    async def all_gone() -> bool:
        return all(call.disconnected.done() for call in provider.calls_for(model))

    await eventually(all_gone, "the end of every call")


async def test_one_call_of_several_that_fails_ends_the_others(client: httpx.AsyncClient, provider: Provider) -> None:
    model = f"anthropic-x{secrets.token_hex(6)}"
    gate = Gate()
    provider.script(model, answer("One.", hold=gate), status(400), answer("Three.", hold=gate))
    response = await client.post("/chat/completions", json=chat(model, n=3))
    refused(response, 400)

    async def over() -> bool:
        return all(call.answered.done() for call in provider.calls_for(model))

    await eventually(over, "the end of the other calls")
    gate.release()


async def test_what_calls_used_beside_one_that_failed_is_in_the_ledger(
    client: httpx.AsyncClient, provider: Provider, database: psycopg.AsyncConnection[DictRow]
) -> None:
    model = f"anthropic-x{secrets.token_hex(6)}"
    gate = Gate()

    async def fail_late(exchange: Exchange) -> None:
        await gate.pass_through()
        await status(500)(exchange)

    good = answer("One.", usage=usage_of(10, 3))
    provider.script(model, good, fail_late, good, good, good, good)
    answering = asyncio.create_task(client.post("/chat/completions", json=chat(model, n=3)))

    async def answered() -> bool:
        return sum(call.answered.done() for call in provider.calls_for(model)) == 2

    await eventually(answered, "the answers of two calls")
    gate.release()
    job_id = (await answering).json()["id"].replace("chatcmpl-", "job_")
    query = "SELECT kind, prompt_tokens FROM usage WHERE job_id = %s ORDER BY kind"
    rows = await (await database.execute(query, (job_id,))).fetchall()
    assert [(row["kind"], row["prompt_tokens"]) for row in rows] == [("counted", 30), ("discarded", 20)]


async def test_a_fallback_may_speak_another_format(client: httpx.AsyncClient, provider: Provider) -> None:
    model = f"either-{secrets.token_hex(6)}"
    provider.script(model, status(401), answer("From the other."))
    response = await client.post("/chat/completions", json=chat(model))
    assert response.json()["choices"][0]["message"]["content"] == "From the other."
    job = await get(client, response.json()["id"].replace("chatcmpl-", "job_"))
    assert job["provider"] == "fake"


async def answer_strictly(exchange: Exchange) -> None:
    """Refuse an answer with fields that are not OpenAI's, as many servers do."""
    answers = [message for message in exchange.call.body["messages"] if message["role"] == "assistant"]
    known = {"role", "content", "refusal", "tool_calls"}
    odd = [name for message in answers for name in message.keys() - known]
    odd += [
        name
        for message in answers
        for call in message["tool_calls"]
        for name in call.keys() - {"id", "type", "function"}
    ]
    await (status(400) if odd else answer("Noon."))(exchange)


@pytest.mark.parametrize("kind", ["anthropic"], indirect=True)
async def test_a_chat_server_goes_on_where_another_format_thought(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    strict = f"fake-{secrets.token_hex(6)}"
    provider.always(strict, answer_strictly)
    called = answer("I look.", thoughts=["Hm"], calls=[("c1", "get_time", {})], finish="tool_calls")
    provider.script(model, called, called)
    provider.always(model, status(500))
    tools = [{"type": "function", **TOOLS[1]["function"]}]
    first = (await client.post("/responses", json={"model": model, "input": "Time?", "tools": tools})).json()
    output = {"type": "function_call_output", "call_id": "c1", "output": "noon"}
    following = {"previous_response_id": first["id"], "input": [output], "tools": tools}
    asked = chat(model, messages=[{"role": "user", "content": "Time?"}], tools=TOOLS)
    message = (await client.post("/chat/completions", json=asked)).json()["choices"][0]["message"]
    assert message["thinking_blocks"]
    asked["messages"] += [message, {"role": "tool", "tool_call_id": "c1", "content": "noon"}]
    for path, body in (("/responses", following), ("/chat/completions", asked)):
        for route in ({"model": strict}, {"model": model, "fallbacks": [strict]}):
            answered = await client.post(path, json={**body, **route})
            assert answered.status_code == 200, answered.text
            assert "Noon." in answered.text
