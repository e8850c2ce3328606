"""Every part is restarted, one after another, under load of every kind: no job is lost, and no client is cut off."""

from __future__ import annotations

from pathlib import Path

from tests.faults.chaos.__main__ import run
from tests.faults.chaos.plan import Fault

SEED = 7
# Longer than any answer of a provider takes that sends one, on a busy machine too.
DRAIN_SECONDS = 45
PARTS = ("api", "api-2", "worker-1", "worker-2", "scheduler-1", "scheduler-2")


def test_a_rolling_restart_loses_nothing_and_cuts_no_client_off(tmp_path: Path) -> None:
    faults = [Fault(3, "roll", part, 0) for part in PARTS]
    outcome = run(SEED, 0.2, 12, tmp_path / "service", faults=faults, direct=True, drain_seconds=DRAIN_SECONDS)
    assert outcome.verdict.violations == [], outcome.text()
    assert outcome.faults == {f"roll {part}": 1 for part in PARTS}
    assert outcome.verdict.counts["jobs failed for their workers' sake"] == 0
    # A client that cannot connect asks the other API. An accepted request is answered, or refused with a retry.
    assert outcome.cut_off == []
    for counted in ("… completed", "answers that clients got", "events"):
        assert outcome.verdict.counts[counted] > 20, counted
