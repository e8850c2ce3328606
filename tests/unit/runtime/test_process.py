"""A process raises and reports its own limits, and lowers its priority. Each test uses a separate process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_RAISE = """
import logging, resource
from headrace.runtime.process import raise_descriptor_limit
logging.basicConfig(level="WARNING", format="%(message)s")
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 256))
raise_descriptor_limit({wanted})
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


def _raise(wanted: int, *, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _RAISE.format(wanted=wanted)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=True)


def test_the_limit_of_open_files_is_raised_as_far_as_it_may_be(tmp_path: Path) -> None:
    enough = _raise(128, cwd=tmp_path)
    assert (enough.stdout, enough.stderr) == ("128\n", "")
    less = _raise(1024, cwd=tmp_path)
    assert less.stdout == "256\n"
    assert "256" in less.stderr
    assert "1024" in less.stderr
    assert len(less.stderr.splitlines()) == 1


_LOWER = """
import os
from pathlib import Path
from headrace.runtime.process import lower_priority
lower_priority(7)
print(os.nice(0), Path("/proc/self/autogroup").read_text().split()[-1])
"""


def _lower(*, leads: bool) -> list[str]:
    command = [sys.executable, "-c", _LOWER]
    done = subprocess.run(command, start_new_session=leads, capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.skipif(not Path("/proc/self/autogroup").exists(), reason="this system has no autogroups")
def test_a_process_lowers_its_priority_and_that_of_a_session_that_it_leads() -> None:
    session = Path("/proc/self/autogroup").read_text().split()[-1]
    assert _lower(leads=False) == ["7", session], "other programs of a terminal keep their priority"
    assert _lower(leads=True) == ["7", "7"]
