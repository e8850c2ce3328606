"""Another commit of this repository, checked out and built beside it, so that both can be measured in one run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BENCH_HOME = ROOT / ".bench"
"""Where the benchmarks install what they measure. Git ignores it, and `make clean` removes it."""

# What `make bench` sets for its own children: options for this repository's make, and ARGS among them.
_MAKES = ("MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "MAKEFILES", "ARGS", "VENV", "BIN")


@dataclass(frozen=True, slots=True)
class Checkout:
    """A commit's files, with a venv of its own locked dependencies in `.venv`."""

    root: Path
    name: str
    """The commit's id in short, and the name it was asked for by."""

    @property
    def python(self) -> str:
        """The venv's interpreter, which imports this checkout's `headrace`."""
        return str(self.root / ".venv" / "bin" / "python")


def current() -> Checkout:
    """Return the working tree, whose venv is the one that runs."""
    commit = _git("rev-parse", "--short=12", "HEAD")
    changed = " with changes" if _git("status", "--porcelain", "--untracked-files=no") else ""
    return Checkout(ROOT, f"{commit}{changed}")


def build(revision: str) -> Checkout:
    """Check a tag, branch or commit out into `.bench/commits`, and build it by its own `make install`.

    Both are kept by the commit's id, so that the next run begins at once.

    Raises:
        RuntimeError: The revision does not exist, or does not build.
    """
    commit = _git("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    root = BENCH_HOME / "commits" / commit[:12]
    if not root.exists():
        # The venv is made in the final place, as its scripts hold absolute paths, so only the clone is renamed.
        unfinished = root.with_suffix(".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        # A clone, not a worktree: removing it leaves nothing in this repository.
        _git("clone", "--quiet", "--shared", "--no-checkout", str(ROOT), str(unfinished))
        _git("-C", str(unfinished), "checkout", "--quiet", "--detach", commit)
        unfinished.rename(root)
    print(f"building {revision} ({commit[:12]})", file=sys.stderr, flush=True)
    env = {name: value for name, value in os.environ.items() if name not in _MAKES}
    done = subprocess.run(["make", "-C", str(root), "install"], env=env, stdout=sys.stderr, check=False)
    if done.returncode:
        raise RuntimeError(f"{revision} does not build: `make install` in {root} ended with code {done.returncode}")
    return Checkout(root, f"{commit[:12]} ({revision})" if not commit.startswith(revision) else commit[:12])


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise RuntimeError("Git is not installed, so no other commit can be checked out.") from None
    if done.returncode:
        raise RuntimeError(f"`git {' '.join(arguments)}` failed in {ROOT}: {done.stderr.strip() or 'no such revision'}")
    return done.stdout.strip()
