import re
from dataclasses import replace
from pathlib import Path

import pytest

from bench.batches import Run
from bench.scenarios import DURABLE, Measurement, Scenario
from bench.shapes import ADDED, SATURATION, Shapes
from bench.shapes_page import PAGE, compared, replaced, spread, tables
from bench.systems import Cpu
from tests.unit.bench.test_report import ANSWERS, OUTCOME


def measured(scenario: Scenario, system: str, number: int, latency: float, own: float, stores: float) -> Measurement:
    outcome = replace(OUTCOME, latency_p50=latency, latency_p95=2 * latency, latency_p99=3 * latency)
    return Measurement(scenario.name, system, number, 3.0, Cpu({"proxy": own}, {"postgres": stores}), outcome)


def shapes(*systems: str) -> Shapes:
    """Return two rounds in which the direct call takes 20 ms, Headrace 24 and the others 30; Headrace has stores."""
    found = Shapes(rounds=2, quick=False, load=0.25, versions={name: name.title() for name in systems})
    for system in systems:
        latency = {"direct": 20.0, "headrace": 24.0}.get(system, 30.0)
        own, stores = (0.25, 0.25) if system == "headrace" else (1.0, 0.0)
        for number in range(2):
            for scenario in (*ADDED, SATURATION, *((DURABLE,) if system == "headrace" else ())):
                found.measurements.append(measured(scenario, system, number, latency, own, stores))
    found.batches = [Run(1000, 1000, 0.1, 0.1, total, Cpu({"worker": 0.5}, {"postgres": 0.5}), {}) for total in (1, 2)]
    return found


def row(page: str, start: str) -> str:
    [found] = re.findall(rf"^\| {re.escape(start)} \|.*$", page, re.MULTILINE)
    return str(found)


def test_added_latency_is_without_the_direct_calls() -> None:
    page = tables(shapes("direct", "litellm", "portkey", "headrace"))
    assert row(page, "16 | p50") == (
        "| 16 | p50 | 20.0 (20.0 … 20.0) | 10.0 (10.0 … 10.0) | 10.0 (10.0 … 10.0) | 4.0 (4.0 … 4.0) "
        "| 0.40 (0.40 … 0.40) | 0.40 (0.40 … 0.40) |"
    )


def test_a_core_is_a_second_of_cpu_of_all_processes() -> None:
    page = tables(shapes("direct", "litellm", "portkey", "headrace"))
    assert row(page, "requests a second and core").startswith("| requests a second and core | 100 (100 … 100) | 100 ")
    assert "| 400 (400 … 400) | 4.00 (4.00 … 4.00) |" in row(page, "requests a second and core")
    assert "| 200 (200 … 200) | 2.00 (2.00 … 2.00) |" in row(page, "… stores included")


def test_durable_work_is_headraces_alone() -> None:
    page = tables(shapes("direct", "litellm", "portkey", "headrace"))
    jobs = ANSWERS / OUTCOME.seconds
    assert row(page, "durable jobs, submitted until ended") == (
        f"| durable jobs, submitted until ended | {jobs:.0f} ({jobs:.0f} … {jobs:.0f}) | 400 (400 … 400) "
        "| 200 (200 … 200) |"
    )
    assert row(page, "lines of a batch, upload to output") == (
        "| lines of a batch, upload to output | 750 (500 … 1,000) | 2,000 (2,000 … 2,000) | 1,000 (1,000 … 1,000) |"
    )


def test_a_system_that_is_missing_has_no_column() -> None:
    found = shapes("direct", "litellm", "headrace")
    found.missing["portkey"] = "This machine has no npm"
    page = tables(found)
    assert "* Not measured: portkey: This machine has no npm" in page
    assert "Headrace / LiteLLM" in page
    assert "Headrace / Portkey" not in page


def test_a_wrong_answer_is_a_failure() -> None:
    found = shapes("headrace")
    [one, *_] = found.of(SATURATION, "headrace").values()
    assert one.outcome is not None
    found.add(replace(one, outcome=replace(one.outcome, correct=99, errors=["status 500"])), "round 1")
    assert found.failures == ["round 1: 99 of 100 right: status 500"]
    assert "* round 1: 99 of 100 right: status 500" in tables(found)


def test_figures_have_the_range_of_their_rounds() -> None:
    assert spread([1200.0, 900.0, 1000.0], 0) == "1,000 (900 … 1,200)"
    assert spread([1200.0], 0) == "1,200"
    assert spread([], 0) == ""


def test_only_rounds_that_both_have_are_compared() -> None:
    assert compared({0: 1.0, 1: 2.0, 2: 9.0}, {0: 2.0, 1: 4.0}) == "2.00 (2.00 … 2.00)"
    assert compared({0: 2.0}, {0: 1.0}) == "0.50 (one round)"
    assert compared({0: 2.0}, {1: 1.0}) == ""


def test_the_tables_have_a_place_in_the_docs() -> None:
    page = PAGE.read_text()
    once = replaced(page, "first\n")
    assert replaced(once, "second\n") == once.replace("\nfirst\n", "\nsecond\n")
    assert once.startswith(page.partition("<!--")[0])


def test_a_page_without_a_place_is_refused() -> None:
    with pytest.raises(ValueError, match="no '<!--"):
        replaced("# Performance\n", "")


def test_without_npm_portkey_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from bench.portkey import Portkey
    from bench.systems import Upstream

    with Upstream() as upstream:
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(RuntimeError, match="has no node"):
            Portkey(upstream)
