"""Lines on their way to the providers' batch APIs and back, without a provider."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any

import orjson
import pytest

from headrace.catalogue.models import Model, Provider, Route
from headrace.errors import (
    UpstreamError,
    UpstreamKeyError,
    UpstreamOverloadedError,
    UpstreamRateLimitError,
    UpstreamRefusedError,
    UpstreamTimeoutError,
)
from headrace.formats.chat.support import FORMAT_OF, Kind
from headrace.formats.registry import FORMATS, WireFormat
from headrace.ids import new_id
from headrace.providers.batch_apis import anthropic, openai
from headrace.providers.batch_apis.apis import BATCH_APIS
from headrace.providers.batch_apis.parcel import NativeResult, Parcel, fill
from tests.unit.formats.test_recordings import recordings

Json = dict[str, Any]

MIB = 1024 * 1024
RENDER: Mapping[Kind, Callable[[str, bytes], bytes]] = {"openai": openai._render, "anthropic": anthropic._render}
BODY = {"openai": "body", "anthropic": "params"}


def route_to(kind: Kind, model: str = "m") -> Route:
    return Route("p", Provider(kind=kind, base_url="https://p.example/v1"), model, Model(routes=[f"p/{model}"]))


def asking(text: str, **parameters: Any) -> Json:
    return {"model": "asked", "messages": [{"role": "user", "content": text}], **parameters}


async def given(lines: Iterable[tuple[str, Mapping[str, Any]]]) -> AsyncIterator[tuple[str, Mapping[str, Any]]]:
    for line in lines:
        yield line


async def whole(parcel: Parcel) -> bytes:
    return b"".join([piece async for piece in parcel.pieces()])


async def fill_with(
    parcel: Parcel, kind: Kind, *requests: Mapping[str, Any], most_lines: int = 9, most_bytes: int = 10**9
) -> list[str]:
    named = [(f"job_{place}", request) for place, request in enumerate(requests)]
    return await fill(parcel, route_to(kind), given(named), RENDER[kind], most_lines=most_lines, most_bytes=most_bytes)


def spoken(*parts: str) -> list[Any]:
    """Return the recordings of formats whose providers' batches we speak."""
    forms = {id(FORMATS[FORMAT_OF[kind]]) for kind in BATCH_APIS}
    return [param for param in recordings(*parts) if id(param.values[0]) in forms]


@pytest.mark.parametrize(("form", "recording"), spoken("request", "rendered"))
async def test_a_line_holds_the_body_of_a_call(form: WireFormat, recording: Json) -> None:
    kind = next(kind for kind in BATCH_APIS if FORMATS[FORMAT_OF[kind]] is form)
    request, model = recording["request"], recording["model"]
    route = route_to(kind, model)
    with Parcel() as parcel:
        left = await fill(parcel, route, given([("job_1", request)]), RENDER[kind], most_lines=1, most_bytes=10**9)
        line = json.loads(await whole(parcel))
    assert (left, line["custom_id"]) == ([], "job_1")
    called = form.render_request(request, model=model, stream=False, output_limit=route.output_limit)
    assert line[BODY[kind]] == json.loads(called)


async def test_a_line_has_the_limit_under_the_name_that_the_provider_knows() -> None:
    provider = Provider(kind="openai", base_url="https://p.example/v1", limit_parameter="max_tokens")
    route = Route("p", provider, "m", Model(routes=["p/m"]))
    with Parcel() as parcel:
        lines = given([("job_1", asking("Hi", max_completion_tokens=5))])
        await fill(parcel, route, lines, RENDER["openai"], most_lines=1, most_bytes=10**9)
        body = json.loads(await whole(parcel))["body"]
    assert (body["max_tokens"], "max_completion_tokens" in body) == (5, False)


@pytest.mark.parametrize(("form", "recording"), spoken("answer", "completion"))
def test_a_result_holds_the_answer_to_a_call(form: WireFormat, recording: Json) -> None:
    answer = recording["answer"]
    if form is FORMATS["chat"]:
        read = openai._read({"custom_id": "a", "response": {"status_code": 200, "body": answer}, "error": None})
    else:
        read = anthropic._read({"custom_id": "a", "result": {"type": "succeeded", "message": answer}})
    assert read == form.parse_completion(orjson.dumps(answer))


async def test_a_parcel_has_its_parts_in_order_and_knows_its_size() -> None:
    with Parcel(head=b"[", between=b",", tail=b"]") as parcel:
        for line in (b"1", b"2", b"3"):
            await parcel.add(line)
        content = await whole(parcel)
    assert (content, parcel.size, parcel.lines) == (b"[1,2,3]", 7, 3)


async def test_a_large_parcel_is_not_held_in_memory() -> None:
    tracemalloc.start()
    try:
        with Parcel(between=b"\n") as parcel:
            for _ in range(320):
                await parcel.add(b"x" * (64 * 1024))
            size = 0
            async for piece in parcel.pieces():
                size += len(piece)
            _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size == parcel.size > 20 * MIB
    assert peak < 4 * MIB


@pytest.mark.parametrize("kind", RENDER)
async def test_lines_that_a_batch_cannot_carry_are_left_behind(kind: Kind) -> None:
    archive = {"type": "file", "file": {"file_data": "data:application/zip;base64,AAAA", "filename": "a.zip"}}
    requests = [
        asking("good"),
        asking("in a hurry", service_tier="priority"),
        asking("in no hurry", service_tier="default"),
        {"model": "asked", "messages": [{"role": "user", "content": [archive]}]},
        asking("twice", n=2),
    ]
    with Parcel(between=b"\n") as parcel:
        left = await fill_with(parcel, kind, *requests)
        lines = [json.loads(line) for line in (await whole(parcel)).splitlines()]
    assert left == (["job_1"] if kind == "openai" else ["job_1", "job_3", "job_4"])
    assert [line["custom_id"] for line in lines] == [f"job_{place}" for place in range(5) if f"job_{place}" not in left]


@pytest.mark.parametrize("kind", RENDER)
async def test_lines_beyond_the_limits_are_left_behind(kind: Kind) -> None:
    with Parcel(between=b"\n") as parcel:
        left = await fill_with(parcel, kind, *[asking("good")] * 5, most_lines=3)
    assert (left, parcel.lines) == (["job_3", "job_4"], 3)

    with Parcel(between=b"\n", tail=b"\n") as parcel:
        left = await fill_with(parcel, kind, asking("x" * 2000), asking("x" * 3000), asking("small"), most_bytes=4000)
        content = await whole(parcel)
    assert (left, parcel.lines) == (["job_1"], 2)
    assert len(content) == parcel.size <= 4000


def test_ids_of_jobs_are_custom_ids() -> None:
    assert len(new_id("job")) <= 64
    assert all(letter.isalnum() or letter == "_" for letter in new_id("job"))


def line_of(status: int, error: Json) -> Json:
    return {"custom_id": "a", "response": {"status_code": status, "body": {"error": error}}, "error": None}


@pytest.mark.parametrize(
    ("line", "kind", "code"),
    [
        (
            line_of(400, {"message": "bad", "param": "n", "code": "invalid_value"}),
            UpstreamRefusedError,
            "invalid_value",
        ),
        (line_of(404, {"message": "no", "code": "model_not_found"}), UpstreamRefusedError, "model_not_found"),
        (line_of(429, {"message": "slow"}), UpstreamRateLimitError, "rate_limit_exceeded"),
        (line_of(401, {"message": "key"}), UpstreamKeyError, "upstream_authentication"),
        (line_of(504, {"message": "late"}), UpstreamTimeoutError, "upstream_timeout"),
        (line_of(500, {"message": "oh"}), UpstreamError, "upstream_error"),
        ({"response": None, "error": {"code": "batch_expired", "message": "late"}}, UpstreamError, "batch_expired"),
        ({"response": None, "error": {"code": "batch_cancelled"}}, UpstreamError, "batch_cancelled"),
        ({"response": None, "error": None}, UpstreamError, "upstream_error"),
        ({"response": {"status_code": 200, "body": {}}}, UpstreamError, "upstream_error"),
        ({"response": {"status_code": 200, "body": "text"}}, UpstreamError, "upstream_error"),
    ],
)
def test_errors_of_openais_lines_are_those_of_calls(line: Json, kind: type[UpstreamError], code: str) -> None:
    with pytest.raises(UpstreamError) as raised:
        openai._read(line)
    assert (type(raised.value), raised.value.code) == (kind, code)


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("invalid_request_error", UpstreamRefusedError),
        ("request_too_large", UpstreamRefusedError),
        ("rate_limit_error", UpstreamRateLimitError),
        ("overloaded_error", UpstreamOverloadedError),
        ("api_error", UpstreamError),
        ("authentication_error", UpstreamKeyError),
    ],
)
def test_anthropics_errors_are_known_by_their_type(name: str, kind: type[UpstreamError], wrapped: bool) -> None:
    error: Json = {"type": name, "message": "this is why"}
    result = {"type": "errored", "error": {"type": "error", "error": error, "request_id": None} if wrapped else error}
    with pytest.raises(UpstreamError) as raised:
        anthropic._read({"custom_id": "a", "result": result})
    assert type(raised.value) is kind
    assert ("this is why" in raised.value.message) == (kind is not UpstreamKeyError)


@pytest.mark.parametrize(("how", "code"), [("expired", "batch_expired"), ("canceled", "batch_cancelled")])
def test_anthropics_lines_that_were_not_run_are_run_by_us(how: str, code: str) -> None:
    with pytest.raises(UpstreamError) as raised:
        anthropic._read({"custom_id": "a", "result": {"type": how}})
    assert raised.value.code == code
    assert NativeResult("a", error=raised.value).retryable


def test_what_the_request_itself_holds_is_not_run_again() -> None:
    assert not NativeResult("a", error=UpstreamRefusedError()).retryable
    assert not NativeResult("a", completion={}).retryable
    assert NativeResult("a", error=UpstreamKeyError()).retryable  # another route has another key


OWN = "https://api.example/v1/messages/batches/b%2F1/results"


@pytest.mark.parametrize(
    ("named", "followed"),
    [
        ("https://api.example/elsewhere?sig=1", "https://api.example/elsewhere?sig=1"),
        ("https://api.example:443/elsewhere", "https://api.example/elsewhere"),
        ("https://API.example/elsewhere", "https://api.example/elsewhere"),
        ("https://user:secret@api.example/elsewhere", "https://api.example/elsewhere"),
        ("https://api.example//evil.example/x", "https://api.example//evil.example/x"),
        ("https://api.example", OWN),
        ("http://api.example/elsewhere", OWN),
        ("https://api.example:8443/elsewhere", OWN),
        ("https://api.example.evil.example/x", OWN),
        ("https://evil.example/v1/messages/batches/b/results", OWN),
        ("https://evil.example\\@api.example/x", None),
        ("https://api.example\\@evil.example/x", OWN),
        ("https://api.example@evil.example/x", OWN),
        ("https://api.example:99999/x", OWN),
        ("https://[api.example/x", OWN),
        ("//api.example/x", OWN),
        ("/x", OWN),
        ("https://api.example/\r\nx-leak: 1", None),
        ("https://api.example/\x7f", OWN),
        ("https://api.example/\x00x", OWN),
        ("", OWN),
        (None, OWN),
        (7, OWN),
    ],
)
def test_results_are_read_from_our_providers_host_alone(named: Any, followed: str | None) -> None:
    provider = Provider(kind="anthropic", base_url="https://api.example/v1/")
    url = anthropic._results_url(provider, "b/1", named)
    assert url.startswith("https://api.example/")
    assert url.isprintable()
    if followed is not None:
        assert url == followed
