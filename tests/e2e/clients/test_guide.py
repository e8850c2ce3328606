"""The examples of the guide to agent frameworks and SDKs, as a reader copies them."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.e2e.test_demo_models import examples
from tests.service import BOOTSTRAP_KEY, ROOT, Service
from tests.waiting import PATIENCE


def test_the_examples_run(service: Service) -> None:
    page = (ROOT / "docs/how-to/agents-and-sdks.md").read_text()
    ran = subprocess.run(
        [sys.executable, "-c", "\n".join(examples(page, "python"))],
        env={**os.environ, "URL": f"{service.base_url}/v1", "KEY": BOOTSTRAP_KEY},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert len(ran.stdout.splitlines()) >= 3
