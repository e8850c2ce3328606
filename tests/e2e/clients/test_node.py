"""OpenAI's client for Node and Vercel's AI SDK, by scripts that hold what the client sees; the tests hold the rest.

`make node` installs the clients; without it, or without Node, these tests are skipped.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.e2e.clients.answers import asked, calling
from tests.e2e.test_demo_models import examples
from tests.fakes.provider import Gate, Provider, answer
from tests.service import BOOTSTRAP_KEY, ROOT, Service
from tests.waiting import PATIENCE

SCRIPTS = Path(__file__).parent / "node"
NODE = shutil.which("node")

pytestmark = [
    pytest.mark.skipif(NODE is None, reason="this machine has no Node"),
    pytest.mark.skipif(
        not (SCRIPTS / "node_modules").exists(), reason="`make node` has not installed the Node clients"
    ),
]

CALL = calling(("weather", {"city": "Ulm"}), text="I look it up.")


def run(service: Service, *script: str, **environment: str) -> str:
    """Run a script, by its name or `--eval`, and return what it prints."""
    ended = subprocess.run(
        [str(NODE), "--import", "./loopback.mjs", *script],
        cwd=SCRIPTS,
        env={**os.environ, "URL": f"{service.base_url}/v1", "KEY": BOOTSTRAP_KEY, **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_openai(service: Service, provider: Provider, model: str) -> None:
    provider.script(f"{model}-chain", answer("Rain."), CALL, answer("Yes."))
    provider.script(f"{model}-resume", answer("one two three four five six"))
    gate = Gate()
    provider.script(f"{model}-cancel", answer("Never.", hold=gate))
    provider.script(f"{model}-conversation", answer("Rain."), answer("Yes."))
    run(service, "openai.mjs", MODEL=model)
    gate.release()
    assert asked(provider.calls_for(f"{model}-chain")[2]) == [
        ("user", "Weather?"),
        ("assistant", "Rain."),
        ("user", "A coat?"),
        ("assistant", ["call_0"]),
        ("tool", "rain"),
    ]
    assert [role for role, _ in asked(provider.calls_for(f"{model}-conversation")[1])] == ["user", "assistant", "user"]


def test_ai_sdk(service: Service, provider: Provider, model: str) -> None:
    provider.script(f"{model}-stored", CALL, answer("Take a coat."), answer("And warm boots."))
    provider.script(f"{model}-stateless", CALL, answer("Take a coat."), answer("And warm boots."))
    provider.script(f"{model}-chain", CALL, answer("Take a coat."), answer("And boots."))
    run(service, "ai-sdk.mjs", MODEL=model)
    turns = [("user", "A coat?"), ("assistant", ["call_0"]), ("tool", "rain in Ulm"), ("assistant", "Take a coat.")]
    for name in ("stored", "stateless"):
        heard = asked(provider.calls_for(f"{model}-{name}")[2])
        assert heard == [("system", "Be brief."), *turns, ("user", "Only a coat?")]
    # The SDK sends its instructions as an item of each request, and a chain keeps every item.
    heard = asked(provider.calls_for(f"{model}-chain")[2])
    assert heard == [("system", "Be brief."), *turns, ("system", "Be brief."), ("user", "Only a coat?")]


def test_the_example_of_the_guide(service: Service) -> None:
    [example] = examples((ROOT / "docs/how-to/agents-and-sdks.md").read_text(), "js")
    assert run(service, "--input-type", "module", "--eval", example).strip()
