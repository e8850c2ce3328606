"""The spans of an attempt: its claim, and within it the call to the provider and the write of its end."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Self

from headrace.catalogue.models import Route
from headrace.errors import HeadraceError
from headrace.jobs.records import ClaimedJob
from headrace.telemetry.genai import OPERATION, describe_answer, describe_input, describe_output, describe_request
from headrace.telemetry.tracing import Span, content_wanted, latest_names, start_span
from worker.exchange import Exchange

# Seconds after its submission for which a job is claimed within the trace of the submission. A later claim begins a
# trace of its own with a link to it, as collectors that sample whole traces do not wait for long.
_SAME_TRACE_SECONDS = 300


class AttemptSpans:
    """The spans of one attempt at a job whose submission is traced."""

    def __init__(self, claim: Span, job: ClaimedJob) -> None:
        self._claim = claim
        self._tier = job.tier
        self._call: Span | None = None
        self._end: Span | None = None

    @classmethod
    def of(cls, job: ClaimedJob) -> Self | None:
        """Start the span of a claim; None if the job is not traced here."""
        if (context := job.trace_context) is None:
            return None
        # A batch has many lines, and their spans would be too many for one trace.
        apart = job.batch_id is not None or time.time() - job.created > _SAME_TRACE_SECONDS
        claim = start_span(
            f"claim {job.tier}", "CONSUMER", parent=None if apart else context, link=context if apart else None
        )
        if claim is None:
            return None
        claim.set(
            {
                "messaging.system": "headrace",
                "messaging.operation.name": "claim",
                "messaging.operation.type": "process",
                "messaging.destination.name": job.tier,
                "messaging.message.id": job.id,
                "gen_ai.request.model": job.model,
                "headrace.account.id": job.account_id,
                "headrace.batch.id": job.batch_id,
                "headrace.format": job.format,
                "headrace.attempt": job.attempt,
                "headrace.queue.wait_seconds": max(0.0, job.seconds_waited),
            }
        )
        return cls(claim, job)

    def call(self, route: Route, request: Mapping[str, Any], exchange: Exchange) -> None:
        """Start the span of the call, whose context the provider gets. `request` is the chat request."""
        self._call = span = self._claim.child(f"{OPERATION} {route.model}", "CLIENT")
        provider = route.provider
        span.set(
            describe_request(
                request,
                kind=provider.kind,
                base_url=provider.base_url,
                model=route.model,
                streamed=exchange.streamed,
                latest=latest_names(),
            )
        )
        span.set({"headrace.provider": route.provider_name})
        if content_wanted():
            span.set(describe_input(request))
        exchange.trace_context = span.context

    def called(self, exchange: Exchange, error: BaseException | None, *, seconds_to_first: float | None) -> None:
        """End the span of the call, which `error` broke off."""
        if (span := self._call) is None:
            return
        completion, usage = exchange.completion, exchange.usage
        span.set(
            describe_answer(
                model=exchange.model if exchange.started else None,
                finish_reasons=[str(choice.get("finish_reason")) for choice in completion.get("choices") or ()],
                usage=None if usage.estimated else usage,
                seconds_to_first=seconds_to_first,
                latest=latest_names(),
            )
        )
        if content_wanted():
            span.set(describe_output(completion))
        if isinstance(error, Exception):  # a call that is cancelled has not failed
            span.fail(type(error).__name__)
        span.end()

    def ending(self) -> None:
        """Start the span of the end, unless it has begun."""
        if self._end is None:
            self._end = self._claim.child(f"end {self._tier}", "INTERNAL")
            self._end.set(
                {
                    "messaging.system": "headrace",
                    "messaging.operation.name": "end",
                    "messaging.operation.type": "settle",
                    "messaging.destination.name": self._tier,
                }
            )

    def ended(self, outcome: str, error: HeadraceError | None) -> None:
        """Note how the attempt ended, once Postgres has its end."""
        self._claim.set({"headrace.outcome": outcome})
        if error is not None and outcome in {"failed", "expired"}:
            self._claim.fail(type(error).__name__)

    def close(self) -> None:
        """End the spans."""
        if self._end is not None:
            self._end.end()
        self._claim.end()
