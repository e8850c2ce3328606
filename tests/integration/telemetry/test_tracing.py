"""Spans on their way to a collector."""

from __future__ import annotations

import pytest

from headrace.telemetry.traceparent import trace_id
from headrace.telemetry.tracing import start_span, tracing
from tests.fakes.collector import Collector
from tests.service import free_port

TRACE = "0af7651916cd43dd8448eb211c80319c"
SAMPLED = f"00-{TRACE}-b7ad6b7169203331-01\nvendor=a1"
UNSAMPLED = f"00-{TRACE}-b7ad6b7169203331-00"


def sampled(count: int, *, parent: str | None = None, link: str | None = None) -> int:
    """Start spans, and return how many are sampled."""
    spans = [start_span("a", "PRODUCER", parent=parent, link=link) for _ in range(count)]
    for span in spans:
        if span is not None:
            span.end()
    return sum(span is not None for span in spans)


def test_the_last_spans_are_sent_when_a_part_ends(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "3600000")
    with tracing("api"):
        assert sampled(3) == 3
        assert not collector.spans
    assert len(collector.spans) == 3
    with tracing("api"):  # a second one, as in a process that serves twice
        sampled(1)
    assert len(collector.spans) == 4
    assert start_span("a", "PRODUCER", parent=None) is None


@pytest.mark.parametrize(
    ("sampler", "roots", "under_sampled", "under_unsampled"),
    [
        ("parentbased_always_on", 50, 50, 0),
        ("parentbased_traceidratio", 0, 50, 0),
        ("parentbased_always_off", 0, 50, 0),
        ("always_on", 50, 50, 50),
        ("always_off", 0, 0, 0),
        ("traceidratio", 0, 0, 0),
    ],
)
def test_the_standard_samplers_decide(
    collector: Collector,
    monkeypatch: pytest.MonkeyPatch,
    sampler: str,
    roots: int,
    under_sampled: int,
    under_unsampled: int,
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0")
    with tracing("api"):
        assert sampled(50) == roots
        assert sampled(50, parent=SAMPLED) == under_sampled
        assert sampled(50, parent=UNSAMPLED) == under_unsampled
        assert sampled(50, link=SAMPLED) == under_sampled
        assert sampled(50, link=UNSAMPLED) == under_unsampled
    assert len(collector.spans) == roots + 2 * (under_sampled + under_unsampled)


def test_a_ratio_samples_that_share(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.25")
    with tracing("api"):
        assert 400 < sampled(2500) < 850


def test_a_span_has_the_context_that_it_sends_on(collector: Collector) -> None:
    with tracing("api"):
        under = start_span("a", "PRODUCER", parent=SAMPLED)
        assert under is not None
        child = under.child("b", "CLIENT")
        child.set({"number": 1, "list": ["a", "b"], "missing": None})
        child.end()
        with pytest.raises(LookupError), under:
            raise LookupError("a message that may be a secret")
        apart = start_span("c", "CONSUMER", parent=None, link=SAMPLED)
        assert apart is not None
        apart.end()
    b, a, c = collector.spans
    assert (trace_id(under.context), under.context.partition("\n")[2]) == (TRACE, "vendor=a1")
    assert (a.trace_id, a.parent, a.state, a.kind) == (TRACE, "b7ad6b7169203331", "vendor=a1", "PRODUCER")
    assert (b.trace_id, b.parent, b.kind, b.failed) == (TRACE, a.id, "CLIENT", False)
    assert (a.failed, a.attributes, b.attributes) == (
        True,
        {"error.type": "LookupError"},
        {"number": 1, "list": ["a", "b"]},
    )
    assert (c.parent, c.links) == ("", [(TRACE, "b7ad6b7169203331")])
    assert c.trace_id == trace_id(apart.context) != TRACE
    assert b"secret" not in b"".join(collector.bodies)


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ({}, "headrace-worker"),
        ({"OTEL_SERVICE_NAME": "inference"}, "inference"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=inference,deployment.environment.name=staging"}, "inference"),
    ],
)
def test_spans_name_the_service(
    collector: Collector, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], name: str
) -> None:
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    with tracing("worker"):
        sampled(1)
    [span] = collector.spans
    assert span.resource["service.name"] == name
    assert {"service.version", "service.instance.id", "host.name", "process.pid"} <= span.resource.keys()
    assert ("deployment.environment.name" in span.resource) == ("OTEL_RESOURCE_ATTRIBUTES" in environment)


def test_a_collector_that_is_down_holds_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "100")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "10")
    monkeypatch.setattr("headrace.telemetry.tracing._FLUSH_SECONDS", 0.5)
    with tracing("worker"):  # the queue overflows, and the last spans are given up after a while
        assert sampled(1000) == 1000
