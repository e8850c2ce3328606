"""`headrace providers check`: one call of each provider."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.provider import Provider, status
from tests.service import PROVIDER_KEY, ROOT, Command, Ended

CONFIG = """
[providers.good]
kind = "openai"
base_url = "{url}"
api_key = "env:CHECKED_KEY"

[providers.refusing]
kind = "openai"
base_url = "{url}"
api_key = "env:CHECKED_KEY"

[providers.absent]
kind = "openai"
base_url = "http://127.0.0.1:9/v1"

[providers.unused]
kind = "openai"
base_url = "{url}"

[models."checked-good"]
routes = ["good/checked-good"]

[models."checked-refused"]
routes = ["refusing/checked-refused"]

[models."checked-absent"]
routes = ["absent/checked-absent"]
"""


@pytest.fixture
def config(tmp_path: Path, provider: Provider) -> Path:
    path = tmp_path / "headrace.toml"
    path.write_text(CONFIG.format(url=provider.url()))
    return path


def check(config: Path, *arguments: str) -> Ended:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HEADRACE_CONFIG": str(config), "CHECKED_KEY": PROVIDER_KEY}
    return Command(["providers", "check", *arguments], environment, config.parent).ended()


def checked(config: Path, *arguments: str) -> dict[str, dict[str, Any]]:
    return {row["provider"]: row for row in json.loads(check(config, "--json", *arguments).stdout)}


def test_each_provider_is_called_once_and_its_problem_told(config: Path, provider: Provider) -> None:
    provider.script("checked-refused", status(401, {"error": {"message": f"no such key: {PROVIDER_KEY}"}}))
    rows = checked(config)
    assert list(rows) == ["good", "refusing", "absent", "unused"]
    assert rows["good"]["problem"] is None
    assert rows["good"]["tokens"] > 0
    assert "credentials" in rows["refusing"]["problem"]
    assert "127.0.0.1" in rows["absent"]["problem"]
    assert "no model" in rows["unused"]["problem"]
    assert len(provider.calls_for("checked-good")) == 1


def test_the_exit_code_tells_and_no_key_is_shown(config: Path, provider: Provider) -> None:
    provider.script("checked-refused", status(400, {"error": {"message": f"bad: {PROVIDER_KEY}"}}))
    everything = check(config)
    assert everything.returncode == 1
    assert "works" in everything.stdout
    assert PROVIDER_KEY not in everything.stdout + everything.stderr
    assert check(config, "good").returncode == 0


def test_a_provider_of_globs_alone_is_asked_for_a_model_that_is_known_or_named(
    config: Path, provider: Provider
) -> None:
    config.write_text(
        CONFIG.partition("[models")[0].format(url=provider.url())
        + '[models."checked-*"]\nroutes = ["good/checked-fixed", "refusing/*"]\n'
    )
    rows = checked(config, "good", "refusing")
    assert (rows["good"]["model"], rows["good"]["problem"], rows["good"]["unchecked"]) == ("checked-fixed", None, None)
    assert rows["refusing"]["problem"] is None
    assert "refusing/MODEL" in rows["refusing"]["unchecked"]
    assert check(config, "good", "refusing").returncode == 0
    assert check(config, "refusing/checked-named").returncode == 0
    assert len(provider.calls_for("checked-named")) == 1
    provider.script("checked-broken", status(401))
    assert check(config, "refusing/checked-broken").returncode == 1


def test_a_provider_is_asked_in_the_format_of_its_route(config: Path, provider: Provider) -> None:
    route = '{ route = "good/*", format = "responses" }'
    with config.open("a") as file:
        file.write(f'[models."spoken-*"]\nroutes = [{route}]\n')
    assert check(config, "good/spoken-to").returncode == 0
    (call,) = provider.calls_for("spoken-to")
    assert call.kind == "responses"


def test_a_provider_is_asked_with_the_limit_that_it_knows(config: Path, provider: Provider) -> None:
    config.write_text(
        config.read_text().replace("[providers.good]", '[providers.good]\nlimit_parameter = "max_tokens"')
    )
    assert check(config, "good/checked-limited").returncode == 0
    (call,) = provider.calls_for("checked-limited")
    assert "max_tokens" in call.body
    assert "max_completion_tokens" not in call.body


def test_an_unknown_provider_is_a_usage_error(config: Path) -> None:
    ended = check(config, "nobody")
    assert ended.returncode == 2
    assert "nobody" in ended.stderr
    assert "good" in ended.stderr
