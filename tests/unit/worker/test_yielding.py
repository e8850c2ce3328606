"""Which of the requests that wait for their providers give up their slots."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

from worker.yielding import find_waiting


def attempt(number: int, *, account: str = "a", provider: str = "p", **changes: Any) -> Any:
    """Return an attempt that has waited for its provider for long."""
    job = SimpleNamespace(id=f"job_{number}", account_id=account, background=changes.pop("background", False))
    began = time.monotonic() - 3600
    return SimpleNamespace(**{"job": job, "provider": provider, "waits": True, "began": began, **changes})


def test_the_newest_request_of_the_account_with_most_comes_first_and_the_oldest_of_each_provider_stays() -> None:
    attempts = [
        attempt(1),
        attempt(4, account="b"),
        attempt(2),
        attempt(3),
        attempt(0, account="b", provider="q"),
    ]
    found = find_waiting(attempts, {"a": (9, 3), "b": (9, 2)})
    assert [found.job.id for found in found] == ["job_3", "job_2", "job_4"]


def test_what_calls_its_provider_or_came_just_now_and_what_runs_in_the_background_keeps_its_slot() -> None:
    attempts = [
        attempt(1),
        attempt(2, waits=False),
        attempt(3, began=time.monotonic()),
        attempt(4, background=True),
    ]
    assert find_waiting(attempts, {}) == []
