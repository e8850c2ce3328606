"""A temporary directory that is removed however its process ends."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_REAP = 'read -r line; for try in $(seq 100); do rm -rf "$0" 2>/dev/null && exit; sleep 0.1; done'


@contextmanager
def scratch_dir() -> Iterator[Path]:
    """Make a directory that the stores' user may enter. It is removed afterwards, even if this process is killed."""
    path = Path(tempfile.mkdtemp(prefix="headrace-"))
    path.chmod(0o711)
    # The shell waits for the end of a pipe whose only writer is this process, so it notices every kind of death.
    with subprocess.Popen(["sh", "-c", _REAP, path], stdin=subprocess.PIPE, start_new_session=True) as reaper:
        try:
            yield path
        finally:
            assert reaper.stdin is not None
            reaper.stdin.close()
            reaper.wait()
