"""The compliance tester `llm-comply`: it checks answers and events against the published schemas."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence

import pytest

from tests.fakes.provider import Provider, answer, usage_of
from tests.service import BOOTSTRAP_KEY, Service
from tests.waiting import PATIENCE

CASES = {
    "openai-chat": [
        "chat-basic-response",
        "chat-system-prompt",
        "chat-multi-turn",
        "chat-tool-calling",
        "chat-streaming-response",
        "chat-streaming-usage",
        "chat-image-input",
        "chat-error-handling",
    ],
    "open-responses": [
        "basic-response",
        "system-prompt",
        "multi-turn",
        "tool-calling",
        "streaming-response",
        "streaming-usage",
        "image-input",
        "assistant-phase",
        "response-output-phase-schema",
        "compact-response",
        "compact-missing-model",
        "error-handling",
    ],
}


def run(service: Service, form: str, model: str, cases: Sequence[str]) -> None:
    options = ["--json", "--format", form, "-m", model, "-u", f"{service.base_url}/v1", "-f", ",".join(cases)]
    ended = subprocess.run(
        [sys.executable, "-m", "llm_comply.cli", *options],
        env={**os.environ, "OPENRESPONSES_API_KEY": BOOTSTRAP_KEY},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    results = json.loads(ended.stdout)["results"]
    assert {case["id"]: case["status"] for case in results} == dict.fromkeys(cases, "passed"), ended.stdout


@pytest.mark.parametrize("form", CASES)
def test_every_case_passes(service: Service, form: str) -> None:
    run(service, form, "demo", CASES[form])


@pytest.mark.parametrize(
    ("form", "case"), [("openai-chat", "chat-reasoning-summary"), ("open-responses", "reasoning-summary")]
)
def test_reasoning_passes(service: Service, provider: Provider, model: str, form: str, case: str) -> None:
    """The tester asks models with OpenAI's names alone to reason."""
    name = f"{model}-gpt-5"
    counts = usage_of(20, 50, completion_tokens_details={"reasoning_tokens": 40})
    provider.script(name, answer("555", message={"reasoning_content": "15 times 37."}, usage=counts))
    run(service, form, name, [case])
