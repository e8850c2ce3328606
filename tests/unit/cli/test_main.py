from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_files_of_the_working_directory_are_not_taken_for_modules(tmp_path: Path) -> None:
    for name in ("click", "worker", "api", "orjson"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the file of the working directory')")
    command = [sys.executable, "-m", "headrace", "--version"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "headrace" in ended.stdout
