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


_SESSION = Path("/proc/self/autogroup")
_LOWER = f"""
import os
from pathlib import Path
from headrace.runtime.process import lower_priority
lower_priority(7)
session = Path({str(_SESSION)!r})
print(os.nice(0), session.read_text() if session.exists() else "")
"""
_LOWER_IN_A_CHILD = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {_LOWER!r}], check=True)"


def _session_after(program: str) -> int:
    """Run `program` as the leader of a session. Give the session's niceness after a process in it lowered its own."""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, start_new_session=True, capture_output=True, text=True, check=True)
    process, *session = done.stdout.split()
    assert process == "7"
    if not session:
        pytest.skip("this system does not share its cores among sessions")
    return int(session[-1])


def test_a_process_lowers_its_priority_and_that_of_a_session_that_it_leads() -> None:
    assert _session_after(_LOWER) == 7


def test_a_process_leaves_the_priority_of_a_session_that_another_leads() -> None:
    assert _session_after(_LOWER_IN_A_CHILD) == 0, "other programs of a terminal keep their priority"
