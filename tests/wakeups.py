"""What a queue calls for jobs whose wake-ups it cannot send, in tests whose jobs have no rows."""

from __future__ import annotations

from collections.abc import Sequence


async def leave_unsent(job_ids: Sequence[str]) -> None:
    """Mark no row: no scheduler looks for these jobs."""
