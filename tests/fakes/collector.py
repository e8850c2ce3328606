"""A collector of traces: a real HTTP server on loopback that takes spans by OpenTelemetry's protocol."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tests.waiting import until


@dataclass(frozen=True)
class Collected:
    """A span. Ids are in hexadecimal digits."""

    name: str
    kind: str
    trace_id: str
    id: str
    parent: str
    state: str
    links: list[tuple[str, str]]
    """The trace and the span of each."""
    attributes: dict[str, Any]
    failed: bool
    nanoseconds: tuple[int, int]
    resource: dict[str, Any]


@dataclass
class Collector:
    """Keeps the spans that come, and each request as it came."""

    url: str
    spans: list[Collected] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)

    def take(self, body: bytes) -> None:
        """Keep the spans of a request."""
        self.bodies.append(body)
        for of_resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            resource = _mapping(of_resource.resource.attributes)
            for of_scope in of_resource.scope_spans:
                self.spans += [_collected(span, resource) for span in of_scope.spans]

    def submitted(self, subject_id: str) -> list[Collected]:
        """Return the spans of the trace in which a job or a batch was submitted, in order of their start."""
        traces = {
            span.trace_id
            for span in self.spans
            if span.kind == "PRODUCER" and span.attributes["messaging.message.id"] == subject_id
        }
        return sorted((span for span in self.spans if span.trace_id in traces), key=lambda span: span.nanoseconds)

    def trace(self, subject_id: str, *names: str) -> list[Collected]:
        """Return the spans of the trace in which a job or a batch was submitted, once they are as many as `names`."""
        until(lambda: len(self.submitted(subject_id)) >= len(names), f"the spans {names}")
        found = self.submitted(subject_id)
        assert [span.name for span in found] == list(names)
        return found


@contextlib.contextmanager
def running_collector() -> Iterator[Collector]:
    """Listen on a free port while within."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 10

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            known = self.path == "/v1/traces" and self.headers["content-type"] == "application/x-protobuf"
            if known:
                collector.take(body)
            self.send_response(200 if known else 404)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector = Collector(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join()


def _collected(span: Span, resource: dict[str, Any]) -> Collected:
    return Collected(
        name=span.name,
        kind=Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        trace_id=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        state=span.trace_state,
        links=[(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
        attributes=_mapping(span.attributes),
        failed=span.status.code == Status.STATUS_CODE_ERROR,
        nanoseconds=(span.start_time_unix_nano, span.end_time_unix_nano),
        resource=resource,
    )


def _mapping(attributes: Any) -> dict[str, Any]:
    pairs: list[KeyValue] = list(attributes)
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(each) for each in value.array_value.values]
    return None if kind is None else getattr(value, kind)
