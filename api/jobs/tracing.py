"""The span of a submission: of a job, or of a batch."""

from __future__ import annotations

from headrace.telemetry.context import note
from headrace.telemetry.traceparent import trace_id
from headrace.telemetry.tracing import Attributes, Span, start_span


def trace_submission(
    subject_id: str, tier: str, *, account_id: str, parent: str | None, details: Attributes
) -> Span | None:
    """Start the span of a submission, within the client's trace if it has sent one; None if it is not traced.

    The job or the batch keeps the context of the span, or else that of its client, `parent`.
    """
    span = start_span(f"submit {tier}", "PRODUCER", parent=parent)
    if span is not None:
        note(trace=trace_id(span.context))
        described: Attributes = {
            "messaging.system": "headrace",
            "messaging.operation.name": "submit",
            "messaging.operation.type": "send",
            "messaging.destination.name": tier,
            "messaging.message.id": subject_id,
            "headrace.account.id": account_id,
        }
        span.set(described | details)
    return span
