"""What becomes of a job whose attempt is over: it ends, is tried again, or is left to another worker."""

from __future__ import annotations

import logging
import time
from typing import Any

from headrace.errors import (
    AnswerInterruptedError,
    HeadraceError,
    InvalidRequestError,
    JobCancelledError,
    JobExpiredError,
    ModelNotFoundError,
    UpstreamBusyError,
    UpstreamError,
    UpstreamUnavailableError,
)
from headrace.jobs.state import State
from headrace.providers.client import without_secret
from worker.attempt import Attempt, Stop
from worker.circuits import Circuits
from worker.ending import Endings
from worker.retry import Retry, handover_delay, next_attempt
from worker.yielding import BACK_SECONDS

log = logging.getLogger(__name__)

# Attempts of a job after which a worker that does not know its model fails it, rather than leave it to another worker.
_MOST_ATTEMPTS_WITHOUT_MODEL = 20


class Outcomes:
    """Decides what an attempt's answer, failure or stop means for its job."""

    def __init__(self, endings: Endings, circuits: Circuits, *, attempts_per_route: int) -> None:
        """Try a route up to `attempts_per_route` times before the next one."""
        self._endings = endings
        self._circuits = circuits
        self._attempts_per_route = attempts_per_route

    async def answered(self, attempt: Attempt, response: dict[str, Any]) -> None:
        """Complete a job with its provider's answer."""
        await self._endings.finish(attempt, State.COMPLETED, response=response)

    async def failed(self, attempt: Attempt, error: Exception) -> None:
        """End an attempt that broke off with an error, and its job if no other attempt may succeed."""
        match error:
            case UpstreamUnavailableError() if self._is_served_elsewhere(attempt):
                await self._hand_over(attempt)
            case UpstreamBusyError() | UpstreamUnavailableError() if attempt.job.background:
                # No provider was called, so this counts as no attempt: the slot goes to a job that need not wait.
                job = attempt.job
                await self._endings.put_back(
                    attempt, Retry(job.route, job.retries, error.retry_after or 0), None, error
                )
            case UpstreamError():
                await self._retry_or_fail(attempt, without_secret(error, attempt.secret))
            case TimeoutError():
                await self._endings.finish(attempt, State.EXPIRED, error=JobExpiredError())
            case ModelNotFoundError():
                await self._without_model(attempt, error)
            case InvalidRequestError() if error.param is not None:
                # A provider's format cannot render what it named by its path in the chat request.
                param = attempt.translation.path(error.param)
                await self._endings.finish(attempt, State.FAILED, error=error.about(param))
            case HeadraceError():
                await self._endings.finish(attempt, State.FAILED, error=error)
            case _:
                log.error("an attempt failed with an unexpected error", exc_info=error)
                await self._endings.finish(attempt, State.FAILED, error=HeadraceError())

    async def stopped(self, attempt: Attempt) -> None:
        """End an attempt that was interrupted, by the reason in `attempt.stop`."""
        if attempt.stop is Stop.CANCELLED:
            await self._endings.finish(attempt, State.CANCELLED, error=JobCancelledError())
        elif attempt.stop is Stop.DRAINED and _is_read(attempt):
            await self._endings.finish(attempt, State.FAILED, error=AnswerInterruptedError())
        elif attempt.stop is Stop.DRAINED:
            job = attempt.job
            await self._endings.put_back(attempt, Retry(job.route, job.retries, 0), "returned")
        elif attempt.stop is Stop.YIELDED:
            job, route = attempt.job, attempt.route
            pause = 0 if route is None else self._circuits.pauses.seconds(route.name)
            await self._endings.put_back(attempt, Retry(job.route, job.retries, max(BACK_SECONDS, pause)), None)
        else:
            await self._endings.discard(attempt, attempt.spent())

    def next_attempt(self, attempt: Attempt, error: UpstreamError) -> Retry | None:
        """Return the attempt after one that failed with `error`; None if the job fails with it.

        A client that has begun to read a stream would get its text twice, so its job has no further attempt.
        """
        job = attempt.job
        if _is_read(attempt):
            return None
        return next_attempt(
            error,
            routes=[usable.route for usable in attempt.routes],
            route=attempt.index,
            retries=job.retries if attempt.index == job.route else 0,
            attempts_per_route=self._attempts_per_route,
            seconds_left=job.seconds_left - (time.monotonic() - attempt.began),
        )

    async def _retry_or_fail(self, attempt: Attempt, error: UpstreamError) -> None:
        again = self.next_attempt(attempt, error)
        if again is None:
            await self._endings.finish(attempt, State.FAILED, error=error)
        else:
            await self._endings.put_back(attempt, again, "failed", error)

    async def _without_model(self, attempt: Attempt, error: ModelNotFoundError) -> None:
        """Leave a job whose model this worker does not know to another worker: its configuration may have the model."""
        job = attempt.job
        if job.attempt < _MOST_ATTEMPTS_WITHOUT_MODEL and self._circuits.tier_served_elsewhere(job.tier):
            log.warning("this worker's configuration has no model %.100r: another worker may run the job", job.model)
            await self._hand_over(attempt)
            return
        message = f"{error} The job was accepted, but the worker's configuration does not have this model."
        await self._endings.finish(attempt, State.FAILED, error=ModelNotFoundError(message, param=error.param))

    async def _hand_over(self, attempt: Attempt) -> None:
        """Put a job back for another worker. No provider was called, so this counts as no attempt."""
        job = attempt.job
        await self._endings.put_back(attempt, Retry(job.route, job.retries, handover_delay(job.attempt)), None)

    def _is_served_elsewhere(self, attempt: Attempt) -> bool:
        """Return whether another worker may call the provider that this one does not: its path may be fine."""
        job, provider = attempt.job, attempt.provider
        return provider is not None and self._circuits.served_elsewhere(provider, job.tier, account=job.account_id)


def _is_read(attempt: Attempt) -> bool:
    """Return whether a client may have read a part of the answer, which another attempt would repeat."""
    return attempt.deltas.seq > 0 and attempt.job.streamed and not attempt.job.background
