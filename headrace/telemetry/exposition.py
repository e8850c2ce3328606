"""What a process answers to a scrape: the metrics of its part, from memory."""

from __future__ import annotations

import functools

from prometheus_client import CollectorRegistry, ProcessCollector, disable_created_metrics, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from headrace.telemetry.metrics import METRICS, Part

MEDIA_TYPE = CONTENT_TYPE_PLAIN_0_0_4

disable_created_metrics()  # in this format each would be a metric of its own: when a counter began


@functools.cache
def registry_of(part: Part) -> CollectorRegistry:
    """Return the registry with the metrics of a part, and those of its process, such as its memory."""
    registry = CollectorRegistry()
    for metric in METRICS:
        if part in metric.parts:
            registry.register(metric.instrument)
    ProcessCollector(registry=registry)
    return registry


def render_metrics(part: Part) -> bytes:
    """Return the metrics of this process in Prometheus's text format. It asks no store."""
    return generate_latest(registry_of(part))
