"""Invalid requests: each error names the wrong field."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from typing import Any

import httpx
import pytest

from tests.e2e.jobs import chat, ended, refused, submit
from tests.fakes.provider import DONE, Provider, raw, stream
from tests.service import BOOTSTRAP_KEY, QUICK, Service

LIMIT = int(QUICK["HEADRACE_MAX_BODY_BYTES"])
USER = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "f"}}

# Fields beside a good request, and the path of the one that is wrong.
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"model": None}, "model"),
    ({"model": 3}, "model"),
    ({"model": ""}, "model"),
    ({"messages": None}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": ["hi"]}, "messages[0]"),
    ({"messages": [USER, {"content": "hi"}]}, "messages[1].role"),
    ({"messages": [{"role": "owner", "content": "hi"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"type": 3}]}]}, "messages[0].content[0].type"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": 3}]}]}, "messages[0].content[0].text"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
     "messages[0].content[0].image_url.url"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
    ({"temperature": 3}, "temperature"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": "warm"}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"top_p": 1.5}, "top_p"),
    ({"frequency_penalty": 2.5}, "frequency_penalty"),
    ({"presence_penalty": -2.5}, "presence_penalty"),
    ({"n": 0}, "n"),
    ({"n": 129}, "n"),
    ({"n": 1.5}, "n"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_completion_tokens": "many"}, "max_completion_tokens"),
    ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
    ({"stop": 3}, "stop"),
    ({"stop": ["a", 3]}, "stop[1]"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"include_usage": "yes"}, "stream": True}, "stream_options.include_usage"),
    ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
    ({"logprobs": "yes"}, "logprobs"),
    ({"logit_bias": {"1": 101}}, "logit_bias.1"),
    ({"logit_bias": []}, "logit_bias"),
    ({"seed": "x"}, "seed"),
    ({"user": 3}, "user"),
    ({"metadata": {"k": 3}}, "metadata.k"),
    ({"metadata": {str(number): "v" for number in range(17)}}, "metadata"),
    ({"metadata": {"k": "v" * 513}}, "metadata.k"),
    ({"metadata": {"k" * 65: "v"}}, "metadata"),
    ({"tools": [{"type": "function"}]}, "tools[0].function"),
    ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
    ({"tools": [{"type": "function", "function": {"name": "has space"}}]}, "tools[0].function.name"),
    ({"tools": "hammer"}, "tools"),
    ({"tools": [TOOL], "tool_choice": 3}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {"type": "function"}}, "tool_choice.function"),
    ({"response_format": {"type": "poem"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"reasoning_effort": 3}, "reasoning_effort"),
    ({"verbosity": "loud"}, "verbosity"),
    ({"modalities": [3]}, "modalities[0]"),
    ({"service_tier": "first class"}, "service_tier"),
    ({"parallel_tool_calls": "yes"}, "parallel_tool_calls"),
    ({"background": "yes"}, "background"),
    ({"timeout": 0}, "timeout"),
    ({"timeout": "long"}, "timeout"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "path"), WRONG, ids=[f"{path}: {json.dumps(fields)[:50]}" for fields, path in WRONG]
)
async def test_a_wrong_value_is_refused_by_the_path_of_its_field(
    client: httpx.AsyncClient, provider: Provider, model: str, fields: dict[str, Any], path: str
) -> None:
    error = refused(
        await client.post("/chat/completions", json={**chat(model), **fields}), 400, type="invalid_request_error"
    )
    # A key that is itself too long may be named by its whole path as well.
    assert error["param"] == path or (path == "metadata" and error["param"].startswith("metadata"))
    assert not provider.calls_for(model)


@pytest.mark.parametrize("field", ["model", "messages"])
async def test_a_required_field_that_is_missing_is_named(client: httpx.AsyncClient, model: str, field: str) -> None:
    body = chat(model)
    del body[field]
    refused(await client.post("/chat/completions", json=body), 400, param=field)


async def test_a_model_that_no_route_serves_is_not_found(client: httpx.AsyncClient) -> None:
    refused(
        await client.post("/chat/completions", json=chat("no-such-model")), 404, code="model_not_found", param="model"
    )
    refused(await client.post("/jobs", json={"request": chat("no-such-model")}), 404, code="model_not_found")


@pytest.mark.parametrize(
    "body",
    [b"", b"hello", b"{", b'{"model": "fake-x",}', b"\xff\xfe\x00", b'{"model": NaN}', b'{"a": 1}{"b": 2}', b"\x00"],
    ids=repr,
)
async def test_a_body_that_is_not_json_is_refused(client: httpx.AsyncClient, body: bytes) -> None:
    response = await client.post("/chat/completions", content=body, headers={"content-type": "application/json"})
    refused(response, 400, type="invalid_request_error")


@pytest.mark.parametrize("body", [b"[]", b"null", b'"text"', b"3", b"true", b"[{}]"], ids=repr)
@pytest.mark.parametrize("path", ["/chat/completions", "/jobs"])
async def test_a_body_that_is_no_object_is_refused(client: httpx.AsyncClient, path: str, body: bytes) -> None:
    response = await client.post(path, content=body, headers={"content-type": "application/json"})
    refused(response, 400, type="invalid_request_error")


@pytest.mark.parametrize("opening", [b"[", b'{"a":'], ids=["arrays", "objects"])
@pytest.mark.parametrize("path", ["/chat/completions", "/jobs"])
async def test_a_body_nested_deeply_is_refused(client: httpx.AsyncClient, path: str, opening: bytes) -> None:
    depth = 20_000
    closing = b"]" if opening == b"[" else b"}"
    body = b'{"model": "fake-deep", "messages": [{"role": "user", "content": "hi"}], "x": %s1%s}' % (
        opening * depth,
        closing * depth,
    )
    response = await client.post(path, content=body, headers={"content-type": "application/json"})
    refused(response, 400, type="invalid_request_error")


async def test_a_body_nested_deeply_under_a_known_field_is_refused(client: httpx.AsyncClient, model: str) -> None:
    parameters = '{"a":' * 500 + "1" + "}" * 500
    body = json.dumps(chat(model, tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}]))
    body = body.replace('"parameters": {}', f'"parameters": {parameters}')
    response = await client.post(
        "/chat/completions", content=body.encode(), headers={"content-type": "application/json"}
    )
    refused(response, 400, type="invalid_request_error")


async def test_a_body_of_the_greatest_size_is_accepted_and_one_byte_more_is_not(
    client: httpx.AsyncClient, model: str
) -> None:
    headers = {"content-type": "application/json"}
    body = json.dumps(chat(model)).encode()
    body += b" " * (LIMIT - len(body))
    assert (await client.post("/chat/completions", content=body, headers=headers)).status_code == 200
    refused(await client.post("/chat/completions", content=body + b" ", headers=headers), 413)


async def read_answer(reader: asyncio.StreamReader) -> bytes:
    """Return an answer with a `content-length`, or what there is of it before the connection ends or is reset."""
    answer = b""
    with contextlib.suppress(ConnectionError):
        while piece := await reader.read(65536):
            answer += piece
            head, _, body = answer.partition(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head)
            if length is not None and len(body) >= int(length[1]):
                break
    return answer


async def exchange(service: Service, head: str, body: list[bytes]) -> tuple[int, bytes]:
    """Send a request piece by piece until it is answered; return how many bytes of body went out, and the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    writer.write(head.encode())
    answer = asyncio.create_task(read_answer(reader))
    sent = 0
    try:
        for piece in body:
            writer.write(piece)
            await writer.drain()
            sent += len(piece)
            await asyncio.wait({answer}, timeout=0.001)
            if answer.done():
                break
        return sent, await asyncio.wait_for(answer, 30)
    except ConnectionError:
        return sent, await answer
    finally:
        writer.close()


def head_of(path: str, *fields: str) -> str:
    lines = [f"POST {path} HTTP/1.1", "host: x", f"authorization: Bearer {BOOTSTRAP_KEY}",
             "content-type: application/json", *fields]  # fmt: skip
    return "\r\n".join(lines) + "\r\n\r\n"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/v1/jobs"])
async def test_a_length_over_the_limit_is_refused_before_the_body_is_there(service: Service, path: str) -> None:
    sent, answer = await exchange(service, head_of(path, f"content-length: {2**40}"), [b"x"])
    assert answer.startswith(b"HTTP/1.1 413"), answer
    assert b'"error"' in answer
    assert sent == 1


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/v1/jobs"])
async def test_a_body_of_unsaid_length_is_refused_while_it_is_read(service: Service, path: str) -> None:
    piece = b"4000\r\n" + b"x" * 0x4000 + b"\r\n"
    sent, answer = await exchange(service, head_of(path, "transfer-encoding: chunked"), [piece] * 4000)
    assert answer.startswith(b"HTTP/1.1 413"), answer
    # What the kernels of both sides hold comes on top.
    assert sent < 64 * 1024 * 1024


async def test_a_body_that_is_sent_slowly_is_still_waited_for(service: Service, model: str) -> None:
    body = json.dumps(chat(model)).encode()
    pieces = [body[at : at + 16] for at in range(0, len(body), 16)]
    _, answer = await exchange(service, head_of("/v1/chat/completions", f"content-length: {len(body)}"), pieces)
    assert answer.startswith(b"HTTP/1.1 200"), answer


@pytest.mark.parametrize(
    "path",
    ["/jobs/x", "/jobs/job_", "/jobs/job_" + "0" * 32, "/jobs/job_" + "g" * 32, "/jobs/job_" + "A" * 32,
     "/jobs/" + "9" * 3000, "/jobs/%00", "/jobs/%ff", "/jobs/job_%27%20OR%201=1--", "/jobs/%2e%2e%2fmodels",
     "/jobs/chatcmpl-" + "0" * 32, "/chat/completions/x", "/chat/completions/chatcmpl-" + "0" * 32,
     "/chat/completions/job_" + "0" * 32, "/models/none", "/models/%00", "/nowhere"],
)  # fmt: skip
async def test_an_id_that_is_malformed_or_unknown_is_not_found(client: httpx.AsyncClient, path: str) -> None:
    refused(await client.get(path), 404)
    if path.startswith("/jobs/"):
        refused(await client.get(f"{path}/events"), 404)
        refused(await client.post(f"{path}/cancel"), 404)
        refused(await client.delete(path), 404)


async def test_a_method_that_a_path_does_not_have_is_refused_in_openais_shape(client: httpx.AsyncClient) -> None:
    refused(await client.put("/chat/completions", json={}), 405)


async def test_lone_surrogates_and_zero_characters_are_refused_or_pass(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    """JSON may name characters that UTF-8 and Postgres cannot hold: no crash, and no job in limbo."""
    for escape in (r"\ud800", r"\u0000"):
        body = f'{{"model": "{model}", "messages": [{{"role": "user", "content": "a{escape}b"}}]}}'
        response = await client.post(
            "/chat/completions", content=body.encode(), headers={"content-type": "application/json"}
        )
        if response.status_code != 200:
            refused(response, 400)
    metadata = (
        f'{{"model": "{model}", "messages": [{{"role": "user", "content": "a"}}], "metadata": {{"a": "\\u0000"}}}}'
    )
    response = await client.post(
        "/chat/completions", content=metadata.encode(), headers={"content-type": "application/json"}
    )
    if response.status_code != 200:
        refused(response, 400)
    jobs = (await client.get("/jobs", params={"model": model})).json()["data"]
    assert all(job["status"] == "completed" for job in jobs), jobs


async def test_an_upstream_may_answer_such_characters_too(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    said = b'{"role": "assistant", "content": "a\\u0000b\\ud800"}, "finish_reason": "stop"}]}'
    whole = b'{"choices": [{"index": 0, "message": ' + said
    piece = b'data: {"choices": [{"index": 0, "delta": ' + said + b"\n\n" + DONE
    provider.always(model, raw(whole))
    response = await client.post("/chat/completions", json=chat(model))
    assert response.status_code in {200, 502}
    provider.always(model, stream(piece))
    assert (await ended(client, await submit(client, model)))["status"] in {"completed", "failed"}


@pytest.mark.parametrize("field", ["model", "metadata"])
async def test_a_zero_character_where_postgres_cannot_hold_it_is_refused_by_its_field(
    client: httpx.AsyncClient, model: str, field: str
) -> None:
    wrong = {"model": f"{model}\0"} if field == "model" else {"metadata": {"k": "a\0b"}}
    error = refused(await client.post("/chat/completions", json={**chat(model), **wrong}), 400)
    assert str(error["param"]).startswith(field)


@pytest.mark.parametrize("query", ["model=%00", "metadata[%00]=x", "metadata[a]=%00", "model=%ff", "metadata[a]=%ff"])
@pytest.mark.parametrize("path", ["/jobs", "/chat/completions"])
async def test_a_filter_that_nothing_can_match_is_refused_or_finds_nothing(
    client: httpx.AsyncClient, path: str, query: str
) -> None:
    response = await client.get(f"{path}?{query}")
    if response.status_code != 200:
        refused(response, 400)
    else:
        assert response.json()["data"] == []


@pytest.mark.parametrize("path", ["/jobs/", "/chat/completions/", "/models/"])
async def test_a_slash_too_many_leads_to_no_other_host(client: httpx.AsyncClient, path: str) -> None:
    response = await client.get(path, headers={"host": "evil.example"})
    assert "evil.example" not in response.headers.get("location", "")


async def test_numbers_beyond_every_type_are_refused_or_pass(client: httpx.AsyncClient, model: str) -> None:
    for value in ("1" * 400, "1e999", "-1e999"):
        body = f'{{"model": "{model}", "messages": [{{"role": "user", "content": "a"}}], "seed": {value}}}'
        response = await client.post(
            "/chat/completions", content=body.encode(), headers={"content-type": "application/json"}
        )
        refused(response, 400)


async def test_a_content_type_is_not_needed(client: httpx.AsyncClient, model: str) -> None:
    response = await client.post(
        "/chat/completions", content=json.dumps(chat(model)).encode(), headers={"content-type": "text/plain"}
    )
    assert response.status_code == 200


@pytest.mark.parametrize("host", ["evil.example/../../v1/models?", "a b", "x" * 5000], ids=["path", "space", "long"])
async def test_the_host_header_decides_nothing(client: httpx.AsyncClient, host: str) -> None:
    response = await client.get("/jobs/x", headers={"host": host})
    assert response.status_code in {400, 404}


async def test_a_parameter_whose_name_no_row_can_hold_is_dropped_as_any_other(
    client: httpx.AsyncClient, model: str
) -> None:
    body = chat(f"anthropic-{model}") | {"odd\0name": 1}
    response = await client.post("/chat/completions", json=body)
    assert response.status_code == 200, response.text
    job = await ended(client, response.headers["x-headrace-job"])
    assert job["attempts"][0]["dropped_params"] == ["odd\N{REPLACEMENT CHARACTER}name"]


async def test_a_providers_error_that_no_row_can_hold_ends_the_job_all_the_same(
    client: httpx.AsyncClient, provider: Provider, model: str
) -> None:
    error = {"error": {"message": "no\0good", "type": "invalid_request_error", "param": None, "code": None}}
    provider.always(model, raw(json.dumps(error).encode(), code=400))
    response = await client.post("/chat/completions", json=chat(model))
    assert response.status_code == 400, response.text
    [job] = (await client.get("/jobs", params={"model": model})).json()["data"]
    assert job["status"] == "failed"
