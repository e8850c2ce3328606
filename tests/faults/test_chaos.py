"""A short run of `make chaos`, of a seed that does most of what there is to do."""

from __future__ import annotations

from pathlib import Path

from tests.faults.chaos.__main__ import run
from tests.faults.chaos.plan import plan

SEED = 20
MINUTES = 0.7


def test_the_same_seed_is_the_same_faults() -> None:
    assert plan(SEED, 5) == plan(SEED, 5) != plan(SEED + 1, 5)


def test_nothing_is_lost_twice_or_anothers_whatever_breaks(tmp_path: Path) -> None:
    outcome = run(SEED, MINUTES, 16, tmp_path / "service")
    assert outcome.verdict.violations == [], outcome.text()
    assert sum(outcome.faults.values()) >= 5
    for counted in ("jobs completed", "answers that clients got", "events"):
        assert outcome.verdict.counts[counted] > 50, counted
