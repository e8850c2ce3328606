"""Servers that speak OpenAI's format nearly: what reaches the client is OpenAI's, and errors keep their class."""

from __future__ import annotations

import gzip
import json
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.jobs import chat, refused
from tests.e2e.streams import chunks_of, text_of
from tests.fakes.provider import (
    DONE,
    Behaviour,
    Exchange,
    Gate,
    Provider,
    chunk,
    raw,
    sse,
    stream,
    usage_chunk,
    usage_of,
)
from tests.unit.formats.chat.test_normaliser import check_chunk, check_whole

HELLO: Any = {
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}],
    "usage": usage_of(3, 1),
}
EVENTS = b"".join(
    [sse(chunk({"role": "assistant", "content": ""})), *map(sse, map(chunk, ["Hel", "lo"])), sse(chunk(finish="stop"))]
)
LAST = b"data: [DONE]\n\n"


def zipped(body: bytes, content_type: str) -> Behaviour:
    """Answer compressed, though the client asked for nothing of the kind."""

    async def behave(exchange: Exchange) -> None:
        await exchange.whole(200, gzip.compress(body), content_type, {"content-encoding": "gzip"})

    return behave


async def whole(client: httpx.AsyncClient, model: str, **more: Any) -> dict[str, Any]:
    response = await client.post("/chat/completions", json=chat(model, **more))
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    check_whole(body)
    return body


async def streamed(client: httpx.AsyncClient, model: str, **more: Any) -> list[Any]:
    async with client.stream("POST", "/chat/completions", json=chat(model, stream=True, **more)) as response:
        assert response.status_code == 200, await response.aread()
        chunks = await chunks_of(response)
    for one in chunks:
        check_chunk(one)
    return chunks


FRAMES = {
    "events under another type": raw(EVENTS + LAST, content_type="text/plain"),
    "events as json": raw(EVENTS + LAST, content_type="application/json"),
    "without the last blank line": raw(EVENTS + LAST.rstrip(), content_type="text/event-stream"),
    "with white space around the end": raw(EVENTS + b"data:  [DONE] \n\n", content_type="text/event-stream"),
    "a chunk a line": raw(
        b"".join(json.dumps(piece).encode() + b"\n" for piece in (chunk("Hel"), chunk("lo"), chunk(finish="stop"))),
    ),
    "a whole answer as a line": raw(json.dumps(HELLO).encode() + b"\n", content_type="application/x-ndjson"),
    "a whole answer": raw(json.dumps(HELLO).encode()),
    "a whole answer as events": raw(json.dumps(HELLO).encode(), content_type="text/event-stream"),
    "a whole answer, zipped": zipped(json.dumps(HELLO).encode(), "application/json"),
    "events, zipped": zipped(EVENTS + LAST, "text/event-stream"),
    "comments as data": stream(
        b"data: : keep-alive\n\n", EVENTS, b"event: ping\ndata: {}\n\n", b'data: {"type": "ping"}\n\n', DONE
    ),
    "lines that end in CR": stream(b"\xef\xbb\xbf" + EVENTS.replace(b"\n", b"\r"), b"data:[DONE]\r\r"),
}


@pytest.mark.parametrize("frame", FRAMES)
async def test_an_answer_is_what_its_bytes_say_it_is(
    client: httpx.AsyncClient, provider: Provider, model: str, frame: str
) -> None:
    provider.always(model, FRAMES[frame])
    assert text_of(await streamed(client, model)) == "Hello"
    assert (await whole(client, model))["choices"][0]["message"]["content"] == "Hello"
    assert len(provider.calls_for(model)) == 2


async def test_halves_of_a_character_lose_no_answer(client: httpx.AsyncClient, provider: Provider, model: str) -> None:
    halves = [chunk("ok"), chunk("fine"), chunk(finish="stop")]
    events = b"".join(map(sse, halves)).replace(b'"ok"', b'"ok \\ud83d"').replace(b'"fine"', b'"\\ude00 fine"')
    provider.always(model, stream(events, DONE))
    text = text_of(await streamed(client, model))
    assert text.startswith("ok ")
    assert text.endswith(" fine")


async def test_numbers_that_are_none_are_null(client: httpx.AsyncClient, provider: Provider, model: str) -> None:
    logprobs: Any = {
        "content": [{"token": "Hello", "logprob": -0.5, "bytes": None, "top_logprobs": []}],
        "refusal": None,
    }
    body = json.dumps({**HELLO, "odd": 0, "choices": [{**HELLO["choices"][0], "logprobs": logprobs}]})
    provider.always(model, raw(body.replace('"odd": 0', '"odd": -Infinity').encode()))
    said = await whole(client, model)
    assert (said["odd"], said["choices"][0]["message"]["content"]) == (None, "Hello")


async def test_characters_at_which_readers_cut_lines_are_escaped(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    text = "one\u2028two\u2029three\x85four"
    provider.always(model, stream(chunk(text), chunk(finish="stop"), DONE))
    async with client.stream("POST", "/chat/completions", json=chat(model, stream=True)) as response:
        lines = [line async for line in response.aiter_lines() if line.startswith("data: {")]
    assert "".join(json.loads(line[6:])["choices"][0]["delta"].get("content") or "" for line in lines) == text


# -- errors with status 200 -------------------------------------------------------------------------------------------

ERRORS = [
    pytest.param({"error": {"message": "Slow down", "code": 429}}, 429, "rate_limit_error", id="a rate limit"),
    pytest.param(
        {"error": {"message": "maximum context length", "type": "invalid_request_error", "param": "messages"}},
        400,
        "invalid_request_error",
        id="a refusal",
    ),
    pytest.param({"error": "boom"}, 502, "upstream_error", id="a sentence"),
    pytest.param({"object": "error", "message": "boom", "code": 500}, 502, "upstream_error", id="beside the object"),
    pytest.param({"detail": "boom"}, 502, "upstream_error", id="a detail"),
]


@pytest.mark.parametrize(("said", "status", "kind"), ERRORS)
@pytest.mark.parametrize("streaming", [False, True])
async def test_an_error_with_status_200_keeps_its_class(
    client: httpx.AsyncClient, provider: Provider, model: str, said: Any, status: int, kind: str, streaming: bool
) -> None:
    provider.always(model, stream(said, DONE) if streaming else raw(json.dumps(said).encode()))
    response = await client.post("/chat/completions", json=chat(model, stream=streaming))
    assert refused(response, status)["type"] == kind
    assert len(provider.calls_for(model)) == (1 if status == 400 else 3)


@pytest.mark.parametrize(
    "event", [b'event: error\ndata: {"code": 500, "details": "CUDA out of memory"}\n\n', b'data: {"message": "no"}\n\n']
)
async def test_an_error_after_text_does_not_end_as_an_answer(
    openai_client: openai.AsyncOpenAI, provider: Provider, model: str, event: bytes
) -> None:
    gate = Gate()
    provider.script(model, stream(chunk("Half an ans"), gate, event, DONE))
    messages: Any = [{"role": "user", "content": "Hello"}]
    answer = await openai_client.chat.completions.create(model=model, messages=messages, stream=True)
    part = await anext(answer)
    assert part.choices[0].delta.content == "Half an ans"
    gate.release()
    with pytest.raises(openai.APIError):
        await anext(answer)


REFUSALS: list[Any] = [
    {"detail": "Input is too long"},
    {"object": "error", "message": "Input is too long", "code": 400},
    [{"error": {"code": 400, "message": "Input is too long"}}],
    {"error": {"message": "Provider returned error", "metadata": {"raw": "Input is too long"}}},
    {"error": "Input is too long"},
    {"detail": [{"loc": ["body"], "msg": "Input is too long"}]},
]


@pytest.mark.parametrize("body", REFUSALS, ids=json.dumps)
async def test_why_a_provider_refused_reaches_the_client(
    client: httpx.AsyncClient, provider: Provider, model: str, body: Any
) -> None:
    provider.always(model, raw(json.dumps(body).encode(), code=400))
    response = await client.post("/chat/completions", json=chat(model))
    assert "Input is too long" in refused(response, 400)["message"]
    assert len(provider.calls_for(model)) == 1


async def test_a_finish_reason_that_may_mean_half_an_answer_is_no_end(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    provider.script(model, stream(chunk("Half"), chunk(finish="abort"), DONE))
    response = await client.post("/chat/completions", json=chat(model))
    assert response.status_code == 200, "the next attempt answers"
    assert len(provider.calls_for(model)) == 2


# -- usage ------------------------------------------------------------------------------------------------------------

USAGES = [
    pytest.param({"prompt_tokens": 700.0, "completion_tokens": 300.0, "total_tokens": 1000.0}, (700, 300), id="floats"),
    pytest.param({"prompt_tokens": 8, "total_tokens": 108}, (8, 100), id="a total"),
    pytest.param(
        {
            "prompt_tokens": 32,
            "completion_tokens": 9,
            "total_tokens": 135,
            "completion_tokens_details": {"reasoning_tokens": 94},
        },
        (32, 103),
        id="reasoning beside the completion",
    ),
]


@pytest.mark.parametrize(("usage", "expected"), USAGES)
async def test_odd_counts_are_read_as_they_are_meant(
    client: httpx.AsyncClient, provider: Provider, model: str, usage: Any, expected: tuple[int, int]
) -> None:
    provider.always(model, stream(chunk("Hello"), chunk(finish="stop"), usage_chunk(usage), DONE))
    options = {"stream_options": {"include_usage": True}}
    for said in ((await whole(client, model))["usage"], (await streamed(client, model, **options))[-1]["usage"]):
        assert (said["prompt_tokens"], said["completion_tokens"], said["total_tokens"]) == (*expected, sum(expected))
