"""The spans of an attempt, for jobs that waited long, and for operators who want content."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import orjson
import pytest

from headrace.catalogue.models import Model, Route
from headrace.catalogue.models import Provider as Entry
from headrace.formats.registry import CLIENT_FORMATS
from headrace.ids import new_id
from headrace.jobs.records import ClaimedJob
from headrace.providers.client import ProviderClient
from headrace.telemetry.tracing import tracing
from tests.fakes.collector import Collector
from tests.fakes.provider import Provider, answer
from worker.exchange import Exchange
from worker.spans import AttemptSpans

TRACE = "0af7651916cd43dd8448eb211c80319c"
CONTEXT = f"00-{TRACE}-b7ad6b7169203331-01"


@pytest.fixture
async def http() -> AsyncIterator[ProviderClient]:
    client = ProviderClient(connections=1)
    yield client
    await client.close()


def claimed(*, seconds_ago: int = 0, context: str | None = CONTEXT) -> ClaimedJob:
    return ClaimedJob(
        id=new_id("job"), attempt=1, account_id="a", key_id="k", model="m", request="{}", background=True,
        streamed=False, origin=None, tier="flex", route=0, retries=0, created=int(time.time()) - seconds_ago,
        seconds_left=60, trace_context=context,
    )  # fmt: skip


REQUEST = {"messages": [{"role": "user", "content": "the question"}]}


def begun(http: ProviderClient, provider: Provider, model: str) -> tuple[AttemptSpans, Exchange]:
    """Return the spans of an attempt that is about to call the provider, and its exchange."""
    job = claimed()
    route = Route("p", Entry(kind="openai", base_url=provider.url()), model, Model(routes=[f"p/{model}"]))
    renderer = CLIENT_FORMATS["chat"].renderer(job, REQUEST)
    exchange = Exchange(http, job, route, REQUEST, renderer=renderer, pass_on=lambda _: None)
    spans = AttemptSpans.of(job)
    assert spans is not None
    spans.call(route, REQUEST, exchange)
    return spans, exchange


def test_a_job_that_waited_long_has_a_trace_of_its_own_with_a_link(collector: Collector) -> None:
    with tracing("worker"):
        for seconds_ago in (10, 3600):
            spans = AttemptSpans.of(claimed(seconds_ago=seconds_ago))
            assert spans is not None
            spans.close()
    soon, late = collector.spans
    assert (soon.trace_id, soon.parent, soon.links) == (TRACE, "b7ad6b7169203331", [])
    assert (late.parent, late.links) == ("", [(TRACE, "b7ad6b7169203331")])
    assert late.trace_id != TRACE
    assert (soon.name, soon.kind) == (late.name, late.kind) == ("claim flex", "CONSUMER")


def test_a_job_whose_submission_was_not_traced_has_no_spans(collector: Collector) -> None:
    with tracing("worker"):
        assert AttemptSpans.of(claimed(context=None)) is None
        assert AttemptSpans.of(claimed(context=CONTEXT[:-1] + "0")) is None
        assert AttemptSpans.of(claimed(context=CONTEXT[:-1] + "0", seconds_ago=3600)) is None
    assert AttemptSpans.of(claimed()) is None
    assert not collector.spans


@pytest.mark.parametrize(
    ("variable", "value", "has_content", "has_newest"),
    [
        ("OTEL_SEMCONV_STABILITY_OPT_IN", "http, gen_ai_latest_experimental", False, True),
        ("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "True", True, False),
        ("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "span_only", True, False),
        ("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "event_only", False, False),
        ("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "false", False, False),
    ],
)
async def test_content_and_the_newest_names_are_there_for_those_who_ask(
    http: ProviderClient,
    provider: Provider,
    model: str,
    collector: Collector,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    value: str,
    has_content: bool,
    has_newest: bool,
) -> None:
    monkeypatch.setenv(variable, value)
    provider.script(model, answer("the answer"))
    with tracing("worker"):
        spans, exchange = begun(http, provider, model)
        await exchange.complete()
        spans.called(exchange, None, seconds_to_first=0.25)
        spans.close()
    [call] = [span for span in collector.spans if span.kind == "CLIENT"]
    sent = b"".join(collector.bodies)
    assert (b"the question" in sent) == (b"the answer" in sent) == has_content
    if has_content:
        asked, said = (call.attributes[f"gen_ai.{side}.messages"] for side in ("input", "output"))
        assert orjson.loads(asked)[0]["parts"] == [{"type": "text", "content": "the question"}]
        assert orjson.loads(said)[0]["parts"] == [{"type": "text", "content": "the answer"}]
    assert call.attributes["gen_ai.system"] == "openai"
    assert call.attributes.get("gen_ai.provider.name") == ("openai" if has_newest else None)
    assert call.attributes.get("gen_ai.response.time_to_first_chunk") == (0.25 if has_newest else None)


async def test_a_call_that_is_cancelled_has_not_failed(
    http: ProviderClient, provider: Provider, model: str, collector: Collector
) -> None:
    with tracing("worker"):
        spans, exchange = begun(http, provider, model)
        spans.called(exchange, asyncio.CancelledError(), seconds_to_first=None)
        spans.ending()
        spans.ended("cancelled", None)
        spans.close()
    call, end, claim = collector.spans
    assert [call.failed, end.failed, claim.failed] == [False, False, False]
    assert not {"gen_ai.response.model", "gen_ai.usage.input_tokens"} & call.attributes.keys()
    assert claim.attributes["headrace.outcome"] == "cancelled"
