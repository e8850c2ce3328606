"""Which requests give up their slots while they wait for their providers.

A request whose client waits keeps its slot until its provider takes the call, so that the call begins at once. While
slots are free this delays no other job. Once requests for other models wait for slots, they get those of such requests,
which go back to the queue. The oldest request for each provider stays: the provider's next free place finds it here.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

from worker.attempt import Attempt

# Seconds for which a request keeps its slot in any case: most wait for less.
_PATIENCE_SECONDS = 5.0
BACK_SECONDS = 2.0
"""Seconds after which a request that gave up its slot may have one again, unless a pause of its route lasts longer."""


def find_waiting(attempts: Iterable[Attempt], running: Mapping[str, tuple[int, int]]) -> list[Attempt]:
    """Return the attempts at requests that may give up their slots, in the order in which they do.

    The account comes first that has most requests in slots here, by the second number of `running`; of an account, the
    newest request: what has waited longest is the last to lose its place.
    """
    since = time.monotonic() - _PATIENCE_SECONDS
    waiting = [each for each in attempts if each.waits and each.began <= since and not each.job.background]
    waiting.sort(key=lambda attempt: attempt.job.id, reverse=True)
    oldest = {attempt.provider: attempt for attempt in waiting}
    return sorted(
        (attempt for attempt in waiting if attempt is not oldest[attempt.provider]),
        key=lambda attempt: -running.get(attempt.job.account_id, (0, 0))[1],
    )
