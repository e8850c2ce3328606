"""The declarations of metrics, and what keeps their labels few."""

from __future__ import annotations

import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from headrace.telemetry.exposition import render_metrics
from headrace.telemetry.metrics import ALL, METRICS, OTHER, Metric, Part, known_model

LABELS = {"tier", "format", "status", "model", "provider", "outcome", "kind", "reason", "statement", "store", "route"}
"""Each has few values: states, tiers, formats, what the catalogue names, and constants of the code."""


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_a_metric_has_an_orderly_name_and_bounded_labels(metric: Metric) -> None:
    assert re.fullmatch(r"headrace_[a-z_]+", metric.name)
    assert (metric.kind == "counter") == metric.name.endswith("_total")
    assert set(metric.labels) <= LABELS
    assert set(metric.parts) <= set(ALL)
    assert metric.help.endswith(".")
    assert metric.watch.endswith(".")


def test_no_two_metrics_share_a_name() -> None:
    names = [metric.name for metric in METRICS]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("part", ALL)
def test_a_part_exposes_its_own_metrics_and_no_other(part: Part) -> None:
    families = {family.name for family in text_string_to_metric_families(render_metrics(part).decode())}
    own = {metric.name.removesuffix("_total") for metric in METRICS if part in metric.parts}
    assert {name for name in families if name.startswith("headrace_")} == own


def test_a_model_that_the_catalogue_does_not_name_is_other() -> None:
    assert known_model("gpt-5", {"gpt-5", "gpt-*"}) == "gpt-5"
    assert known_model("gpt-made-up-by-a-client", {"gpt-5", "gpt-*"}) == OTHER
