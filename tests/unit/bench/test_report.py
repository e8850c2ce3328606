from dataclasses import replace

import pytest

from bench.load import Outcome
from bench.report import Report
from bench.scenarios import Measurement
from bench.systems import Cpu

ANSWERS = 100
OUTCOME = Outcome(
    asked=ANSWERS,
    correct=ANSWERS,
    seconds=2.0,
    latency_p50=1.0,
    latency_p95=1.5,
    latency_p99=2.0,
    first_p50=0.0,
    first_p99=0.0,
    chunks=0,
    events=0,
)


def job(system: str, own_ms: float, stores_ms: float = 0.0, latency: float = 1.0) -> Measurement:
    """Return a measurement of one request at a time by the CPU milliseconds of an answer."""
    cpu = Cpu({"proxy": own_ms * ANSWERS / 1000}, {"postgres": stores_ms * ANSWERS / 1000})
    return Measurement("plain-1", system, 0, 3.0, cpu, replace(OUTCOME, latency_p50=latency))


def line(measurements: list[Measurement], start: str) -> str:
    """Return the row of the table that starts so, without the scenario's title."""
    versions = {m.system: m.system for m in measurements}
    page = Report(versions, measurements, None, None, [], 1, False).markdown()
    [found] = [row for row in page.splitlines() if row.split("|")[2:3] == [f" {start} "]]
    return found.split("|", 2)[2]


@pytest.mark.parametrize(("ours", "goal"), [(2.4, "0.24 | ≤ 0.25 ✓"), (2.6, "0.26 | ≤ 0.25 ✗")])
def test_a_goal_is_a_share_of_litellms_figure(ours: float, goal: str) -> None:
    row = line([job("litellm", 10.0), job("headrace", ours)], "CPU a job, ms")
    assert row == f" CPU a job, ms |  | 10.00 | {ours:.2f} | {goal} |"


def test_the_stores_count_in_their_own_goal() -> None:
    row = line([job("litellm", 10.0), job("headrace", 2.0, 2.5)], "CPU a job, stores included, ms")
    assert row.endswith("| 4.50 | 0.45 | ≤ 0.4 ✗ |")


def test_added_latency_is_compared_without_the_direct_calls() -> None:
    found = [job("direct", 0.0, latency=1.0), job("litellm", 10.0, latency=11.0), job("headrace", 2.0, latency=5.0)]
    assert line(found, "latency p50, added, ms").endswith("| 10.00 | 4.00 | 0.40 | ≤ 0.5 ✓ |")


def test_a_goal_without_litellms_figure_has_no_mark() -> None:
    assert line([job("headrace", 2.0)], "CPU a job, ms").endswith("| 2.00 |  | ≤ 0.25 |")


def test_small_ratios_keep_their_digits() -> None:
    assert "| 0.036 |" in line([job("litellm", 10.0), job("headrace", 0.36)], "CPU a job, ms")


@pytest.mark.parametrize(("spent", "mark"), [(4.9, "✓"), (5.1, "✗")])
def test_idling_has_a_limit_in_its_unit(spent: float, mark: str) -> None:
    cpu = Cpu({"api": spent / 1000}, {"postgres": 1.0})
    row = line([Measurement("idle", "headrace", 0, 1.0, cpu, None)], "CPU a second, ms")
    assert row.endswith(f"| {spent:.1f} |  | ≤ 5 ms {mark} |")


def test_a_clients_format_is_compared_with_chat_in_the_same_round() -> None:
    """The second round runs while the machine is busy, which concerns both formats alike."""
    costs = [("plain-1", 0, 2.0), ("plain-1-responses", 0, 2.2), ("plain-1-responses", 1, 6.6), ("plain-1", 1, 6.0)]
    found = [replace(job("headrace", own), scenario=scenario, round=number) for scenario, number, own in costs]
    page = Report({"headrace": ""}, found[1:], None, None, [], 2, False).markdown()
    assert "| CPU a job, ms | 6.00 | 4.40 | 1.10 | ≤ 1.15 |" in page
