"""The scripts of how-to guides, as a reader copies them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.e2e.batches import jsonl, line
from tests.fakes.provider import Provider, answer
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


def test_the_conversation_scripts_run(service: Service, provider: Provider, model: str) -> None:
    page = (ROOT / "docs" / "how-to" / "keep-a-conversation.md").read_text()
    scripts = re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S)
    call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "level", "arguments": "{}"}}
    provider.script(
        model, answer("", message={"tool_calls": [call]}, finish="tool_calls"), answer("Yes, with one stone.")
    )
    ran = subprocess.run(
        [sys.executable, "-c", "\n".join(scripts)],
        env=os.environ | {"URL": f"{service.base_url}/v1", "KEY": BOOTSTRAP_KEY, "MODEL": model},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    said, *items = ran.stdout.splitlines()
    assert said == "Yes, with one stone."
    kinds = [item.split()[0] for item in items]
    assert kinds == ["message", "message", "function_call", "function_call_output", "message"]
