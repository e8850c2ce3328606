"""The script of a how-to guide, as a reader copies it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.e2e.batches import jsonl, line
from tests.service import BOOTSTRAP_KEY, ROOT, Service
from tests.waiting import PATIENCE


def test_the_batch_script_runs(service: Service, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "how-to" / "move-from-openai-batches.md").read_text()
    [script] = re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S)
    (tmp_path / "questions.jsonl").write_bytes(jsonl([line("river", "fake-guide"), line("lake", "fake-guide")]))
    ran = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=os.environ | {"URL": f"{service.base_url}/v1", "KEY": BOOTSTRAP_KEY},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert re.findall(r'"custom_id":"(\w+)"', ran.stdout) == ["river", "lake"]
