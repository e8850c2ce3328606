import sys
import time
from pathlib import Path

import pytest

from bench.processes import Tree


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's clocks of other processes are Linux's")
def test_cpu_is_counted_in_less_than_the_kernels_steps(tmp_path: Path) -> None:
    # The program is idle after its start, which takes no whole number of steps.
    command = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]
    log = tmp_path / "log"
    with Tree(command, log=log, env={}, cwd=tmp_path) as tree:
        deadline = time.monotonic() + 60
        while "up" not in log.read_text() and time.monotonic() < deadline:
            time.sleep(0.01)
        spent = tree.cpu(lambda _: "all")["all"]
    assert spent > 0
    assert abs(spent * 100 - round(spent * 100)) > 1e-6
