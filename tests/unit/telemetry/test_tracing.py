from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from headrace.telemetry.tracing import exporter_asked_for, start_span, tracing

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector.invalid:4318"}


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ({}, None),
        (ENDPOINT, "otlp"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector.invalid:4318/v1/traces"}, "otlp"),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, "otlp"),
        ({"OTEL_TRACES_EXPORTER": "console"}, "console"),
        ({**ENDPOINT, "OTEL_TRACES_EXPORTER": ""}, "otlp"),
        ({**ENDPOINT, "OTEL_TRACES_EXPORTER": "none"}, None),
        ({**ENDPOINT, "OTEL_SDK_DISABLED": "True"}, None),
        ({**ENDPOINT, "OTEL_SDK_DISABLED": "false"}, "otlp"),
        ({**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, "otlp"),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://collector.invalid:4318"}, None),
    ],
)
def test_the_standard_variables_turn_tracing_on(environment: dict[str, str], name: str | None) -> None:
    assert exporter_asked_for(environment) == name


@pytest.mark.parametrize(
    ("environment", "why"),
    [
        ({**ENDPOINT, "OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER can be otlp, console or none"),
        ({**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "OTEL_EXPORTER_OTLP_PROTOCOL can be http/protobuf"),
        ({**ENDPOINT, "OTEL_BSP_MAX_QUEUE_SIZE": "1"}, "max_export_batch_size must be"),
    ],
)
def test_a_part_runs_without_traces_where_a_variable_cannot_be_followed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, environment: dict[str, str], why: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with caplog.at_level(logging.WARNING), tracing("worker"):
        assert start_span("claim default", "CONSUMER", parent=None) is None
    assert "no traces: " in caplog.text
    assert why in caplog.text


def test_a_part_runs_without_traces_where_the_extra_is_missing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    for name in [*sys.modules]:
        if name.startswith(("headrace.telemetry.otel", "opentelemetry.sdk", "opentelemetry.exporter")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk", None)
    with caplog.at_level(logging.WARNING), tracing("api"):
        assert start_span("submit default", "PRODUCER", parent=None) is None
    assert "headrace[otel] is not installed" in caplog.text


def test_while_tracing_is_off_no_tracer_is_imported() -> None:
    source = """if True:
        import sys, worker.spans
        from headrace.telemetry.tracing import start_span, tracing
        with tracing("worker"):
            assert start_span("claim default", "CONSUMER", parent=None) is None
        assert not {"headrace.telemetry.otel", "opentelemetry.sdk.trace", "opentelemetry.exporter"} & sys.modules.keys()
    """
    subprocess.run([sys.executable, "-c", source], check=True, env={})
