"""Traces: spans of a job's way, sent to an OpenTelemetry collector. Off unless the standard `OTEL_*` variables ask.

Spans are made at five places: where a job is submitted, where it is claimed, where its provider is called, where it
ends, and where its webhook is sent. Without tracing, no tracer is imported, and each place costs one call that returns
None.

A job keeps the trace context of its submission, if it has one: its client sent it, or its submission is sampled. So a
job without a context has no spans, and sampling is decided once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self
from urllib.parse import urlsplit

from headrace.telemetry.metrics import Part

if TYPE_CHECKING:
    from opentelemetry.trace import Span as SdkSpan

    from headrace.telemetry.otel import Exporter

log = logging.getLogger(__name__)

Kind = Literal["PRODUCER", "CONSUMER", "CLIENT", "INTERNAL"]
Attributes = dict[str, str | bool | int | float | Sequence[str] | None]

# Seconds that the end of a process waits for its last spans to be sent.
_FLUSH_SECONDS = 3.0
_PROTOCOL = "http/protobuf"

_exporter: Exporter | None = None


class Span:
    """A sampled span that has begun. As a context, it ends with it, and has the error that leaves it."""

    __slots__ = ("_exporter", "_span", "context")

    def __init__(self, exporter: Exporter, span: SdkSpan) -> None:
        self._exporter = exporter
        self._span = span
        self.context = exporter.context_of(span)
        """The trace context to send on, as `headrace.telemetry.traceparent` has it."""

    def child(self, name: str, kind: Kind) -> Span:
        """Start a span inside of this one."""
        return Span(self._exporter, self._exporter.child(self._span, name, kind))

    def set(self, attributes: Attributes) -> None:
        """Set the attributes that are not None."""
        self._span.set_attributes({name: value for name, value in attributes.items() if value is not None})

    def fail(self, kind: str) -> None:
        """Mark the span as failed. `kind` is one of few values: the class of an error, or an HTTP status."""
        self._exporter.fail(self._span, kind)

    def end(self) -> None:
        """End the span."""
        self._span.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception):  # what is cancelled has not failed
            self.fail(type(error).__name__)
        self.end()


def start_span(name: str, kind: Kind, *, parent: str | None, link: str | None = None) -> Span | None:
    """Start a span under the span whose context is `parent`; without it, a trace of its own, linked to `link`.

    Returns None where tracing is off, or the span is not sampled.
    """
    if _exporter is None:
        return None
    span = _exporter.start(name, kind, parent=parent, link=link)
    return None if span is None else Span(_exporter, span)


def server_attributes(url: str) -> Attributes:
    """Return the attributes of the server of a URL. Its user, path and query may be secret, and are left out."""
    try:
        parts = urlsplit(url)
        return {
            "server.address": parts.hostname,
            "server.port": parts.port or (443 if parts.scheme == "https" else 80),
        }
    except ValueError:
        return {}


def latest_names() -> bool:
    """Return whether spans also have the names of the newest GenAI conventions, which may still change."""
    return _exporter is not None and _exporter.latest_names


def content_wanted() -> bool:
    """Return whether spans have the text of requests and answers."""
    return _exporter is not None and _exporter.content_wanted


@contextlib.contextmanager
def tracing(part: Part) -> Iterator[None]:
    """Send the spans of a process inside the context, if the environment asks for it.

    Entered after any fork. Leaving the context sends the last spans, and waits for that up to three seconds.
    """
    global _exporter  # noqa: PLW0603  (one tracer a process, as for logs and metrics)
    _exporter = _open(part)
    try:
        yield
    finally:
        exporter, _exporter = _exporter, None
        if exporter is not None:
            # A collector that does not answer would hold up the end for half a minute.
            closing = threading.Thread(target=exporter.close, name="last spans", daemon=True)
            closing.start()
            closing.join(_FLUSH_SECONDS)


def _open(part: Part) -> Exporter | None:
    """Return the exporter that the environment asks for. A problem with it is logged, and the part runs without."""
    environment = {name: value.strip() for name, value in os.environ.items() if name.startswith("OTEL_")}
    name = exporter_asked_for(environment)
    if name is None:
        return None
    try:
        from headrace.telemetry.otel import Exporter

        exporter = Exporter(part, name, environment)
    except ModuleNotFoundError:
        log.warning("no traces: OTEL_* variables ask for them, but headrace[otel] is not installed")
        return None
    except Exception as error:  # noqa: BLE001  (a variable that the SDK cannot read must not keep a part from starting)
        log.warning("no traces: %s", error)
        return None
    log.info("traces are on")
    return exporter


def exporter_asked_for(environment: Mapping[str, str]) -> str | None:
    """Return the name of the exporter that `OTEL_*` variables ask for, `otlp` or `console`; None if tracing is off."""
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    name = environment.get("OTEL_TRACES_EXPORTER", "").lower()
    if not name:
        endpoints = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
        name = "otlp" if any(environment.get(endpoint) for endpoint in endpoints) else "none"
    if name == "none":
        return None
    if name not in {"otlp", "console"}:
        log.warning("no traces: OTEL_TRACES_EXPORTER can be otlp, console or none")
        return None
    protocol = environment.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environment.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    if name == "otlp" and protocol and protocol.lower() != _PROTOCOL:
        log.warning("no traces: OTEL_EXPORTER_OTLP_PROTOCOL can be %s alone", _PROTOCOL)
        return None
    return name
