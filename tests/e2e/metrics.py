"""What a process answers to a scrape."""

from __future__ import annotations

import httpx
from prometheus_client.parser import text_string_to_metric_families

_SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}


class Scrape:
    """The samples of one answer."""

    def __init__(self, text: str) -> None:
        """Read Prometheus's text format."""
        self.text = text
        self.families = list(text_string_to_metric_families(text))
        self._samples = [sample for family in self.families for sample in family.samples]

    def total(self, name: str, **labels: str) -> float:
        """Return the sum of the samples of a name that have these labels."""
        return sum(
            sample.value for sample in self._samples if sample.name == name and labels.items() <= sample.labels.items()
        )

    def values(self, label: str) -> set[str]:
        """Return the values of a label, over all metrics."""
        return {sample.labels[label] for sample in self._samples if label in sample.labels}

    def names(self) -> set[str]:
        """Return the names of the samples that the metrics have, or will have with their first child."""
        return {f"{family.name}{suffix}" for family in self.families for suffix in _SUFFIXES.get(family.type, ("",))}

    def labels(self) -> dict[str, set[str]]:
        """Return the names of the labels that each of Headrace's metrics has, but for those of buckets."""
        found: dict[str, set[str]] = {}
        for family in self.families:
            if family.name.startswith("headrace_"):
                labels = found.setdefault(family.name, set())
                for sample in family.samples:
                    labels |= sample.labels.keys() - {"le"}
        return found


def scrape(port: int) -> Scrape:
    """Return what the metrics port of a process on this machine serves."""
    answer = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=30)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return Scrape(answer.text)
