"""The picture of `headrace top` fits the terminal, whatever a status holds."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from headrace.cli.top_screen import render

NOW = 1_777_898_096.0
ACCOUNT = "acct_019aaf5ee3a04b3fb0a1c65d8c2a9be1"


def provider(name: str, **changes: Any) -> dict[str, Any]:
    """Return a provider without trouble; `changes` are fields of it."""
    return {
        "name": name,
        "circuit": "closed",
        "open_on": 0,
        "failing_on": 0,
        "open_accounts": 0,
        "paused_for": None,
        "running": 4,
        "limits": {"max_concurrency": 100, "requests_per_minute": 30_000, "tokens_per_minute": 2_000_000},
        "calls": 12_345,
        "errors": 0,
    } | changes


def status(many: int, **changes: Any) -> dict[str, Any]:
    """Return a status with so many of each thing; `changes` are fields of it."""
    counts = {"submitted": 600, "completed": 570, "failed": 2, "expired": 0, "cancelled": 0}
    return {
        "at": NOW,
        "version": "0.1.0",
        "stores": {"postgres": "ok", "redis": "ok"},
        "queues": [
            {"tier": tier, "queued": 1_000_000, "exact": False, "running": 3, "oldest_seconds": 4.2}
            for tier in ("priority", "default", "flex", "batch")
        ],
        "rates": {"seconds": 300.0, **counts, "input_tokens": 9000, "output_tokens": 900, "cost": 0.5},
        "workers": [
            {
                "host": f"worker-{n}",
                "pid": n,
                "tiers": ["default"],
                "slots": 512,
                "running": n,
                "draining": n == 1,
                "version": "0.1.0",
            }
            for n in range(many)
        ],
        "scheduler": {"leader": "host:7", "since": NOW},
        "providers": [provider(f"provider-{n}") for n in range(many)] + [provider("broken", circuit="open", open_on=2)],
        "batches": [
            {
                "id": f"batch_019aaf5ee3a04b3fb0a1c65d8c2a9b{n:02}",
                "status": "in_progress",
                "request_counts": {"total": 20_000, "completed": 1200, "failed": 3},
                "cost": "0.0162",
                "requests_per_second": 33.3,
                "seconds_left": 560.0,
            }
            for n in range(many)
        ],
        "slowest_jobs": [
            {
                "id": f"job_019aaf5ee3a04b3fb0a1c65d8c2a9b{n:02}",
                "account_id": ACCOUNT,
                "model": "a-model-with-a-long-name-\x1b[2J",
                "tier": "default",
                "attempts": 1,
                "started_at": NOW - 80,
            }
            for n in range(many)
        ],
    } | changes


def picture(told: dict[str, Any], width: int, height: int, note: str = "") -> list[str]:
    """Return the lines of a picture."""
    console = Console(width=width, height=height, file=io.StringIO(), highlight=False, record=True)
    console.print(render(told, width=width, height=height, note=note))
    return console.export_text().splitlines()


@pytest.mark.parametrize("many", [0, 1, 10])
@pytest.mark.parametrize(("width", "height"), [(80, 24), (100, 30), (160, 50), (220, 24)])
def test_it_fits_the_terminal(many: int, width: int, height: int) -> None:
    lines = picture(status(many), width, height)
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for shown in (
        "QUEUE",
        "PROVIDER",
        "WORKER",
        "JOB",
        "BATCH",
        "priority",
        "flex",
        "1,000,000+",
        "open on 2",
        "q quits",
    ):
        assert shown in text
    if many:
        assert "batch_019aaf5ee3a04b3fb0a1c65d8c2a9b00" in text
        assert "job_019aaf5ee3a04b3fb0a1c65d8c2a9b00" in text


def test_it_shows_what_is_unavailable_and_neutralizes_foreign_text() -> None:
    stores = {"postgres": "ok", "redis": "unavailable"}
    told = status(1, stores=stores, workers=None, scheduler=None, rates=None)
    told["providers"] = [provider("quiet", circuit=None, open_on=None, calls=None, errors=None, running=None)]
    text = "\n".join(picture(told, 80, 24, note="API unavailable since 12:00:00, retrying: refused"))
    assert "redis unavailable" in text
    assert "rates unavailable" in text
    assert "API unavailable since 12:00:00" in text
    assert "\x1b" not in text
