"""A short run of `make chaos`: each kind of fault once, in the order that the seed says."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from tests.faults.chaos.__main__ import run
from tests.faults.chaos.plan import APIS, PROVIDER_LINK, SCHEDULERS, STORE_LINKS, WORKERS, plan

SEED = 22
MINUTES = 0.8


def test_the_same_seed_is_the_same_faults() -> None:
    assert plan(SEED, 5) == plan(SEED, 5) != plan(SEED + 1, 5)


@pytest.mark.parametrize("seed", range(20))
def test_a_short_run_has_every_kind_of_fault(seed: int) -> None:
    faults = plan(seed, MINUTES)
    assert all(earlier.at <= later.at for earlier, later in itertools.pairwise(faults))
    assert faults[-1].at < MINUTES * 60
    targets = {kind: {fault.target for fault in faults if fault.kind == kind} for kind in {f.kind for f in faults}}
    for parts in (WORKERS, APIS, SCHEDULERS):
        assert targets["kill"] & set(parts)
    for kind in ("stall", "cut", "slow"):
        assert targets[kind] & set(STORE_LINKS)
    assert {"kill-redis", "empty-redis"} <= targets.keys()
    assert {"kill-postgres", "restart-postgres"} & targets.keys()
    assert PROVIDER_LINK in {fault.target for fault in faults}


def test_only_a_long_run_has_what_takes_long() -> None:
    assert max(fault.seconds for fault in plan(SEED, MINUTES)) <= 10
    long = plan(SEED, 10)
    assert {fault.kind for fault in long} >= {"away-postgres", "away-redis", "freeze", "terminate", "roll", "dead"}
    assert max(fault.seconds for fault in long if fault.kind == "stall") > 20


def test_nothing_is_lost_twice_or_anothers_whatever_breaks(tmp_path: Path) -> None:
    outcome = run(SEED, MINUTES, 16, tmp_path / "service")
    assert outcome.verdict.violations == [], outcome.text()
    assert sum(outcome.faults.values()) >= len(plan(SEED, MINUTES))
    for counted in (
        *("… completed", "answers that clients got", "events", "… asked for", "calls to providers"),
        *("… responses: completed", "… background readers: events", "… foreground streams: events"),
        *("responses: replays of all events", "responses: calls whose context was compared"),
    ):
        assert outcome.verdict.counts[counted] > 20, counted
