"""What the metrics of the test's own process count, for tests that run a part of Headrace inside it."""

from __future__ import annotations

from prometheus_client.metrics import MetricWrapperBase


def values(instrument: MetricWrapperBase) -> dict[tuple[str, ...], float]:
    """Return the value of each child by its label values; of a histogram, how often it has observed."""
    [family] = instrument.collect()
    suffix = {"counter": "_total", "histogram": "_count"}.get(family.type, "")
    return {
        tuple(sample.labels.values()): sample.value for sample in family.samples if sample.name == family.name + suffix
    }


class Rise:
    """By how much a counter or a histogram has risen since this was made, as tests share the process."""

    def __init__(self, instrument: MetricWrapperBase) -> None:
        """Begin now."""
        self._instrument = instrument
        self._before = values(instrument)

    def __call__(self) -> dict[tuple[str, ...], float]:
        """Return by how much each child has risen, by its label values in the order of the declaration."""
        return {
            labels: value - self._before.get(labels, 0.0)
            for labels, value in values(self._instrument).items()
            if value != self._before.get(labels, 0.0)
        }
