"""What a process does for itself at its start, each tried in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_RAISE = """
import logging, resource
from headrace.dev.processes import raise_descriptor_limit
logging.basicConfig(level="WARNING", format="%(message)s")
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 256))
raise_descriptor_limit({wanted})
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


def _run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, check=True)


def test_the_limit_of_open_files_is_raised_as_far_as_it_may_be(tmp_path: Path) -> None:
    enough = _run("-c", _RAISE.format(wanted=128), cwd=tmp_path)
    assert (enough.stdout, enough.stderr) == ("128\n", "")
    less = _run("-c", _RAISE.format(wanted=1024), cwd=tmp_path)
    assert less.stdout == "256\n"
    assert "256" in less.stderr
    assert "1024" in less.stderr
    assert len(less.stderr.splitlines()) == 1


def test_files_of_the_working_directory_are_not_taken_for_modules(tmp_path: Path) -> None:
    for name in ("click", "worker", "api", "orjson"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the file of the working directory')")
    assert "headrace" in _run("-m", "headrace", "--version", cwd=tmp_path).stdout
