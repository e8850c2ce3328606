"""An endless answer of a provider, or one larger than any completion: the call ends with an error in bounded time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from headrace.catalogue.models import Model, Route
from headrace.catalogue.models import Provider as Entry
from headrace.errors import UpstreamTooLargeError
from headrace.formats.chat.support import LimitParameter
from headrace.formats.registry import CLIENT_FORMATS
from headrace.ids import new_id
from headrace.jobs.records import ClaimedJob
from headrace.providers import client as clients
from headrace.providers.client import ProviderClient
from tests.fakes.provider import (
    DONE,
    Behaviour,
    Provider,
    answer,
    chunk,
    raw,
    running_provider,
    sse,
    stream,
    usage_chunk,
    usage_of,
)
from tests.fakes.provider import Exchange as Answering
from worker import exchange as exchanges
from worker.exchange import Exchange, PassOn

MODEL = "fake-endless"
DEEP = b'{"a":' * 300 + b"1" + b"}" * 300


@pytest.fixture
async def http() -> AsyncIterator[ProviderClient]:
    client = ProviderClient(connections=10)
    yield client
    await client.close()


@pytest.fixture
def upstream() -> Any:
    with running_provider() as provider:
        yield provider


async def complete(
    http: ProviderClient,
    upstream: Provider,
    behaviour: Behaviour,
    *,
    streamed: bool,
    limit_parameter: LimitParameter | None = None,
    pass_on: PassOn = lambda _: None,
    **fields: Any,
) -> dict[str, Any]:
    upstream.script(MODEL, behaviour)
    entry = Entry(
        kind="openai", base_url=upstream.url("/v1"), api_key="sk-x", read_timeout=30, timeout=60,
        limit_parameter=limit_parameter,
    )  # fmt: skip
    request = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], **fields}
    job = ClaimedJob(
        id=new_id("job"), attempt=1, account_id="a", key_id="k", model=MODEL, request=orjson.dumps(request).decode(),
        background=False, streamed=streamed, origin=None, tier="default", route=0, retries=0, created=0,
        seconds_left=60,
    )  # fmt: skip
    route = Route("p", entry, MODEL, Model(routes=[f"p/{MODEL}"]))
    renderer = CLIENT_FORMATS["chat"].renderer(job, request)
    return await Exchange(http, job, route, request, renderer=renderer, pass_on=pass_on).complete()


def endless(*events: bytes) -> Behaviour:
    async def behave(answering: Answering) -> None:
        await answering.open_stream()
        while True:
            for event in events:
                await answering.stream(event)

    return behave


ENDLESS = {
    "text": endless(sse(chunk("x" * 5000))),
    "events without text": endless(sse({"choices": []}) * 100),
    "comments": endless(b": nothing\n\n" * 100),
    "blank lines": endless(b"\n" * 1000),
    "one event": endless(b"data: x", b"y" * 5000),
    "lines of one event": endless(b"data: x\n" * 500),
    "values": endless(b"data: " + orjson.dumps({"choices": [{"delta": {"x": [{}] * 5000}}]}) + b"\n\n"),
}


@pytest.mark.parametrize("behaviour", ENDLESS.values(), ids=ENDLESS)
async def test_a_stream_without_end_is_given_up(
    http: ProviderClient, upstream: Provider, behaviour: Behaviour, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "LARGEST_ANSWER", 4 * 1024 * 1024)
    monkeypatch.setattr(clients, "MOST_VALUES", 100_000)
    with pytest.raises(UpstreamTooLargeError) as caught:
        await complete(http, upstream, behaviour, streamed=True)
    assert (caught.value.status, caught.value.code) == (502, "upstream_answer_too_large")
    assert not caught.value.retryable


async def test_chunks_that_wait_for_text_are_bounded(
    http: ProviderClient, upstream: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchanges, "MOST_HELD", 100)
    with pytest.raises(UpstreamTooLargeError, match="without any text"):
        await complete(http, upstream, endless(sse(chunk({"role": "assistant"}))), streamed=True)


@pytest.mark.parametrize("values", [False, True], ids=["bytes", "values"])
async def test_a_whole_answer_that_is_too_large_is_given_up(
    http: ProviderClient, upstream: Provider, values: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "LARGEST_ANSWER", 1024 * 1024)
    monkeypatch.setattr(clients, "MOST_VALUES", 10_000)
    body = b"[" + b"{}," * 20_000 + b"{}]" if values else b'"' + b"x" * 2_000_000 + b'"'
    with pytest.raises(UpstreamTooLargeError):
        await complete(http, upstream, raw(body), streamed=False)


@pytest.mark.parametrize("streamed", [False, True])
async def test_an_answer_that_is_nested_deeply_is_given_up(
    http: ProviderClient, upstream: Provider, streamed: bool
) -> None:
    choice = b'{"index":0,"%b":{"content":"a","x":%b},"finish_reason":"stop"}' % (
        b"delta" if streamed else b"message",
        DEEP,
    )
    body = b'{"choices":[%b]}' % choice
    behaviour = endless(b"data: %b\n\n" % body) if streamed else raw(body)
    with pytest.raises(UpstreamTooLargeError, match="nested"):
        await complete(http, upstream, behaviour, streamed=streamed)


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_provider_gets_the_limit_under_the_name_that_it_knows(
    http: ProviderClient, upstream: Provider, streamed: bool
) -> None:
    await complete(
        http, upstream, answer("Hi."), streamed=streamed, limit_parameter="max_tokens", max_completion_tokens=5
    )
    body = upstream.calls_for(MODEL)[0].body
    assert (body["max_tokens"], "max_completion_tokens" in body) == (5, False)


async def test_what_moderation_found_reaches_readers_beside_the_usage(http: ProviderClient, upstream: Provider) -> None:
    found = {"input": {"type": "error", "code": "c", "message": "m"}, "output": None}
    last = {**usage_chunk(usage_of(1, 2)), "moderation": found}
    lines: list[bytes] = []
    behaviour = stream(chunk("Hi."), chunk(finish="stop"), last, DONE)
    completion = await complete(http, upstream, behaviour, streamed=True, pass_on=lines.extend)
    assert completion["moderation"] == found
    told = [orjson.loads(line) for line in lines]
    assert [line.get("moderation") for line in told] == [None, None, found]
    assert "usage" not in told[-1]
