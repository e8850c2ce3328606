"""The line of an attempt in the log: how it ended, where, and what it took. It has no text of client or provider."""

from __future__ import annotations

import logging
import time
from typing import Any

from headrace.errors import HeadraceError
from headrace.usage.spent import SpentUsage
from worker.attempt import Attempt

log = logging.getLogger(__name__)

DEFERRED = "deferred"
"""The outcome of an attempt that called no provider, and left its job to another worker or to a later time."""


def log_attempt(
    attempt: Attempt, outcome: str, *, spent: SpentUsage | None = None, error: HeadraceError | None = None
) -> None:
    """Log how an attempt ended, once Postgres has its end."""
    level = logging.DEBUG if outcome == DEFERRED else logging.INFO
    if not log.isEnabledFor(level):
        return
    now, route = time.monotonic(), attempt.route
    where = "" if route is None else " at %(provider)s/%(model)s"
    text = f"attempt %(attempt)d{where} %(outcome)s in %(seconds).3f s"
    fields: dict[str, Any] = {
        "attempt": attempt.job.attempt,
        "provider": None if route is None else route.provider_name,
        "model": None if route is None else route.model,
        "outcome": outcome,
        "seconds": now - attempt.began,
    }
    since_first = attempt.deltas.seconds_since_first()
    if since_first is not None:
        fields["first_delta_seconds"] = now - since_first - attempt.began
        text += ", first delta after %(first_delta_seconds).3f s"
    if spent is not None:
        fields["prompt_tokens"] = spent.tokens.prompt_tokens
        fields["completion_tokens"] = spent.tokens.completion_tokens
        text += ", %(prompt_tokens)d + %(completion_tokens)d tokens"
    if error is not None:
        fields["error"] = error.summary()
        text += ": %(error)s"
    log.log(level, text, fields)
