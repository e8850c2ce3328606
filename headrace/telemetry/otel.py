"""OpenTelemetry's SDK behind `headrace.telemetry.tracing`, which alone imports this module, once tracing is on."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import HOST_NAME, PROCESS_PID, SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter
from opentelemetry.sdk.trace.sampling import Decision, ParentBased, Sampler, SamplingResult
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
    set_span_in_context,
)
from opentelemetry.util.types import Attributes

import headrace
from headrace.telemetry.tracing import Kind

_EXPORTERS = {"otlp": OTLPSpanExporter, "console": ConsoleSpanExporter}
_LATEST_NAMES = "gen_ai_latest_experimental"
# Values of the variable that let spans have content. Others mean events, which Headrace does not send.
_CONTENT = {"true", "span_only", "span_and_event"}


class Exporter:
    """The tracer of a process, and the thread that sends its spans in batches from a bounded queue.

    The SDK reads the variables of sampling, batches, limits and OTLP itself. It is not made the global one of the
    process, so that no library adds spans of its own.
    """

    def __init__(self, part: str, name: str, environment: Mapping[str, str]) -> None:
        """Send spans by an exporter of that name.

        Raises:
            ValueError: A variable has a value that the SDK refuses.
        """
        opted = environment.get("OTEL_SEMCONV_STABILITY_OPT_IN", "").split(",")
        self.latest_names = _LATEST_NAMES in [name.strip() for name in opted]
        content = environment.get("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "")
        self.content_wanted = content.lower() in _CONTENT
        self._provider = TracerProvider(resource=_resource(part), shutdown_on_exit=False)
        if isinstance(self._provider.sampler, ParentBased):
            self._provider.sampler = _LinkBased(self._provider.sampler)
        self._provider.add_span_processor(BatchSpanProcessor(_EXPORTERS[name]()))
        self._tracer = self._provider.get_tracer("headrace", headrace.__version__)

    def close(self) -> None:
        """Send the last spans."""
        self._provider.shutdown()

    def start(self, name: str, kind: Kind, *, parent: str | None, link: str | None) -> Span | None:
        """Start a span, if it is sampled."""
        context = Context() if parent is None else set_span_in_context(NonRecordingSpan(_read(parent)), Context())
        links = () if link is None else (Link(_read(link)),)
        span = self._tracer.start_span(name, context, SpanKind[kind], links=links)
        return span if span.is_recording() else None

    def child(self, parent: Span, name: str, kind: Kind) -> Span:
        """Start a span inside of one of this process."""
        return self._tracer.start_span(name, set_span_in_context(parent, Context()), SpanKind[kind])

    def fail(self, span: Span, kind: str) -> None:
        """Mark a span as failed."""
        span.set_attribute("error.type", kind)
        span.set_status(Status(StatusCode.ERROR))

    def context_of(self, span: Span) -> str:
        """Return the trace context of a span as jobs keep it."""
        context = span.get_span_context()
        parent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
        state = context.trace_state.to_header()
        return f"{parent}\n{state}" if state else parent


class _LinkBased(Sampler):
    """Samples a trace that begins with a link to a sampled span, as a parent-based sampler does a span under it."""

    def __init__(self, others: Sampler) -> None:
        self._others = others

    def should_sample(  # noqa: PLR0917  (the SDK's signature)
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        """Decide on a span. Only a span without a parent has links."""
        if links:
            sampled = any(link.context.trace_flags.sampled for link in links)
            return SamplingResult(Decision.RECORD_AND_SAMPLE if sampled else Decision.DROP, attributes, trace_state)
        return self._others.should_sample(parent_context, trace_id, name, kind, attributes, links, trace_state)

    def get_description(self) -> str:
        """Return the name of the sampler."""
        return f"LinkBased{{{self._others.get_description()}}}"


def _resource(part: str) -> Resource:
    """Return what the spans of this process say of it. The standard variables take precedence."""
    found = Resource.create()
    ours = Resource({SERVICE_VERSION: headrace.__version__, HOST_NAME: socket.gethostname(), PROCESS_PID: os.getpid()})
    named = not str((found.attributes or {})[SERVICE_NAME]).startswith("unknown_service")
    resource = ours.merge(found)
    return resource if named else resource.merge(Resource({SERVICE_NAME: f"headrace-{part}"}))


def _read(context: str) -> SpanContext:
    """Return the span that a trace context names."""
    parent, _, state = context.partition("\n")
    return SpanContext(
        int(parent[3:35], 16),
        int(parent[36:52], 16),
        is_remote=True,
        trace_flags=TraceFlags(int(parent[53:], 16)),
        trace_state=TraceState.from_header([state]) if state else None,
    )
