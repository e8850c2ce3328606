"""The compliance tester `llm-comply`: it checks answers and events against the published schemas."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.service import BOOTSTRAP_KEY, Service
from tests.waiting import PATIENCE

CASES = {
    "openai-chat": {
        "chat-basic-response": "passed",
        "chat-system-prompt": "passed",
        "chat-multi-turn": "passed",
        "chat-tool-calling": "passed",
        "chat-streaming-response": "passed",
        "chat-streaming-usage": "passed",
        "chat-image-input": "passed",
        "chat-reasoning-summary": "skipped",  # the tester runs it for models that OpenAI's names say reason
        "chat-error-handling": "passed",
    },
    "open-responses": {
        "basic-response": "passed",
        "system-prompt": "passed",
        "multi-turn": "passed",
        "tool-calling": "passed",
        "streaming-response": "passed",
        "streaming-usage": "passed",
        "image-input": "passed",
        "assistant-phase": "passed",
        "response-output-phase-schema": "passed",
        "reasoning-summary": "skipped",
        "error-handling": "passed",
    },
}


@pytest.mark.parametrize("form", CASES)
def test_every_case_passes(service: Service, form: str) -> None:
    options = ["--json", "--format", form, "-m", "demo", "-u", f"{service.base_url}/v1", "-f", ",".join(CASES[form])]
    ended = subprocess.run(
        [sys.executable, "-m", "llm_comply.cli", *options],
        env={**os.environ, "OPENRESPONSES_API_KEY": BOOTSTRAP_KEY},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    cases = json.loads(ended.stdout)["results"]
    assert {case["id"]: case["status"] for case in cases} == CASES[form], ended.stdout
