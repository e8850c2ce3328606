"""A job's trace, from its client's request over the queue to the provider, and to the receiver of its webhook."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterator, Mapping

import httpx
import pytest

from tests.e2e.batches import lines
from tests.e2e.batches import submit as submit_batch
from tests.e2e.jobs import chat
from tests.fakes.collector import Collected, Collector, running_collector
from tests.fakes.provider import Provider, answer, status, usage_of
from tests.fakes.receiver import Message, Receiver, running_receiver
from tests.service import BOOTSTRAP_KEY, PROVIDER_KEY, Service, Stores, connect, running_service
from tests.waiting import until

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"
CONTEXT = {"traceparent": PARENT, "tracestate": "vendor=a1,other=b2"}


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with running_receiver() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with running_collector() as collector:
        yield collector


@pytest.fixture(scope="module")
def traced(
    tmp_path_factory: pytest.TempPathFactory, stores: Stores, config: str, collector: Collector
) -> Iterator[Service]:
    """A service whose every part sends its spans to the collector."""
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "100"}
    with running_service(tmp_path_factory.mktemp("traced"), stores.fresh(), config, environment=environment) as service:
        yield service


@pytest.fixture
async def traced_client(traced: Service) -> AsyncIterator[httpx.AsyncClient]:
    async with connect(traced, BOOTSTRAP_KEY) as client:
        yield client


def context_of(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers of a trace context."""
    return {name: value for name, value in headers.items() if name.startswith("trace")}


def message_of(receiver: Receiver) -> Message:
    """Return the first webhook, once it has come."""
    return until(lambda: receiver.messages, "a webhook")[0]


@pytest.mark.parametrize(
    ("path", "body"), [("/chat/completions", {"stream": True}), ("/responses", {"background": True, "input": "Hi"})]
)
async def test_without_tracing_the_context_of_a_request_is_sent_on_unchanged(
    service: Service,
    client: httpx.AsyncClient,
    provider: Provider,
    receiver: Receiver,
    model: str,
    path: str,
    body: dict[str, object],
) -> None:
    body = {**(chat(model) if "chat" in path else {"model": model}), **body, "webhook": receiver.url}
    (await client.post(path, json=body, headers=CONTEXT)).raise_for_status()
    message = message_of(receiver)
    [call] = provider.calls_for(model)
    assert context_of(message.headers) == context_of(call.headers) == CONTEXT
    log = service.directory / "worker.log"
    until(lambda: any(TRACE in line and model in line for line in log.read_text().splitlines()), "the worker's line")


async def test_a_request_without_a_context_sends_none(
    client: httpx.AsyncClient, provider: Provider, receiver: Receiver, model: str
) -> None:
    headers = {"traceparent": PARENT.upper(), "tracestate": "a=1"}
    await client.post("/chat/completions", json=chat(model, webhook=receiver.url), headers=headers)
    [call] = provider.calls_for(model)
    assert context_of(message_of(receiver).headers) == context_of(call.headers) == {}


async def test_lines_of_a_batch_have_its_context(
    client: httpx.AsyncClient, provider: Provider, receiver: Receiver, model: str
) -> None:
    client.headers.update(CONTEXT)
    await submit_batch(client, lines(model, 2), webhook=receiver.url)
    assert context_of(message_of(receiver).headers) == CONTEXT
    assert [context_of(call.headers) for call in provider.calls_for(model)] == [CONTEXT, CONTEXT]


@pytest.mark.parametrize(
    ("path", "body"), [("/chat/completions", {"stream": True}), ("/responses", {"background": True, "input": "Hi"})]
)
async def test_one_trace_leads_from_the_client_to_the_provider_and_to_the_webhook(
    traced_client: httpx.AsyncClient,
    provider: Provider,
    receiver: Receiver,
    collector: Collector,
    model: str,
    path: str,
    body: dict[str, object],
) -> None:
    provider.always(model, answer("Fine.", usage=usage_of(7, 3)))
    trace, caller = secrets.token_hex(16), secrets.token_hex(8)
    context = {"traceparent": f"00-{trace}-{caller}-01", "tracestate": "vendor=a1,other=b2"}
    body = {**(chat(model, temperature=0.5) if "chat" in path else {"model": model}), **body, "webhook": receiver.url}
    answered = await traced_client.post(path, json=body, headers=context)
    job_id = answered.headers["x-headrace-job"]
    events = 2 if path == "/responses" else 1  # ours, and OpenAI's
    spans = collector.trace(
        job_id, "submit default", "claim default", f"chat {model}", "end default", *["POST webhook"] * events
    )
    submit, claim, call, _, *webhooks = spans
    assert {span.trace_id for span in spans} == {trace}
    assert {span.state for span in spans} == {context["tracestate"]}
    assert [span.parent for span in spans] == [caller, submit.id, claim.id, claim.id] + [submit.id] * events
    assert [span.kind for span in spans] == ["PRODUCER", "CONSUMER", "CLIENT", "INTERNAL"] + ["CLIENT"] * events
    assert not any(span.failed or span.links for span in spans)
    names = [span.resource["service.name"] for span in spans]
    assert names == ["headrace-api"] + ["headrace-worker"] * 3 + ["headrace-scheduler"] * events
    [request] = provider.calls_for(model)
    assert context_of(request.headers) == {**context, "traceparent": f"00-{trace}-{call.id}-01"}
    for span in webhooks:
        [message] = [message for message in receiver.messages if message.id == span.attributes["headrace.webhook.id"]]
        assert context_of(message.headers) == {**context, "traceparent": f"00-{trace}-{span.id}-01"}
        assert span.attributes["http.response.status_code"] == 200
    assert (
        claim.attributes.items()
        >= {
            "messaging.operation.type": "process",
            "messaging.destination.name": "default",
            "messaging.message.id": job_id,
            "headrace.attempt": 1,
            "headrace.outcome": "completed",
        }.items()
    )
    described = {
        "gen_ai.operation.name": "chat",
        "gen_ai.system": "openai",
        "gen_ai.request.model": model,
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.output_tokens": 3,
        "gen_ai.response.finish_reasons": ["stop"],
        "server.address": "127.0.0.1",
        "headrace.provider": "fake",
    }
    assert {name: call.attributes.get(name) for name in described} == described
    assert ("gen_ai.request.temperature" in call.attributes) == ("chat" in path)
    assert "gen_ai.provider.name" not in call.attributes


async def test_each_attempt_and_its_call_have_the_error_that_ended_them(
    traced: Service, traced_client: httpx.AsyncClient, provider: Provider, collector: Collector, model: str
) -> None:
    provider.script(model, status(503), answer("Fine."))
    answered = await traced_client.post("/chat/completions", json=chat(model))
    attempt = ("claim default", f"chat {model}", "end default")
    submit, *spans = collector.trace(answered.headers["x-headrace-job"], "submit default", *attempt, *attempt)
    assert submit.parent == ""
    assert [span.failed for span in spans] == [True, True, False, False, False, False]
    assert [span.attributes.get("error.type") for span in spans[:2]] == ["UpstreamOverloadedError"] * 2
    assert [spans[0].attributes["headrace.outcome"], spans[3].attributes["headrace.outcome"]] == ["failed", "completed"]
    for part in ("api", "worker"):
        assert f"trace={submit.trace_id}" in (traced.directory / f"{part}.log").read_text()


async def test_a_context_that_is_not_sampled_is_sent_on_and_has_no_spans(
    traced_client: httpx.AsyncClient, provider: Provider, receiver: Receiver, collector: Collector, model: str
) -> None:
    trace = secrets.token_hex(16)
    unsampled = {"traceparent": f"00-{trace}-00f067aa0ba902b7-00", "tracestate": "vendor=a1"}
    await traced_client.post("/chat/completions", json=chat(model, webhook=receiver.url), headers=unsampled)
    [request] = provider.calls_for(model)
    assert context_of(message_of(receiver).headers) == context_of(request.headers) == unsampled
    later = await traced_client.post("/chat/completions", json=chat(model))
    names = ("submit default", "claim default", f"chat {model}", "end default")
    collector.trace(later.headers["x-headrace-job"], *names)
    assert trace not in {span.trace_id for span in collector.spans}


async def test_each_line_of_a_batch_has_a_trace_that_links_to_the_submission(
    traced_client: httpx.AsyncClient, provider: Provider, receiver: Receiver, collector: Collector, model: str
) -> None:
    batch = await submit_batch(traced_client, lines(model, 2), webhook=receiver.url)

    def claims_of_lines() -> list[Collected]:
        return [span for span in collector.spans if span.attributes.get("headrace.batch.id") == batch["id"]]

    submit, webhook = collector.trace(batch["id"], "submit batch", "POST webhook")
    until(lambda: len(claims_of_lines()) == 2, "the spans of the lines")
    claims = claims_of_lines()
    assert [(span.parent, span.links) for span in claims] == [("", [(submit.trace_id, submit.id)])] * 2
    calls = provider.calls_for(model)
    assert {call.headers["traceparent"].split("-")[1] for call in calls} == {span.trace_id for span in claims}
    assert webhook.parent == submit.id
    assert message_of(receiver).headers["traceparent"].split("-")[1:3] == [webhook.trace_id, webhook.id]


async def test_no_span_has_a_prompt_an_answer_a_key_or_a_url(
    traced_client: httpx.AsyncClient, provider: Provider, receiver: Receiver, collector: Collector, model: str
) -> None:
    prompt, said, secret = (secrets.token_hex(8) for _ in range(3))
    quoted = {"error": {"message": prompt, "type": prompt, "param": prompt, "code": prompt}}
    provider.script(model, status(400, quoted), status(401, quoted), answer(said))
    body = chat(model, prompt, user=prompt, metadata={prompt: prompt}, webhook=f"{receiver.url}/{secret}?{secret}")
    await traced_client.post("/chat/completions", json=body)
    await traced_client.post("/chat/completions", json=body)
    last = await traced_client.post("/chat/completions", json=body)
    names = ("submit default", "claim default", f"chat {model}", "end default", "POST webhook")
    collector.trace(last.headers["x-headrace-job"], *names)
    for text in (prompt, said, secret, BOOTSTRAP_KEY, PROVIDER_KEY):
        assert text.encode() not in b"".join(collector.bodies)
