"""Every metric of Headrace, declared once: docs/reference/metrics.md is made from these declarations.

A label's values are bounded: states, tiers, formats, the API's own routes, and the providers, models and routes of the
catalogue. A model that the catalogue does not name, as one that fits a glob, is `other`. No label names an account, a
key or a user.

A process counts in memory whether or not it is scraped. What runs for each job takes its children from `bound`, which
looks a child up once for each set of label values.
"""

from __future__ import annotations

import functools
from bisect import bisect_left
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase

Part = Literal["api", "worker", "scheduler"]
Instrument = TypeVar("Instrument", bound=MetricWrapperBase)

ALL: tuple[Part, ...] = ("api", "worker", "scheduler")
OTHER = "other"
"""The label of a model that the catalogue does not name."""

# Upper bounds in seconds: of our own work and the stores', and of what waits for a provider or a slot.
_SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
_LONG = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 21_600)
# Items of one statement.
_SIZES = (1, 2, 5, 10, 25, 50, 100, 250, 500)


@dataclass(frozen=True, slots=True)
class Metric:
    """What the documentation says of one metric, and the instrument that the processes of `parts` expose."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    unit: str
    labels: Sequence[str]
    parts: Sequence[Part]
    help: str
    watch: str
    """What to alert on, or what to read from it."""
    instrument: MetricWrapperBase


class _Count(Counter):
    """A counter that checks nothing: what runs for each job raises several."""

    def inc(self, amount: float = 1, exemplar: dict[str, str] | None = None) -> None:  # noqa: ARG002  (its base has it)
        self._value.inc(amount)


class _Distribution(Histogram):
    """A histogram that checks nothing, and looks its bucket up."""

    def observe(self, amount: float, exemplar: dict[str, str] | None = None) -> None:  # noqa: ARG002  (its base has it)
        self._sum.inc(amount)
        self._buckets[bisect_left(self._upper_bounds, amount)].inc(1)


METRICS: list[Metric] = []
"""Every metric, in the order of the documentation."""


def _counter(
    name: str, text: str, *, unit: str, parts: Sequence[Part], watch: str, labels: Sequence[str] = ()
) -> Counter:
    counter = _Count(name, text, labels, registry=None)
    METRICS.append(Metric(name, "counter", unit, labels, parts, text, watch, counter))
    return counter


def _gauge(name: str, text: str, *, unit: str, parts: Sequence[Part], watch: str, labels: Sequence[str] = ()) -> Gauge:
    gauge = Gauge(name, text, labels, registry=None)
    METRICS.append(Metric(name, "gauge", unit, labels, parts, text, watch, gauge))
    return gauge


def _histogram(
    name: str,
    text: str,
    *,
    unit: str,
    parts: Sequence[Part],
    watch: str,
    buckets: Sequence[float],
    labels: Sequence[str] = (),
) -> Histogram:
    histogram = _Distribution(name, text, labels, registry=None, buckets=buckets)
    METRICS.append(Metric(name, "histogram", unit, labels, parts, text, watch, histogram))
    return histogram


def bound(instrument: Instrument) -> Callable[..., Instrument]:
    """Return a function from label values, in the order of the declaration, to the child that has them."""
    return functools.cache(instrument.labels)


def known_model(name: str, models: Collection[str]) -> str:
    """Return the label of a model: its name if the catalogue has it, else `other`."""
    return name if name in models else OTHER


def known_route(name: str, routes: Collection[str]) -> str:
    """Return the label of a route: its name if the catalogue writes it out, else `provider/other`."""
    return name if name in routes else f"{name.partition('/')[0]}/{OTHER}"


JOBS_SUBMITTED = _counter(
    "headrace_jobs_submitted_total",
    "Jobs that were accepted, without lines of batches.",
    unit="jobs",
    labels=("tier", "format"),
    parts=("api",),
    watch="The rate of new work. Compare it with the rate of ended jobs.",
)
JOBS_ENDED = _counter(
    "headrace_jobs_ended_total",
    "Jobs that reached an end state, lines of batches included. Workers end most jobs. The scheduler ends lines that a "
    "provider's own batch API ran, and jobs that are lost or late; the API ends queued jobs that are cancelled. Late, "
    "lost and cancelled jobs of theirs have the model `other`.",
    unit="jobs",
    labels=("status", "tier", "model"),
    parts=ALL,
    watch="Alert on the share of `failed` and `expired`.",
)
QUEUE_JOBS = _gauge(
    "headrace_queue_jobs",
    "Queued jobs, those included that are not due yet. The scheduler that leads counts them every 4 s, less often "
    "where there are very many.",
    unit="jobs",
    labels=("tier",),
    parts=("scheduler",),
    watch="Add workers when it grows.",
)
QUEUE_OLDEST = _gauge(
    "headrace_queue_oldest_seconds",
    "Time since the oldest job of a tier was due, by the scheduler that leads; 0 if none is due.",
    unit="seconds",
    labels=("tier",),
    parts=("scheduler",),
    watch="Alert when `priority` or `default` exceeds 30 s.",
)
QUEUE_WAIT = _histogram(
    "headrace_queue_wait_seconds",
    "Time from the moment when a job was due to its claim by a worker, for each claim.",
    unit="seconds",
    labels=("tier",),
    parts=("worker",),
    buckets=_LONG,
    watch="Alert when the 95th percentile of `priority` or `default` exceeds a second: the workers have too few slots.",
)
OVERHEAD = _histogram(
    "headrace_overhead_seconds",
    "Time that an attempt took beside its provider: from its claim to the commit of its end, without the call and "
    "without the wait for the provider's limits.",
    unit="seconds",
    labels=("format",),
    parts=("worker",),
    buckets=_SHORT,
    watch="Alert when the 95th percentile exceeds 0.25 s: the worker or Postgres is short of CPU or of disk.",
)
TIME_TO_FIRST_DELTA = _histogram(
    "headrace_time_to_first_delta_seconds",
    "Time from the start of a streamed call to its first delta.",
    unit="seconds",
    labels=("provider",),
    parts=("worker",),
    buckets=_LONG,
    watch="Compare providers, and alert on a change of one.",
)
CALL_SECONDS = _histogram(
    "headrace_provider_call_seconds",
    "Time of a call to a provider, up to its last byte or its failure.",
    unit="seconds",
    labels=("provider",),
    parts=("worker",),
    buckets=_LONG,
    watch="Compare providers. Times near a provider's `timeout` mean that it hangs.",
)
ATTEMPTS = _counter(
    "headrace_attempts_total",
    "Attempts that called a provider, by how they ended, those of a provider's own batch API included. `model` is the "
    "name that the client asked for, `route` the `provider/model` that was called; a route by a glob is "
    "`provider/other`.",
    unit="attempts",
    labels=("provider", "model", "outcome", "route"),
    parts=("worker", "scheduler"),
    watch="Alert on a provider's share of outcomes other than `completed` and `cancelled`; at once on `credentials`.",
)
WORKER_SLOTS = _gauge(
    "headrace_worker_slots",
    "Jobs that a worker may run at a time, without its reserve.",
    unit="jobs",
    parts=("worker",),
    watch="The capacity of all workers.",
)
WORKER_SLOTS_TAKEN = _gauge(
    "headrace_worker_slots_taken",
    "Jobs that a worker runs now. With its reserve it may run an eighth more than it has slots.",
    unit="jobs",
    parts=("worker",),
    watch="Add workers when nearly all slots are taken while jobs wait.",
)
TOKENS = _counter(
    "headrace_tokens_total",
    "Tokens of attempts, as the usage ledger has them. `cached` is a part of `input`, and `reasoning` of `output`.",
    unit="tokens",
    labels=("kind", "model"),
    parts=("worker", "scheduler"),
    watch="The load of models, and the share of cached input.",
)
COST = _counter(
    "headrace_cost_usd_total",
    "Cost of attempts whose model has a price, as the usage ledger has it.",
    unit="US dollars",
    labels=("model",),
    parts=("worker", "scheduler"),
    watch="Alert on the spend of an hour.",
)
THROTTLED = _counter(
    "headrace_throttled_total",
    "Attempts that did not call their provider: it was paused or its limits had no room (`busy`), or its circuit was "
    "open (`circuit`).",
    unit="attempts",
    labels=("provider", "reason"),
    parts=("worker",),
    watch="A constant rate means that the provider's limits are too small for the load.",
)
THROTTLE_WAIT = _histogram(
    "headrace_throttle_wait_seconds",
    "Time for which a call waited for room in its provider's limits.",
    unit="seconds",
    labels=("provider",),
    parts=("worker",),
    buckets=_LONG,
    watch="The time that a higher limit would save.",
)
ADAPTIVE_LIMIT = _gauge(
    "headrace_adaptive_limit",
    "Calls at once that a route takes over all workers, as a worker that calls it has found: for providers without "
    "limits in the configuration. A route by a glob is absent.",
    unit="calls",
    labels=("route",),
    parts=("worker",),
    watch="Where it is low while jobs wait, the provider refuses calls: ask it for a higher limit, or add a route.",
)
CIRCUIT_OPEN = _gauge(
    "headrace_circuit_open",
    "Whether a worker's circuit to a provider is open for all accounts: 1 or 0. A provider without trouble is absent.",
    unit="1 or 0",
    labels=("provider",),
    parts=("worker",),
    watch="Alert when it is 1 for a minute at every worker.",
)
LEASES_LOST = _counter(
    "headrace_leases_lost_total",
    "Jobs whose lease expired, as their worker died, froze or lost Postgres. The scheduler puts them back.",
    unit="jobs",
    parts=("scheduler",),
    watch="Alert on any increase without a restart of a worker.",
)
SCHEDULER_LEADS = _gauge(
    "headrace_scheduler_leads",
    "Whether this scheduler is the one that leads: 1 or 0.",
    unit="1 or 0",
    parts=("scheduler",),
    watch="Alert when no scheduler has led for a minute: batches and webhooks stand still, lost jobs stay lost.",
)
WEBHOOKS = _counter(
    "headrace_webhooks_total",
    "Deliveries of webhooks that were sent, by what became of each: `delivered`, `pending` if it is sent again, "
    "`failed` if it is given up.",
    unit="deliveries",
    labels=("outcome",),
    parts=("scheduler",),
    watch="Alert on `failed`.",
)
BATCH_LINES = _counter(
    "headrace_batch_lines_total",
    "Lines of batches that became jobs.",
    unit="lines",
    parts=("scheduler",),
    watch="The progress of batches: no increase while batches run means that no worker takes their jobs.",
)
BATCHES_ENDED = _counter(
    "headrace_batches_ended_total",
    "Batches that reached an end state. A batch with an input that is not valid is `failed`.",
    unit="batches",
    labels=("status",),
    parts=("scheduler",),
    watch="Alert on `expired`: the workers or a provider's limits are too small for the batches' windows.",
)
PARCELS = _counter(
    "headrace_parcels_total",
    "Parcels of lines at a provider's own batch API, by what became of each: `submitted`, `ended`, `retried` after a "
    "failed call, `given_up` if workers run its lines instead.",
    unit="parcels",
    labels=("provider", "outcome"),
    parts=("scheduler",),
    watch="Alert on `given_up`: those lines cost the full price.",
)
HTTP_REQUESTS = _counter(
    "headrace_http_requests_total",
    "Requests to the API, by the path's template and the class of the answer's status: `2xx` to `5xx`, or `none` if "
    "the client left before it had an answer.",
    unit="requests",
    labels=("route", "status"),
    parts=("api",),
    watch="Alert on the share of `5xx`.",
)
SUBSCRIBERS = _gauge(
    "headrace_subscribers",
    "Event streams and waits that an API process holds open.",
    unit="subscribers",
    parts=("api",),
    watch="Compare with `HEADRACE_MAX_CONNECTIONS`.",
)
GROUP_COMMIT = _histogram(
    "headrace_group_commit_items",
    "Items that one statement wrote together, by what it does: `accept` and `limits` in the API, `claim`, "
    "`deltas` and `finish` in the worker.",
    unit="items",
    labels=("statement",),
    parts=("api", "worker"),
    buckets=_SIZES,
    watch="Large groups show load. Their cost is shared, so they need no alert.",
)
STORE_SECONDS = _histogram(
    "headrace_store_seconds",
    "Time of a statement at Postgres or a command at Redis, with the wait for a connection.",
    unit="seconds",
    labels=("store",),
    parts=ALL,
    buckets=_SHORT,
    watch="Alert when the 99th percentile of `postgres` exceeds a second.",
)
STORE_UP = _gauge(
    "headrace_store_up",
    "Whether the last statement or command of this process reached the store: 1 or 0. A store that the process has not "
    "asked yet is absent.",
    unit="1 or 0",
    labels=("store",),
    parts=ALL,
    watch="Alert on 0: without Postgres nothing is accepted or ended, without Redis everything is slower.",
)
EVENT_LOOP_LAG = _histogram(
    "headrace_event_loop_lag_seconds",
    "By how much the event loop was late for a timer, while the metrics port is on: measured once a second, and every "
    "four seconds while the process idles.",
    unit="seconds",
    parts=ALL,
    buckets=_SHORT,
    watch="Alert when the 95th percentile exceeds 0.1 s: the process needs more CPU, or there are too few processes.",
)
