"""Upstreams that answer nonsense: whole, streamed or in the background, the job ends and the client gets an error."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence

import httpx
import pytest

from tests.e2e.jobs import chat, completed, ended, job_of, refused, submit
from tests.e2e.streams import EventStream, chunks_of, text_of
from tests.fakes.provider import (
    DONE,
    RESET,
    Behaviour,
    Gate,
    Provider,
    answer,
    broken_chunks,
    chunk,
    drip,
    endless_header,
    hang,
    html,
    not_http,
    raw,
    redirect,
    settled,
    short_body,
    sse,
    stream,
    usage_of,
)

ERROR = {"error": {"message": "The server is overloaded.", "type": "server_error", "param": None, "code": None}}

NONSENSE: list[tuple[str, Behaviour]] = [
    ("html", html()),
    ("html with 502", html(502)),
    ("garbage", raw(b"\x00\xff\xfe not json {{{")),
    ("garbage in a stream", stream(b"data: {not json\n\n")),
    ("binary in a stream", stream(b"\x00\xff\xfe\x80" * 100)),
    ("empty body", raw(b"")),
    ("empty stream", stream()),
    ("nothing but done", stream(DONE)),
    ("json that is no object", raw(b"[1, 2]")),
    ("an object without choices", raw(b'{"id": "x"}')),
    ("choices that are no list", raw(b'{"choices": "x"}')),
    ("null", raw(b"null")),
    ("error with 200", raw(json.dumps(ERROR).encode())),
    ("error first in a stream", stream(ERROR)),
    ("half a stream before text", stream(chunk({"role": "assistant", "content": ""}))),
    ("reset in a stream before text", stream(chunk({"role": "assistant", "content": ""}), RESET)),
    ("chunks of wrong types", stream({"choices": 3}, {"choices": [{"index": "x", "delta": 4}]}, DONE)),
    ("not http", not_http),
    ("an endless header", endless_header),
    ("a body cut short", short_body),
    ("no content", raw(b"", code=204)),
    ("no data lines", stream(b": comment\n\nevent: x\n\nretry: 3\n\n")),
]

# What comes after some text, up to the end of the body.
MID_STREAM: list[tuple[str, Sequence[object]]] = [
    ("cut", []),
    ("reset", [RESET]),
    ("error event", [ERROR]),
    ("garbage", [b"data: {{{\n\n"]),
    ("html", [b"<html>gateway time-out</html>\n"]),
    ("a chunk that is no object", [b"data: 7\n\n"]),
    ("cut inside an event", [b'data: {"choices": [{"ind']),
]


def ids(cases: Sequence[tuple[str, object]]) -> list[str]:
    return [name for name, _ in cases]


@pytest.mark.parametrize("behaviour", [behaviour for _, behaviour in NONSENSE], ids=ids(NONSENSE))
async def test_nonsense_is_a_502_to_who_waits(
    client: httpx.AsyncClient, provider: Provider, model: str, behaviour: Behaviour
) -> None:
    provider.always(model, behaviour)
    refused(await client.post("/chat/completions", json=chat(model)), 502)
    job = await job_of(client, model)
    assert job["status"] == "failed"


@pytest.mark.parametrize("behaviour", [behaviour for _, behaviour in NONSENSE], ids=ids(NONSENSE))
async def test_after_nonsense_the_next_attempt_of_a_stream_counts(
    client: httpx.AsyncClient, provider: Provider, model: str, behaviour: Behaviour
) -> None:
    provider.script(model, behaviour, answer("At last."))
    async with client.stream("POST", "/chat/completions", json=chat(model, stream=True)) as response:
        assert response.status_code == 200
        chunks = await chunks_of(response)
    assert text_of(chunks) == "At last."
    assert len({item["id"] for item in chunks}) == 1


@pytest.mark.parametrize("behaviour", [behaviour for _, behaviour in NONSENSE], ids=ids(NONSENSE))
async def test_after_nonsense_a_background_job_starts_over(
    client: httpx.AsyncClient, provider: Provider, model: str, behaviour: Behaviour
) -> None:
    provider.script(model, behaviour, answer("At last."))
    job = await completed(client, await submit(client, model))
    assert job["result"]["choices"][0]["message"]["content"] == "At last."


@pytest.mark.parametrize("rest", [rest for _, rest in MID_STREAM], ids=ids(MID_STREAM))
async def test_after_half_an_answer_a_background_job_starts_over(
    client: httpx.AsyncClient, provider: Provider, model: str, rest: Sequence[object]
) -> None:
    provider.script(model, stream(chunk({"role": "assistant", "content": "half"}), *rest), answer("At last."))
    job = await completed(client, await submit(client, model))
    assert job["attempt"] == 2
    assert job["result"]["choices"][0]["message"]["content"] == "At last."


@pytest.mark.parametrize("rest", [rest for _, rest in MID_STREAM], ids=ids(MID_STREAM))
async def test_a_stream_that_breaks_after_text_ends_with_an_error_event(
    client: httpx.AsyncClient, provider: Provider, model: str, rest: Sequence[object]
) -> None:
    gate = Gate()
    provider.always(model, stream(chunk({"role": "assistant", "content": "half"}), gate, *rest))
    async with client.stream("POST", "/chat/completions", json=chat(model, stream=True)) as response:
        assert response.status_code == 200
        events = EventStream(response)
        first = (await anext(events)).data
        gate.release()
        data = [event.data for event in await events.rest() if event.data != "[DONE]"]
    assert [item for item in data if "error" in item] == data[-1:]
    assert data[-1]["error"].keys() == {"message", "type", "param", "code"}
    assert text_of([first, *data[:-1]]) == "half"
    assert len(provider.calls_for(model)) == 1
    assert (await ended(client, first["id"].replace("chatcmpl-", "job_")))["status"] == "failed"


@pytest.mark.parametrize("behaviour", [hang, drip], ids=["nothing at all", "a byte at a time"])
@pytest.mark.parametrize("use", ["whole", "streamed", "background"])
async def test_an_upstream_that_does_not_come_to_an_end_is_a_504(
    client: httpx.AsyncClient, provider: Provider, behaviour: Behaviour, use: str
) -> None:
    model = f"impatient-{secrets.token_hex(6)}"
    provider.always(model, behaviour)
    if use == "background":
        job = await ended(client, await submit(client, model))
        assert job["error"]["code"] == "upstream_timeout"
    elif use == "whole":
        refused(await client.post("/chat/completions", json=chat(model)), 504, code="upstream_timeout")
        job = await job_of(client, model)
    else:
        async with client.stream("POST", "/chat/completions", json=chat(model, stream=True)) as response:
            # The headers may have gone out before.
            assert response.status_code in {200, 504}
            assert '"upstream_timeout"' in (await response.aread()).decode()
        job = await job_of(client, model)
    assert job["status"] == "failed"
    for call in provider.calls_for(model):
        await settled(call.disconnected)


async def test_an_upstream_whose_chunked_body_is_broken_is_given_up_in_its_time(
    client: httpx.AsyncClient, provider: Provider
) -> None:
    model = f"impatient-{secrets.token_hex(6)}"
    provider.always(model, broken_chunks)
    response = await client.post("/chat/completions", json=chat(model))
    assert response.status_code in {502, 504}
    refused(response, response.status_code)


async def test_a_stream_that_falls_silent_after_text_is_given_up(client: httpx.AsyncClient, provider: Provider) -> None:
    model = f"impatient-{secrets.token_hex(6)}"
    provider.always(model, stream(chunk({"role": "assistant", "content": "half"}), Gate()))
    async with client.stream("POST", "/chat/completions", json=chat(model, stream=True)) as response:
        events = await EventStream(response).rest()
    assert "error" in [event.data for event in events if event.data != "[DONE]"][-1]
    await settled((await provider.call(model)).disconnected)


async def test_our_key_is_not_sent_where_the_upstream_points_to(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    provider.always(model, redirect(f"{provider.url('/elsewhere')}/chat/completions"))
    refused(await client.post("/chat/completions", json=chat(model)), 502)
    assert {call.path for call in provider.calls_for(model)} == {"/v1/chat/completions"}


async def test_an_upstream_that_answers_whole_though_asked_to_stream_is_understood(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    choice = {"index": 0, "message": {"role": "assistant", "content": "All at once."}, "finish_reason": "stop"}
    provider.always(model, raw(json.dumps({"choices": [choice], "usage": usage_of(3, 3)}).encode()))
    async with client.stream("POST", "/chat/completions", json=chat(model, stream=True)) as response:
        chunks = await chunks_of(response)
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert text_of(chunks) == "All at once."
    job = await completed(client, await submit(client, model))
    assert job["result"]["choices"][0]["message"]["content"] == "All at once."
    assert job["usage"]["total_tokens"] == 6


async def test_a_finish_without_done_is_a_whole_answer(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    """Some providers never send `[DONE]`: the finish reason says that nothing is missing."""
    provider.always(model, stream(chunk({"role": "assistant", "content": "all"}), chunk(finish="stop")))
    async with client.stream("POST", "/chat/completions", json=chat(model, stream=True)) as response:
        chunks = await chunks_of(response)
    assert text_of(chunks) == "all"
    assert len(provider.calls_for(model)) == 1


async def test_events_are_understood_however_they_are_cut_and_ended(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    """CR LF ends a line as LF does, `data:` needs no space, and TCP cuts where it likes, inside characters too."""
    body = b"".join(
        [
            b": hello\n\n",
            sse(chunk({"role": "assistant", "content": "one é "})),
            sse(chunk("two 漢 ")).replace(b"\n", b"\r\n"),
            b"event: message\nid: 7\n" + sse(chunk("three 🜄")).replace(b"data: ", b"data:"),
            sse(chunk(finish="stop")),
            DONE,
        ]
    )
    provider.script(model, stream(*[body[at : at + 1] for at in range(len(body))]))
    async with client.stream("POST", "/chat/completions", json=chat(model, stream=True)) as response:
        chunks = await chunks_of(response)
    assert text_of(chunks) == "one é two 漢 three 🜄"


async def test_a_very_long_event_comes_through(client: httpx.AsyncClient, provider: Provider, model: str) -> None:
    text = "0123456789" * 100_000
    provider.script(model, stream(chunk({"role": "assistant", "content": text}), chunk(finish="stop"), DONE))
    job = await completed(client, await submit(client, model))
    assert job["result"]["choices"][0]["message"]["content"] == text


async def test_what_follows_done_is_not_part_of_the_answer(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    provider.script(
        model,
        stream(chunk({"role": "assistant", "content": "all"}), chunk(finish="stop"), DONE, sse(chunk(" and more"))),
    )
    async with client.stream("POST", "/chat/completions", json=chat(model, stream=True)) as response:
        chunks = await chunks_of(response)
    assert text_of(chunks) == "all"


async def test_a_service_that_saw_all_this_still_works(client: httpx.AsyncClient, model: str) -> None:
    await completed(client, await submit(client, model))
