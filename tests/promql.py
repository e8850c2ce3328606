"""The queries of `deploy/`, parsed: which metric each asks, for which labels, and which labels its result has."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml  # type: ignore[import-untyped]
from promql_parser import (
    AggModifierType,
    AggregateExpr,
    BinaryExpr,
    Call,
    Expr,
    LabelModifierType,
    Matcher,
    MatrixSelector,
    NumberLiteral,
    ParenExpr,
    SubqueryExpr,
    UnaryExpr,
    VectorSelector,
    parse,
)

from headrace.telemetry.metrics import METRICS

DEPLOY = Path(__file__).resolve().parent.parent / "deploy"
BOARD: dict[str, Any] = json.loads((DEPLOY / "grafana" / "headrace.json").read_text())
PANELS: list[dict[str, Any]] = BOARD["panels"]
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]

TARGET = frozenset({"job", "instance"})
"""Labels that Prometheus gives every sample of a target."""

# Metrics that Prometheus and prometheus-client make, with their labels.
FOREIGN: dict[str, frozenset[str]] = {
    "up": TARGET,
    "ALERTS": frozenset({"alertname", "alertstate", "severity"}),
    "process_cpu_seconds_total": TARGET,
    "process_resident_memory_bytes": TARGET,
    "process_open_fds": TARGET,
    "process_max_fds": TARGET,
}
_KEPT = {"and", "or", "unless"}
_COUNTED = {"rate", "increase", "irate"}


class Query(NamedTuple):
    """One query, and the labels that the text beside it shows."""

    place: str
    text: str
    shown: frozenset[str]


def queries() -> Iterator[Query]:
    """Yield every query of the board and of the alert rules."""
    for panel in PANELS:
        for target in panel.get("targets", ()):
            shown = re.findall(r"\{\{ *(\w+) *\}\}", target["legendFormat"])
            yield Query(f"{panel['title']} {target['refId']}", target["expr"], frozenset(shown))
    for variable in BOARD["templating"]["list"]:
        if variable["type"] == "query":
            found = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
            assert found is not None
            yield Query(f"variable {variable['name']}", found[1], frozenset({found[2]}))
    for rule in RULES:
        shown = re.findall(r"\$labels\.(\w+)", json.dumps(rule["annotations"]))
        yield Query(rule["alert"], rule["expr"], frozenset(shown))


def parsed(text: str) -> Expr:
    """Return a query as a tree.

    Raises:
        ValueError: It is not PromQL.
    """
    tree: Expr = parse(text.replace("$__rate_interval", "5m"))
    return tree


class Series(NamedTuple):
    """What a selector may find: series of a metric with these labels."""

    labels: frozenset[str]
    counted: bool
    """Whether its value only grows."""


def declared() -> dict[str, Series]:
    """Return every name of a sample that a process of Headrace, or Prometheus, gives."""
    found = {name: Series(labels, name.endswith("_total")) for name, labels in FOREIGN.items()}
    for metric in METRICS:
        labels = frozenset(metric.labels) | TARGET
        if metric.kind == "histogram":
            found[f"{metric.name}_bucket"] = Series(labels | {"le"}, counted=True)
            found[f"{metric.name}_sum"] = found[f"{metric.name}_count"] = Series(labels, counted=True)
        else:
            found[metric.name] = Series(labels, metric.kind == "counter")
    return found


DECLARED = declared()


def selectors(tree: Expr) -> Iterator[VectorSelector]:
    """Yield every selector of a query."""
    match tree:
        case VectorSelector():
            yield tree
        case MatrixSelector():
            yield tree.vector_selector
        case BinaryExpr():
            yield from selectors(tree.lhs)
            yield from selectors(tree.rhs)
        case Call():
            for argument in tree.args:
                yield from selectors(argument)
        case AggregateExpr() | ParenExpr() | UnaryExpr() | SubqueryExpr():
            yield from selectors(tree.expr)


def matchers(selector: VectorSelector) -> list[Matcher]:
    """Return the conditions of a selector, those of alternatives included."""
    return [*selector.matchers.matchers, *(one for group in selector.matchers.or_matchers for one in group)]


def labels(tree: Expr) -> frozenset[str]:
    """Return the labels that the result of a query may have.

    Raises:
        ValueError: It asks for an unknown metric, for a label that the metric or a part of the query does not have,
            or for the growth of a value that may fall.
    """
    match tree:
        case VectorSelector():
            return _selected(tree)
        case MatrixSelector():
            return _selected(tree.vector_selector)
        case ParenExpr() | UnaryExpr() | SubqueryExpr():
            return labels(tree.expr)
        case AggregateExpr():
            return _aggregated(tree)
        case Call():
            return _called(tree)
        case BinaryExpr():
            return _joined(tree)
        case NumberLiteral():
            return frozenset()
    raise ValueError(f"no rule for {type(tree).__name__}")


def _known(asked: frozenset[str] | list[str], known: frozenset[str], place: object) -> None:
    if missing := set(asked) - known:
        raise ValueError(f"no label {', '.join(sorted(missing))}: {place}")


def _selected(selector: VectorSelector) -> frozenset[str]:
    if selector.name not in DECLARED:
        raise ValueError(f"no metric {selector.name}")
    known = DECLARED[selector.name].labels
    _known([matcher.name for matcher in matchers(selector)], known, selector)
    return known


def _aggregated(tree: AggregateExpr) -> frozenset[str]:
    inner = labels(tree.expr)
    if str(tree.op) in {"topk", "bottomk"}:
        return inner
    if tree.modifier is None:
        return frozenset()
    _known(tree.modifier.labels, inner, tree.prettify())
    named = frozenset(tree.modifier.labels)
    return named if tree.modifier.type == AggModifierType.By else inner - named


def _called(tree: Call) -> frozenset[str]:
    inner = frozenset[str]().union(*map(labels, tree.args))
    if tree.func.name == "histogram_quantile":
        _known(["le"], inner, tree.prettify())
        return inner - {"le"}
    for selector in selectors(tree) if tree.func.name in _COUNTED else ():
        if not DECLARED[str(selector.name)].counted:
            raise ValueError(f"{tree.func.name} of a gauge: {selector}")
    return inner


def _joined(tree: BinaryExpr) -> frozenset[str]:
    left, right = labels(tree.lhs), labels(tree.rhs)
    matching = tree.modifier.matching if tree.modifier is not None else None
    if matching is not None:
        _known(matching.labels, left & right, tree.prettify())
    elif left and right and left != right:
        raise ValueError(f"sides with other labels, and no on(): {tree.prettify()}")
    if matching is None or str(tree.op) in _KEPT:
        return left or right  # a number has none
    return frozenset(matching.labels) if matching.type == LabelModifierType.Include else left
