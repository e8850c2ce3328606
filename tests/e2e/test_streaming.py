"""A chat completion streamed to the client that asked for it."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx

from tests.e2e.jobs import chat, completed, ended, get, refused
from tests.e2e.streams import EventStream, chunks_of, text_of
from tests.fakes.provider import (
    DONE,
    Gate,
    Json,
    Provider,
    answer,
    chunk,
    hang,
    settled,
    status,
    stream,
    usage_of,
)


async def streamed(client: httpx.AsyncClient, model: str, **fields: Any) -> list[Json]:
    async with client.stream("POST", "/chat/completions", json=chat(model, stream=True, **fields)) as response:
        assert response.status_code == 200, await response.aread()
        return await chunks_of(response)


async def test_a_stream_begins_with_the_role_and_ends_with_finish_and_done(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    provider.script(model, answer("The wheel turns again."))
    async with client.stream("POST", "/chat/completions", json=chat(model, stream=True)) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["x-request-id"]
        assert "no-cache" in response.headers["cache-control"]
        chunks = await chunks_of(response)
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert text_of(chunks) == "The wheel turns again."
    assert all("role" not in chunk["choices"][0]["delta"] for chunk in chunks[1:])
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert not chunks[-1]["choices"][0]["delta"].get("content")


async def test_one_id_and_one_created_stand_in_every_chunk_and_are_the_jobs(
    client: httpx.AsyncClient, model: str
) -> None:
    chunks = await streamed(client, model, stream_options={"include_usage": True})
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert len({chunk["created"] for chunk in chunks}) == 1
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["model"] for chunk in chunks}) == 1
    identity = str(chunks[0]["id"])
    assert re.fullmatch(r"chatcmpl-[0-9a-f]{32}", identity)
    job = await completed(client, identity.replace("chatcmpl-", "job_"))
    assert job["created_at"] == chunks[0]["created"]
    assert job["result"]["id"] == identity


async def test_without_include_usage_no_chunk_speaks_of_usage(client: httpx.AsyncClient, model: str) -> None:
    chunks = await streamed(client, model)
    assert all(chunk.get("usage") is None for chunk in chunks)
    assert all(chunk["choices"] for chunk in chunks)


async def test_with_include_usage_every_chunk_has_a_null_but_the_last_which_has_no_choices(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    usage = usage_of(
        11, 4, prompt_tokens_details={"cached_tokens": 3}, completion_tokens_details={"reasoning_tokens": 2}
    )
    provider.script(model, answer("The wheel turns.", usage=usage))
    chunks = await streamed(client, model, stream_options={"include_usage": True})
    *others, last = chunks
    assert all("usage" in chunk and chunk["usage"] is None for chunk in others)
    assert all(chunk["choices"] for chunk in others)
    assert last["choices"] == []
    assert last["usage"] == usage


async def test_usage_is_counted_though_the_client_did_not_ask_for_it(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    provider.script(model, answer("The wheel turns.", usage=usage_of(11, 4)))
    chunks = await streamed(client, model)
    assert (await provider.call(model)).wants_usage
    job = await completed(client, str(chunks[0]["id"]).replace("chatcmpl-", "job_"))
    assert (job["usage"]["prompt_tokens"], job["usage"]["completion_tokens"]) == (11, 4)


async def test_each_event_is_one_data_line_written_whole(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    """The documented API's sample client splits each read at line feeds and parses what begins with `data: `."""
    words = " ".join(f"word{number}é" for number in range(200))
    provider.script(model, answer(words))
    text, done = "", False
    async with client.stream("POST", "/chat/completions", json=chat(model, stream=True)) as response:
        async for piece in response.aiter_raw():
            assert piece.endswith(b"\n\n"), piece
            for line in piece.decode().split("\n"):
                if not line.startswith("data: "):
                    assert not line or line.startswith(":"), line
                elif line == "data: [DONE]":
                    done = True
                else:
                    text += json.loads(line[6:])["choices"][0]["delta"].get("content") or ""
    assert done
    assert text == words


async def test_a_delta_is_passed_on_while_the_upstream_is_still_at_it(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    gates = [Gate(), Gate()]
    provider.script(
        model,
        stream(
            chunk({"role": "assistant", "content": ""}),
            chunk("one"),
            gates[0],
            chunk("two"),
            gates[1],
            chunk(finish="stop"),
            DONE,
        ),
    )
    async with client.stream("POST", "/chat/completions", json=chat(model, stream=True)) as response:
        events = EventStream(response)
        seen = ""
        while seen != "one":
            seen += (await anext(events)).data["choices"][0]["delta"].get("content") or ""
        gates[0].release()
        while seen != "onetwo":
            seen += (await anext(events)).data["choices"][0]["delta"].get("content") or ""
        gates[1].release()
        assert (await events.rest())[-1].data == "[DONE]"


async def test_what_a_stream_folds_to_is_what_the_job_keeps(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    provider.script(model, answer("The wheel turns. 🜄"))
    chunks = await streamed(client, model)
    job = await completed(client, str(chunks[0]["id"]).replace("chatcmpl-", "job_"))
    assert job["result"]["choices"][0]["message"]["content"] == text_of(chunks) == "The wheel turns. 🜄"
    assert job["first_token_at"] is not None
    assert job["created_at"] <= job["started_at"] <= job["first_token_at"] <= job["finished_at"]


async def test_an_error_before_the_first_delta_has_its_proper_status(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    provider.script(
        model, status(400, {"error": {"message": "no", "type": "invalid_request_error", "param": "n", "code": "bad"}})
    )
    response = await client.post("/chat/completions", json=chat(model, stream=True))
    error = refused(response, 400, code="bad", param="n")
    assert error["message"] == "no"


async def test_headers_do_not_wait_for_a_slow_first_delta_and_pings_keep_the_stream_open(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    gate = Gate()
    provider.script(model, stream(gate, chunk({"role": "assistant", "content": "late"}), chunk(finish="stop"), DONE))
    async with client.stream("POST", "/chat/completions", json=chat(model, stream=True)) as response:
        assert response.status_code == 200
        events = EventStream(response)
        assert await events.comment() == "ping"
        assert await events.comment() == "ping"
        gate.release()
        rest = await events.rest()
    assert text_of(event.data for event in rest[:-1]) == "late"
    assert rest[-1].data == "[DONE]"


async def test_pings_go_on_in_a_pause_between_deltas(client: httpx.AsyncClient, provider: Provider, model: str) -> None:
    gate = Gate()
    provider.script(model, stream(chunk({"role": "assistant", "content": "a"}), gate, chunk(finish="stop"), DONE))
    async with client.stream("POST", "/chat/completions", json=chat(model, stream=True)) as response:
        events = EventStream(response)
        await anext(events)
        while await events.comment() != "ping":
            pass
        gate.release()
        assert (await events.rest())[-1].data == "[DONE]"


async def test_a_stream_that_fails_after_text_ends_with_an_error_event_and_no_second_try(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    gate = Gate()
    provider.script(model, stream(chunk({"role": "assistant", "content": "half a"}), gate))
    async with client.stream("POST", "/chat/completions", json=chat(model, stream=True)) as response:
        assert response.status_code == 200
        events = EventStream(response)
        first = await anext(events)
        gate.release()
        rest = await events.rest()
    errors = [event.data["error"] for event in rest if isinstance(event.data, dict) and "error" in event.data]
    assert len(errors) == 1
    assert errors[0].keys() == {"message", "type", "param", "code"}
    assert len(provider.calls_for(model)) == 1
    job = await ended(client, first.data["id"].replace("chatcmpl-", "job_"))
    assert job["status"] == "failed"
    assert job["result"] is None
    assert job["error"]["message"] == errors[0]["message"]


async def test_several_choices_stream_side_by_side(client: httpx.AsyncClient, provider: Provider, model: str) -> None:
    provider.script(
        model,
        stream(
            chunk({"role": "assistant", "content": ""}, index=0),
            chunk({"role": "assistant", "content": ""}, index=1),
            chunk("left", index=0),
            chunk("right", index=1),
            chunk(finish="stop", index=1),
            chunk(finish="length", index=0),
            DONE,
        ),
    )
    chunks = await streamed(client, model, n=2)
    assert (text_of(chunks, 0), text_of(chunks, 1)) == ("left", "right")
    job = await completed(client, str(chunks[0]["id"]).replace("chatcmpl-", "job_"))
    assert [
        (choice["index"], choice["message"]["content"], choice["finish_reason"]) for choice in job["result"]["choices"]
    ] == [(0, "left", "length"), (1, "right", "stop")]


async def test_a_deadline_in_the_middle_of_a_stream_ends_it_with_an_error(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    provider.script(model, stream(chunk({"role": "assistant", "content": "a"}), Gate()))
    async with client.stream("POST", "/chat/completions", json=chat(model, stream=True, timeout=4)) as response:
        events = await EventStream(response).rest()
    assert "error" in events[-1].data or "error" in events[-2].data
    call = await provider.call(model)
    await settled(call.disconnected)
    job = await get(client, events[0].data["id"].replace("chatcmpl-", "job_"))
    assert job["status"] == "expired"


async def test_a_stream_that_never_starts_ends_at_its_deadline(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    provider.script(model, hang)
    async with client.stream("POST", "/chat/completions", json=chat(model, stream=True, timeout=4)) as response:
        assert response.status_code in {200, 504}
        body = (await response.aread()).decode()
    assert '"error"' in body
    await settled((await provider.call(model)).disconnected)
