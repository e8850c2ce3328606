"""What the upstream sends beyond what we count and name reaches the client unharmed, whole and streamed."""

from __future__ import annotations

import httpx
import pytest

from tests.e2e.jobs import chat, completed, submit
from tests.e2e.streams import chunks_of, deltas_of, text_of
from tests.fakes.provider import DONE, Json, Provider, answer, chunk, stream, usage_chunk, usage_of

LOGPROBS: Json = {
    "content": [
        {
            "token": "turns",
            "logprob": -0.31,
            "bytes": [116],
            "top_logprobs": [{"token": "t", "logprob": -2, "bytes": None}],
        }
    ],
    "refusal": None,
}
ANNOTATIONS: list[Json] = [
    {
        "type": "url_citation",
        "url_citation": {"url": "https://example.org", "title": "t", "start_index": 0, "end_index": 3},
    }
]
TOOL_CALLS: list[Json] = [
    {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"place": "Ulm"}'}},
    {"id": "call_2", "type": "function", "function": {"name": "time", "arguments": "{}"}},
]
USAGE: Json = usage_of(
    20,
    9,
    prompt_tokens_details={"cached_tokens": 8, "audio_tokens": 0, "cache_write_tokens": 2},
    completion_tokens_details={"reasoning_tokens": 4, "accepted_prediction_tokens": 1, "rejected_prediction_tokens": 0},
    queue_time=0.25,
)
MESSAGE_FIELDS: list[tuple[str, object]] = [
    ("refusal", "I must not."),
    ("annotations", ANNOTATIONS),
    ("reasoning_content", "Let me think … 🜄"),
    ("audio", {"id": "audio_1", "data": "AAAA", "expires_at": 1, "transcript": "hm"}),
    ("field_of_2030", {"deep": [None, 1.5, "x"]}),
]
TOP_FIELDS: list[tuple[str, object]] = [
    ("service_tier", "flex"),
    ("system_fingerprint", "fp_44709d6fcb"),
    ("field_of_2030", {"deep": [None, 1.5, "x"]}),
]


def stored(chunks: list[Json]) -> str:
    return str(chunks[0]["id"]).replace("chatcmpl-", "job_")


@pytest.mark.parametrize(("name", "value"), MESSAGE_FIELDS, ids=[name for name, _ in MESSAGE_FIELDS])
async def test_a_field_of_the_message_comes_through_whole(
    client: httpx.AsyncClient, provider: Provider, model: str, name: str, value: object
) -> None:
    provider.script(model, answer("ok", message={name: value}))
    body = (await client.post("/chat/completions", json=chat(model))).json()
    assert body["choices"][0]["message"][name] == value


@pytest.mark.parametrize(("name", "value"), MESSAGE_FIELDS, ids=[name for name, _ in MESSAGE_FIELDS])
async def test_a_field_of_a_delta_comes_through_streamed_and_is_kept(
    client: httpx.AsyncClient, provider: Provider, model: str, name: str, value: object
) -> None:
    provider.script(model, answer("ok", message={name: value}))
    async with client.stream("POST", "/chat/completions", json=chat(model, stream=True)) as response:
        chunks = await chunks_of(response)
    assert deltas_of(chunks, name) == [value]
    assert (await completed(client, stored(chunks)))["result"]["choices"][0]["message"][name] == value


@pytest.mark.parametrize(("name", "value"), TOP_FIELDS, ids=[name for name, _ in TOP_FIELDS])
async def test_a_field_beside_the_choices_comes_through_whole(
    client: httpx.AsyncClient, provider: Provider, model: str, name: str, value: object
) -> None:
    provider.script(model, answer("ok", extra={name: value}))
    assert (await client.post("/chat/completions", json=chat(model))).json()[name] == value


@pytest.mark.parametrize(("name", "value"), TOP_FIELDS, ids=[name for name, _ in TOP_FIELDS])
async def test_a_field_beside_the_choices_comes_through_streamed_and_is_kept(
    client: httpx.AsyncClient, provider: Provider, model: str, name: str, value: object
) -> None:
    provider.script(model, answer("ok", extra={name: value}))
    async with client.stream("POST", "/chat/completions", json=chat(model, stream=True)) as response:
        chunks = await chunks_of(response)
    assert [chunk[name] for chunk in chunks] == [value] * len(chunks)
    assert (await completed(client, stored(chunks)))["result"][name] == value


async def test_logprobs_come_through_whole(client: httpx.AsyncClient, provider: Provider, model: str) -> None:
    provider.script(model, answer("turns", choice={"logprobs": LOGPROBS}))
    body = (await client.post("/chat/completions", json=chat(model, logprobs=True))).json()
    assert body["choices"][0]["logprobs"] == LOGPROBS


async def test_logprobs_come_through_streamed_and_are_joined(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    entries: list[Json] = [{"token": token, "logprob": -1.5, "bytes": None, "top_logprobs": []} for token in ("a", "b")]
    pieces = [chunk(entry["token"]) for entry in entries]
    for piece, entry in zip(pieces, entries, strict=True):
        piece["choices"][0]["logprobs"] = {"content": [entry], "refusal": None}
    provider.script(model, stream(chunk({"role": "assistant", "content": ""}), *pieces, chunk(finish="stop"), DONE))
    async with client.stream("POST", "/chat/completions", json=chat(model, stream=True, logprobs=True)) as response:
        chunks = await chunks_of(response)
    got = [chunk["choices"][0]["logprobs"] for chunk in chunks if chunk["choices"][0].get("logprobs")]
    assert got == [{"content": [entry], "refusal": None} for entry in entries]
    kept = (await completed(client, stored(chunks)))["result"]["choices"][0]["logprobs"]
    assert kept["content"] == entries


async def test_tool_calls_come_through_whole(client: httpx.AsyncClient, provider: Provider, model: str) -> None:
    provider.script(model, answer(finish="tool_calls", message={"content": None, "tool_calls": TOOL_CALLS}))
    choice = (await client.post("/chat/completions", json=chat(model))).json()["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["tool_calls"] == TOOL_CALLS
    assert choice["message"]["content"] is None


async def test_tool_call_deltas_come_through_streamed_and_are_joined(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    deltas: list[list[Json]] = [
        [{"index": 0, "id": "call_1", "type": "function", "function": {"name": "weather", "arguments": ""}}],
        [{"index": 0, "function": {"arguments": '{"place"'}}],
        [{"index": 1, "id": "call_2", "type": "function", "function": {"name": "time", "arguments": "{}"}}],
        [{"index": 0, "function": {"arguments": ': "Ulm"}'}}],
    ]
    provider.script(
        model,
        stream(
            chunk({"role": "assistant", "content": None}),
            *[chunk({"tool_calls": delta}) for delta in deltas],
            chunk(finish="tool_calls"),
            DONE,
        ),
    )
    async with client.stream("POST", "/chat/completions", json=chat(model, stream=True)) as response:
        chunks = await chunks_of(response)
    assert deltas_of(chunks, "tool_calls") == deltas
    choice = (await completed(client, stored(chunks)))["result"]["choices"][0]
    assert choice["message"]["tool_calls"] == TOOL_CALLS
    assert choice["message"]["content"] is None
    assert choice["finish_reason"] == "tool_calls"


async def test_usage_details_come_through_whole_and_in_the_job(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    provider.script(model, answer("ok", usage=USAGE))
    body = (await client.post("/chat/completions", json=chat(model))).json()
    assert body["usage"] == USAGE


async def test_usage_details_come_through_streamed(client: httpx.AsyncClient, provider: Provider, model: str) -> None:
    provider.script(model, answer("ok", usage=USAGE))
    body = chat(model, stream=True, stream_options={"include_usage": True})
    async with client.stream("POST", "/chat/completions", json=body) as response:
        chunks = await chunks_of(response)
    assert chunks[-1]["usage"] == USAGE
    assert (await completed(client, stored(chunks)))["result"]["usage"] == USAGE


async def test_usage_on_the_finish_chunk_counts_as_well(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    """Some providers put usage beside the finish reason, not on a chunk of its own."""
    provider.script(
        model,
        stream(chunk({"role": "assistant", "content": "ok"}), chunk(finish="stop", usage=usage_of(5, 1)), DONE),
    )
    async with client.stream("POST", "/chat/completions", json=chat(model, stream=True)) as response:
        chunks = await chunks_of(response)
    assert text_of(chunks) == "ok"
    usage = (await completed(client, stored(chunks)))["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (5, 1)


async def test_reasoning_in_pieces_is_joined(client: httpx.AsyncClient, provider: Provider, model: str) -> None:
    provider.script(
        model,
        stream(
            chunk({"role": "assistant", "content": ""}),
            chunk({"reasoning_content": "Let me "}),
            chunk({"reasoning_content": "think."}),
            chunk("Done."),
            chunk(finish="stop"),
            usage_chunk(usage_of(3, 6, completion_tokens_details={"reasoning_tokens": 4})),
            DONE,
        ),
    )
    async with client.stream("POST", "/chat/completions", json=chat(model, stream=True)) as response:
        chunks = await chunks_of(response)
    assert deltas_of(chunks, "reasoning_content") == ["Let me ", "think."]
    message = (await completed(client, stored(chunks)))["result"]["choices"][0]["message"]
    assert message["reasoning_content"] == "Let me think."
    assert message["content"] == "Done."


async def test_a_refusal_in_pieces_is_joined(client: httpx.AsyncClient, provider: Provider, model: str) -> None:
    provider.script(
        model,
        stream(
            chunk({"role": "assistant", "content": None, "refusal": ""}),
            chunk({"refusal": "I must "}),
            chunk({"refusal": "not."}),
            chunk(finish="stop"),
            DONE,
        ),
    )
    async with client.stream("POST", "/chat/completions", json=chat(model, stream=True)) as response:
        chunks = await chunks_of(response)
    assert "".join(deltas_of(chunks, "refusal")) == "I must not."
    message = (await completed(client, stored(chunks)))["result"]["choices"][0]["message"]
    assert message["refusal"] == "I must not."
    assert message["content"] is None


@pytest.mark.parametrize("reason", ["stop", "length", "content_filter"])
async def test_the_finish_reason_is_the_upstreams(
    client: httpx.AsyncClient, provider: Provider, model: str, reason: str
) -> None:
    provider.script(model, answer("ok", finish=reason), answer("ok", finish=reason))
    body = (await client.post("/chat/completions", json=chat(model))).json()
    assert body["choices"][0]["finish_reason"] == reason
    async with client.stream("POST", "/chat/completions", json=chat(model, stream=True)) as response:
        chunks = await chunks_of(response)
    assert chunks[-1]["choices"][0]["finish_reason"] == reason


async def test_whole_and_streamed_answers_end_in_the_same_result(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    """A provider's folded stream equals its whole answer."""
    behaviour = answer(
        "The wheel turns.",
        usage=USAGE,
        message={"annotations": ANNOTATIONS, "reasoning_content": "hm"},
        extra={"system_fingerprint": "fp_1", "service_tier": "default"},
    )
    provider.script(model, behaviour, behaviour)
    whole = (await client.post("/chat/completions", json=chat(model))).json()
    job = await completed(client, await submit(client, model))
    varies = ("id", "created")
    assert {name: value for name, value in job["result"].items() if name not in varies} == {
        name: value for name, value in whole.items() if name not in varies
    }
