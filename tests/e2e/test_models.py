"""The catalogue over HTTP, and the command that reports its mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import openai

from tests.e2e.jobs import refused
from tests.service import ROOT, Command, Ended


async def test_models_are_listed_as_openai_lists_them(openai_client: openai.AsyncOpenAI) -> None:
    names = [model.id async for model in openai_client.models.list()]
    own = [name for name in names if not name.startswith("agent_")]
    assert own == sorted(own)
    assert "renamed" in names
    assert not any("*" in name for name in names)


async def test_a_model_tells_what_is_known_of_it(client: httpx.AsyncClient) -> None:
    model = (await client.get("/models/fake-priced")).json()
    assert model["object"] == "model"
    assert model["owned_by"] == "fake"
    assert model["providers"] == ["fake"]
    assert model["prices"] == {"input": "2.5", "cached_input": "2.5", "cache_write": "2.5", "output": "10.0"}
    unknown = (await client.get("/models/renamed")).json()
    assert unknown["prices"] is None
    assert unknown["context_window"] is None
    assert unknown["abilities"] == []


async def test_routes_are_in_their_order_and_no_secret_shows(client: httpx.AsyncClient) -> None:
    response = await client.get("/models/routed-1")
    assert response.json()["providers"] == ["second", "fake"]
    assert "key" not in response.text


async def test_an_unknown_model_is_not_found(client: httpx.AsyncClient) -> None:
    refused(await client.get("/models/unknown"), 404, code="model_not_found", param="model")


def check(path: Path, *options: str) -> Ended:
    return Command(["config", "check", str(path), *options], {"PYTHONPATH": str(ROOT)}, path.parent).ended()


def test_a_valid_file_is_said_to_be(tmp_path: Path, config: str) -> None:
    path = tmp_path / "models.toml"
    path.write_text(config)
    ended = check(path)
    assert ended.returncode == 0
    assert "models.toml: 6 providers" in ended.stdout


def test_a_wrong_file_is_told_with_lines_and_exit_code(tmp_path: Path) -> None:
    path = tmp_path / "models.toml"
    path.write_text('[providers.x]\nkind = "openai"\nbase_url = "http://x"\ntimeuot = 3\n')
    ended = check(path)
    assert ended.returncode == 1
    assert ended.stdout == f"{path}:4: providers.x.timeuot: there is no such key. Did you mean 'timeout'?\n"
    printed = json.loads(check(path, "--json").stdout)
    assert printed["valid"] is False
    assert [(problem["line"], problem["suggestion"]) for problem in printed["problems"]] == [(4, "timeout")]


def test_no_file_is_a_usage_error(tmp_path: Path) -> None:
    ended = check(tmp_path / "absent.toml")
    assert ended.returncode == 2
    assert "absent.toml" in ended.stderr
