"""Answers outside the endpoints: methods, unknown paths, and pages of other origins."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from api.app import create_app
from api.http import endpoints
from api.http.errors import render_error
from api.http.middleware import RequestScope
from headrace.catalogue.file import CatalogueFile
from headrace.errors import ModelNotFoundError, RateLimitError
from headrace.keys.principal import Principal
from headrace.quotas.rules import Limits
from headrace.settings import Settings

ORIGIN = "https://app.example.com"


async def ask(method: str, path: str, headers: dict[str, str] | None = None, **settings: Any) -> httpx.Response:
    return await ask_app(create_app(Settings(**settings)), method, path, headers)


async def ask_app(served: ASGIApp, method: str, path: str, headers: dict[str, str] | None = None) -> httpx.Response:
    app = RequestScope(served)

    async def with_state(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "state": {}}, receive, send)

    transport = httpx.ASGITransport(with_state)
    async with httpx.AsyncClient(transport=transport, base_url="http://headrace") as client:
        return await client.request(method, path, headers=headers)


async def test_an_unknown_path_is_named_and_the_nearest_endpoint_with_it() -> None:
    answer = await ask("POST", "/v1/chat/completion")
    assert answer.status_code == 404
    message = answer.json()["error"]["message"]
    assert "POST /v1/chat/completion does not exist" in message
    assert message.endswith("The nearest endpoint is POST /v1/chat/completions.")


async def test_a_path_without_its_version_is_answered_with_the_endpoint_that_is_meant() -> None:
    answer = await ask("POST", "/chat/completions")
    assert answer.json()["error"]["message"].endswith("The nearest endpoint is POST /v1/chat/completions.")


@pytest.mark.parametrize("path", ["/wp-admin/setup-config.php", "/v1/" + "a" * 200])
async def test_no_endpoint_is_named_for_a_path_that_is_far_from_all(path: str) -> None:
    answer = await ask("GET", path)
    assert answer.json()["error"]["message"] == f"Unknown request URL: GET {path[:100]} does not exist."


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many names each slow comparison had."""
    numbers, compare = [], difflib.get_close_matches

    def counting(asked: str, names: Sequence[str], n: int, cutoff: float) -> list[str]:
        numbers.append(len(names))
        return compare(asked, names, n, cutoff)

    monkeypatch.setattr(difflib, "get_close_matches", counting)
    return numbers


@pytest.mark.parametrize(
    "path", ["/v1/chat/completion", "/api/v1/chat/completionz/abcdefghijklmnop/xyz", "/wp-login.php"]
)
async def test_an_unknown_path_is_compared_with_few_endpoints(path: str, compared: list[int]) -> None:
    assert (await ask("POST", path)).status_code == 404
    assert compared == [2]


@pytest.mark.parametrize("asked", ["gpt-7-minu", "cluade-3-mini", "gemini-12", "mini"])
def test_an_unknown_model_is_compared_with_few_models(asked: str, compared: list[int], tmp_path: Path) -> None:
    kinds, sizes = ("gpt", "claude", "gemini"), ("mini", "large", "turbo", "preview", "2026")
    names = [f"{kind}-{version}-{size}" for kind in kinds for version in range(20) for size in sizes]
    config = tmp_path / "headrace.toml"
    provider = '[providers.one]\nkind = "openai"\nbase_url = "http://127.0.0.1:1/v1"\n'
    config.write_text(provider + "".join(f'[models."{name}"]\nroutes = ["one/m"]\n' for name in names))
    principal = Principal(
        "acct", "key", frozenset(), Limits(), Limits(), None, b"", "", read_only=False, key_account_id=""
    )
    state = {"principal": principal, "catalogue": CatalogueFile(config, demo=False)}
    error = endpoints.unknown_model(Request({"type": "http", "state": state}), ModelNotFoundError.of(asked))
    assert compared == [20]
    told = re.fullmatch(r".* There are: (.*) and 290 more\.", error.message)
    assert told is not None
    near = told[1].split(", ")
    exact = difflib.SequenceMatcher(None, b=asked)

    def likeness(name: str) -> float:
        exact.set_seq1(name)
        return exact.ratio()

    assert len(near) == 10
    assert list(map(likeness, near)) == sorted(map(likeness, near), reverse=True)
    assert likeness(near[0]) == max(map(likeness, names))


async def test_the_paths_of_endpoints_are_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    app = create_app(Settings())
    assert (await ask_app(app, "GET", "/v1/nothing")).status_code == 404
    monkeypatch.delattr(endpoints, "compile_path")
    assert (await ask_app(app, "GET", "/v1/nothing")).status_code == 404
    assert (await ask_app(app, "PUT", "/v1/batches/batch_x")).headers["allow"] == "GET, HEAD"


async def test_a_method_that_a_path_does_not_have_is_answered_with_those_that_it_has() -> None:
    answer = await ask("PUT", "/v1/batches/batch_x")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "GET, HEAD"
    both = await ask("PATCH", "/v1/files/file-x")
    assert both.headers["allow"] == "DELETE, GET, HEAD"


async def test_a_path_that_no_endpoint_takes_is_unknown_although_its_form_has_the_method() -> None:
    answer = await ask("GET", "/v1/models/a%0Ab")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_url")


def test_no_client_is_told_to_wait_longer_than_it_heeds() -> None:
    assert render_error(RateLimitError(retry_after=0.2)).headers["retry-after"] == "1"
    assert render_error(RateLimitError(retry_after=600)).headers["retry-after"] == "59"


async def test_head_is_answered_without_a_body() -> None:
    answer = await ask("HEAD", "/v1/nothing")
    assert (answer.status_code, answer.content) == (404, b"")
    assert answer.headers["x-request-id"]
    assert (await ask("HEAD", "/healthz")).status_code == 200


async def test_a_page_of_another_origin_may_ask_if_that_is_set() -> None:
    headers = {
        "origin": ORIGIN,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,x-stainless-os",
    }
    assert (await ask("OPTIONS", "/v1/chat/completions", headers)).status_code == 405
    allowed = await ask("OPTIONS", "/v1/chat/completions", headers, cors_origins=[ORIGIN])
    assert allowed.is_success
    assert allowed.headers["access-control-allow-origin"] == ORIGIN
    assert "x-stainless-os" in allowed.headers["access-control-allow-headers"]
    other = await ask("OPTIONS", "/v1/chat/completions", headers, cors_origins=["https://other.example.com"])
    assert "access-control-allow-origin" not in other.headers
