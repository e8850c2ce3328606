"""The states of a batch, which are OpenAI's, and who moves it from each to the next. The statements are in `queries`.

              valid                 all ended                written
 validating ────────▶ in_progress ───────────▶ finalizing ──────────▶ completed, or expired
   │  │ invalid        │  expired: ended soon ──▲
   │  └──▶ failed      │
   └──────── cancel ───┴─▶ cancelling ─── all ended, written ──▶ cancelled

The API cancels. The scheduler makes every other move, in one statement that names the state it moves from. So several
schedulers do no harm, and after a crash in the middle of an input or an output the next scheduler begins it anew.
"""

from __future__ import annotations

from enum import StrEnum


class BatchState(StrEnum):
    """Where a batch stands. The value is what `status` says in the API."""

    VALIDATING = "validating"
    """The scheduler reads its input. No line is a job yet."""
    IN_PROGRESS = "in_progress"
    """Its lines become jobs, a window of them at a time."""
    FINALIZING = "finalizing"
    """Every job has ended, or the batch has expired: the scheduler writes its output."""
    CANCELLING = "cancelling"
    """No more lines become jobs. Its jobs are cancelled, and then the scheduler writes its output."""
    COMPLETED = "completed"
    """Every line has ended, with an answer or an error."""
    FAILED = "failed"
    """Its input was invalid. No line ran."""
    EXPIRED = "expired"
    """Its window passed before every line had ended."""
    CANCELLED = "cancelled"
    """A client cancelled it. Lines that had ended by then are in its output."""

    @property
    def is_final(self) -> bool:
        """Whether a batch stays in this state."""
        return self in (BatchState.COMPLETED, BatchState.FAILED, BatchState.EXPIRED, BatchState.CANCELLED)
