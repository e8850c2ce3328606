"""The states of a batch, which are OpenAI's, and who moves it from each to the next. Pure: the writes are in `queries`.

              valid                 all ended                written
 validating ────────▶ in_progress ───────────▶ finalizing ──────────▶ completed, or expired
   │  │ invalid        │  expired: ended soon ──▲
   │  └──▶ failed      │
   └──────── cancel ───┴─▶ cancelling ─── all ended, written ──▶ cancelled

The API cancels; every other move is the scheduler's, in one statement that names the state it moves from. So several
schedulers do no harm, and one that dies in the middle of reading an input or writing an output begins anew.
"""

from __future__ import annotations

from enum import StrEnum


class BatchState(StrEnum):
    """Where a batch stands. The value is what `status` says in the API."""

    VALIDATING = "validating"
    """Its input is being read. None of its lines is a job yet."""
    IN_PROGRESS = "in_progress"
    """Its lines become jobs, a window of them at a time."""
    FINALIZING = "finalizing"
    """Every job has ended, or will not be: its output is being written."""
    CANCELLING = "cancelling"
    """No more lines become jobs; those that have are being stopped, and then its output is written."""
    COMPLETED = "completed"
    """Every line has ended, if not with an answer then with an error."""
    FAILED = "failed"
    """Its input was not valid. Nothing was run."""
    EXPIRED = "expired"
    """Its window passed before every line had ended."""
    CANCELLED = "cancelled"
    """Somebody cancelled it. What was done by then is in its output."""

    @property
    def is_final(self) -> bool:
        """Tell whether nobody moves a batch on from here."""
        return self in (BatchState.COMPLETED, BatchState.FAILED, BatchState.EXPIRED, BatchState.CANCELLED)
