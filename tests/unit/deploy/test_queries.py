"""The board and the alert rules ask for metrics that exist, by labels and values that they have."""

from __future__ import annotations

import re

import pytest
from promql_parser import MatchOp

from headrace.batches.state import BatchState
from headrace.jobs.state import State
from headrace.queue import TIERS
from tests.promql import BOARD, DECLARED, PANELS, Query, labels, matchers, parsed, queries, selectors
from worker.attempt import Stop
from worker.measures import OUTCOMES

QUERIES = list(queries())

# The values of labels, where the code has a list of them. A query for another value finds nothing.
VALUES: dict[tuple[str, str], set[str]] = {
    ("headrace_jobs_ended_total", "status"): {state.value for state in State},
    ("headrace_batches_ended_total", "status"): {state.value for state in BatchState},
    ("headrace_http_requests_total", "status"): {"none", "1xx", "2xx", "3xx", "4xx", "5xx"},
    ("headrace_attempts_total", "outcome"): {"completed", *OUTCOMES.values(), *(stop.name.lower() for stop in Stop)},
    ("headrace_throttled_total", "reason"): {"busy", "circuit"},
    ("headrace_webhooks_total", "outcome"): {"pending", "delivered", "failed"},
    ("headrace_tokens_total", "kind"): {"input", "output", "cached", "reasoning"},
    ("headrace_store_up", "store"): {"postgres", "redis"},
    ("headrace_store_seconds_bucket", "store"): {"postgres", "redis"},
    ("ALERTS", "alertstate"): {"pending", "firing"},
    **{(name, "tier"): set(TIERS) for name, series in DECLARED.items() if "tier" in series.labels},
}
PATTERNS = {("job", "headrace.*"), ("alertname", "Headrace.*")}
"""Conditions that are regular expressions and not lists of values."""


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: query.place)
def test_a_query_asks_for_metrics_and_labels_that_exist(query: Query) -> None:
    found = labels(parsed(query.text))
    assert query.shown <= found, "the text shows a label that the result does not have"


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: query.place)
def test_a_query_asks_for_values_that_exist(query: Query) -> None:
    for selector in selectors(parsed(query.text)):
        for matcher in matchers(selector):
            if matcher.value.startswith("$") or (matcher.name, matcher.value) in PATTERNS:
                continue
            values = matcher.value.split("|") if matcher.op in (MatchOp.Re, MatchOp.NotRe) else [matcher.value]
            assert set(values) <= VALUES[str(selector.name), matcher.name], matcher


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("headrace_queue_lobs", "no metric"),
        ('headrace_queue_jobs{model="a"}', "no label model"),
        ("sum by (provider) (headrace_queue_jobs)", "no label provider"),
        ("sum by (tier) (sum(headrace_queue_jobs))", "no label tier"),
        ("rate(headrace_queue_jobs[5m])", "of a gauge"),
        ("histogram_quantile(0.5, sum(rate(headrace_store_seconds_bucket[5m])))", "no label le"),
        ("sum by (tier) (headrace_queue_jobs) > on (job) headrace_subscribers", "no label job"),
        ("headrace_queue_jobs > headrace_subscribers", "other labels"),
    ],
)
def test_a_wrong_query_is_found(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        labels(parsed(text))


def test_panels_have_what_a_reader_needs() -> None:
    ids = [panel["id"] for panel in PANELS]
    assert len(set(ids)) == len(ids)
    for panel in PANELS:
        if panel["type"] != "row":
            assert panel["title"]
            assert panel["description"].endswith("."), panel["title"]
            assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, panel["title"]


def test_panels_do_not_overlap() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in PANELS:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in taken, (panel["title"], taken.get((x, y)))
                taken[x, y] = panel["title"]


def test_every_variable_is_used_and_declared() -> None:
    declared = {variable["name"] for variable in BOARD["templating"]["list"]}
    used = {name for query in QUERIES for name in re.findall(r"\$(\w+)", query.text)} - {"__rate_interval"}
    assert used | {"datasource"} == declared
