"""Each alert has a page that explains it, and tests of when it fires, which Prometheus's own tool runs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from tests.promql import DEPLOY, RULES

ROOT = DEPLOY.parent
PROMETHEUS = DEPLOY / "prometheus"
PROMTOOL = shutil.which("promtool", path=os.pathsep.join([os.environ.get("PATH", ""), str(ROOT / ".cache" / "bin")]))
NAMES = [rule["alert"] for rule in RULES]
PAGE = ROOT / "docs" / "how-to" / "alerts.md"


def promtool(*arguments: str) -> None:
    assert PROMTOOL is not None
    told = subprocess.run([PROMTOOL, *arguments], cwd=PROMETHEUS, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stdout + told.stderr


needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="there is no promtool: `make promtool`, or install the package prometheus"
)


@needs_promtool
def test_prometheus_reads_the_rules_and_the_example() -> None:
    promtool("check", "rules", "--lint=all", "--lint-fatal", "alerts.yml")
    promtool("check", "config", "--lint=all", "--lint-fatal", "prometheus.yml")


@needs_promtool
def test_alerts_fire_when_they_should() -> None:
    promtool("test", "rules", "alerts_test.yml", "alerts_day_test.yml")


def fired(test: dict[str, Any]) -> set[str]:
    """Return the alerts that a test sees firing."""
    shown = " ".join(sample["labels"] for one in test.get("promql_expr_test", ()) for sample in one["exp_samples"])
    told = {one["alertname"] for one in test.get("alert_rule_test", ()) if one["exp_alerts"]}
    return told | set(re.findall(r'ALERTS\{alertname="(\w+)"', shown))


def test_every_alert_is_seen_firing() -> None:
    files = [yaml.safe_load((PROMETHEUS / name).read_text()) for name in ("alerts_test.yml", "alerts_day_test.yml")]
    assert set[str]().union(*(fired(test) for file in files for test in file["tests"])) == set(NAMES)


def test_names_differ() -> None:
    assert len(set(NAMES)) == len(NAMES)


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_an_alert_says_what_it_is_and_where_to_read_on(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"critical", "warning"}
    notes = rule["annotations"]
    assert notes.keys() == {"summary", "description", "runbook_url"}
    assert notes["runbook_url"] == f"docs/how-to/alerts.md#{rule['alert'].lower()}"


def test_the_page_has_a_section_for_each_alert_in_their_order() -> None:
    sections = re.findall(r"^### `?(Headrace\w+)`?$", PAGE.read_text(), re.M)
    assert sections == NAMES


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_a_section_says_how_grave_an_alert_is(rule: dict[str, Any]) -> None:
    section = PAGE.read_text().partition(f"\n### {rule['alert']}\n")[2].partition("\n#")[0]
    wait = f"for {rule['for'].removesuffix('m')} min" if "for" in rule else "at once"
    assert section.strip().startswith(f"*{rule['labels']['severity']}, {wait}.*"), wait
