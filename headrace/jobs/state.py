"""The states of a job and who moves it from each to the next. The statements stand in `sql`.

            claim                  finish
 queued ───────────▶ running ───────────────▶ completed
   ▲  │                 │ ├─ provider refused ─▶ failed
   │  └─ cancel ─┐      │ ├─ cancel ───────────▶ cancelled
   │             ▼      │ └─ deadline ─────────▶ expired
   │         cancelled  │
   └──── lease lost, retryable error ────┘   (attempt + 1 at the next claim)

A job whose deadline passes while it is queued expires there.
"""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """Where a job stands. The value is what `status` says in the API."""

    QUEUED = "queued"
    """Accepted and waiting. A worker claims it; a cancel or the scheduler (deadline) may end it."""
    RUNNING = "running"
    """Under a worker's lease. That worker ends it or puts it back; once the lease has expired, the scheduler does."""
    COMPLETED = "completed"
    """Ended with a result. This state is final."""
    FAILED = "failed"
    """Ended with an error. This state is final."""
    CANCELLED = "cancelled"
    """Ended because a client or an operator cancelled it. This state is final."""
    EXPIRED = "expired"
    """Ended because its deadline passed. This state is final."""

    @property
    def is_final(self) -> bool:
        """Whether a job stays in this state."""
        return self not in (State.QUEUED, State.RUNNING)


TRANSITIONS: dict[State, frozenset[State]] = {
    State.QUEUED: frozenset({State.RUNNING, State.CANCELLED, State.EXPIRED}),
    State.RUNNING: frozenset({State.QUEUED, State.COMPLETED, State.FAILED, State.CANCELLED, State.EXPIRED}),
    State.COMPLETED: frozenset(),
    State.FAILED: frozenset(),
    State.CANCELLED: frozenset(),
    State.EXPIRED: frozenset(),
}
