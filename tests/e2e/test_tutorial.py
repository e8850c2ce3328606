"""The tutorial, step by step, on a separate `headrace dev`: its output matches the page."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.dev.scratch import scratch_dir
from tests.e2e.test_dev import Dev
from tests.waiting import PATIENCE

TUTORIAL = Path(__file__).resolve().parents[2] / "docs" / "tutorial.md"
# A block of commands, and what it prints where the page shows it. Blocks with a title are of the first terminal.
STEP = re.compile(r"^```sh\n(.*?)^```$(?:\s*^```text\n(.*?)^```$)?", re.M | re.S)
# What stands for the address and the key that `headrace dev` prints.
ADDRESS, KEY = "http://127.0.0.1:8700", "hr_..."


@pytest.fixture
def dev() -> Iterator[Dev]:
    with scratch_dir() as directory:
        dev = Dev(directory / "home")
        try:
            dev.wait_until_ready()
            yield dev
            dev.end()
        finally:
            dev.process.kill()
            dev.process.wait()


def tidy(text: str) -> str:
    """Return a text with one space where a table has several, and none at the ends of lines."""
    return "\n".join(re.sub(" +", " ", line).strip() for line in text.strip().split("\n"))


def as_pattern(shown: str) -> str:
    """Return a pattern for what a page shows: `…` stands for any text."""
    return ".*?".join(re.escape(part) for part in tidy(shown).split("…"))


def test_every_step_prints_what_the_page_shows(dev: Dev, tmp_path: Path) -> None:
    steps: list[tuple[str, str]] = STEP.findall(TUTORIAL.read_text())
    assert dev.key is not None
    (tmp_path / ".venv").symlink_to(sys.prefix)
    script = "set -euo pipefail\n" + "printf '\\0'\n".join(commands for commands, _ in steps)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
    ran = subprocess.run(
        ["bash", "-c", script.replace(ADDRESS, f"http://127.0.0.1:{dev.port}").replace(KEY, dev.key)],
        cwd=tmp_path,
        env=environment | {"HEADRACE_DATA_DIR": str(dev.home), "DATABASE_URL": "", "REDIS_URL": ""},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    for (commands, shown), printed in zip(steps, ran.stdout.split("\0"), strict=True):
        assert re.fullmatch(as_pattern(shown), tidy(printed), re.S), f"{commands}printed\n{printed}\nnot\n{shown}"
