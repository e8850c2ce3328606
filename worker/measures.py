"""What a worker's attempts add to the metrics, once each has ended. Nothing here runs for a single delta."""

from __future__ import annotations

import time

from headrace.catalogue.file import CatalogueFile
from headrace.errors import (
    UpstreamBusyError,
    UpstreamError,
    UpstreamKeyError,
    UpstreamRateLimitError,
    UpstreamRefusedError,
    UpstreamTimeoutError,
    UpstreamTooLargeError,
    UpstreamUnavailableError,
)
from headrace.jobs.records import ClaimedJob
from headrace.jobs.state import State
from headrace.telemetry import metrics, rates
from headrace.telemetry.metrics import bound, known_model, known_route
from headrace.usage.measures import count_spent
from headrace.usage.spent import SpentUsage
from worker.attempt import Attempt, Stop

_ended = bound(metrics.JOBS_ENDED)
_waits = bound(metrics.QUEUE_WAIT)
_overheads = bound(metrics.OVERHEAD)
_first_deltas = bound(metrics.TIME_TO_FIRST_DELTA)
_calls = bound(metrics.CALL_SECONDS)
_attempts = bound(metrics.ATTEMPTS)
_throttled = bound(metrics.THROTTLED)
_throttle_waits = bound(metrics.THROTTLE_WAIT)

# Seconds of waiting from which a call counts as held up by an adaptive limit.
_NOTICEABLE_SECONDS = 0.001

OUTCOMES: dict[type[BaseException], str] = {
    UpstreamRateLimitError: "rate_limited",
    UpstreamTimeoutError: "timeout",
    UpstreamKeyError: "credentials",
    UpstreamRefusedError: "refused",
    UpstreamTooLargeError: "too_large",
    UpstreamError: "failed",
    TimeoutError: "expired",
    Exception: "error",
}
"""The outcome of an attempt that an error ended, by the nearest class of the error."""


class Measures:
    """Counts attempts and jobs under the models of the catalogue in use."""

    def __init__(self, file: CatalogueFile) -> None:
        """Name the models of `file.current`, as it is at each attempt."""
        self._file = file

    def claimed(self, job: ClaimedJob) -> None:
        """Note how long a job has waited for its claim."""
        _waits(job.tier).observe(max(0.0, job.seconds_waited))

    def answered(self, attempt: Attempt) -> None:
        """Count an attempt whose provider answered."""
        self._count(attempt, "completed")

    def stopped(self, attempt: Attempt) -> None:
        """Count an attempt that was stopped from outside, by its reason."""
        assert attempt.stop is not None
        self._count(attempt, attempt.stop.name.lower())
        if attempt.stop is Stop.YIELDED and attempt.provider is not None:
            _throttled(attempt.provider, "busy").inc()

    def failed(self, attempt: Attempt, error: Exception) -> None:
        """Count an attempt that an error ended, before or after it called its provider."""
        if attempt.called_at is not None:
            self._count(attempt, next(OUTCOMES[kind] for kind in type(error).__mro__ if kind in OUTCOMES))
        elif attempt.provider is not None and isinstance(error, UpstreamBusyError | UpstreamUnavailableError):
            reason = "busy" if isinstance(error, UpstreamBusyError) else "circuit"
            _throttled(attempt.provider, reason).inc()

    def ended(self, job: ClaimedJob, state: State, spent: SpentUsage | None) -> None:
        """Count a job that its worker ended, and what its last attempt spent."""
        _ended(state, job.tier, self._model(job)).inc()
        rates.count(state)
        self.spent(job, spent)

    def spent(self, job: ClaimedJob, spent: SpentUsage | None) -> None:
        """Count the tokens and the cost of an attempt, as its row of usage has them."""
        if spent is not None:
            count_spent(self._model(job), spent)

    def _count(self, attempt: Attempt, outcome: str) -> None:
        route, called_at = attempt.route, attempt.called_at
        if route is None or called_at is None:
            return
        provider, limits = route.provider_name, route.provider
        called = known_route(route.name, self._file.current.written_routes)
        _attempts(provider, self._model(attempt.job), outcome, called).inc()
        _calls(provider).observe(attempt.call_seconds)
        limited = limits.max_concurrency or limits.requests_per_minute or limits.tokens_per_minute
        if limited or attempt.throttled_seconds > _NOTICEABLE_SECONDS:
            _throttle_waits(provider).observe(attempt.throttled_seconds)
        if attempt.deltas.first_at is not None:
            _first_deltas(provider).observe(attempt.deltas.first_at - called_at)
        ours = time.monotonic() - attempt.began - attempt.call_seconds - attempt.throttled_seconds
        _overheads(attempt.job.format).observe(max(0.0, ours))

    def _model(self, job: ClaimedJob) -> str:
        return known_model(job.model, self._file.current.models)
