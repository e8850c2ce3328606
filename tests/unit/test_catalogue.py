from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from headrace.catalogue import ConfigurationError, Model, load_catalogue
from headrace.chat.usage import TokenUsage
from headrace.errors import ModelNotFoundError

CONFIG = """
[providers.one]
kind = "openai"
base_url = "http://127.0.0.1:1/v1"
api_key = "env:SOME_KEY"
[providers.two]
kind = "openai"
base_url = "http://127.0.0.1:2/v1"
[models."gpt-4o"]
routes = ["one/gpt-4o", "two/other"]
input_price = 2.50
output_price = 10
[models."fake*"]
routes = ["two/*"]
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "headrace.toml"
    path.write_text(CONFIG)
    return path


def test_routes_come_in_their_order_and_fallbacks_after_them(path: Path) -> None:
    routes = load_catalogue(path).routes("gpt-4o", ["fake-1"])
    assert [(route.provider_name, route.model) for route in routes] == [
        ("one", "gpt-4o"),
        ("two", "other"),
        ("two", "fake-1"),
    ]


def test_an_unknown_model_is_not_found(path: Path) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        load_catalogue(path).routes("gpt-4o", ["nobody-knows"])
    assert (caught.value.status, caught.value.code, caught.value.param) == (404, "model_not_found", "model")


def test_a_glob_is_no_name_to_look_up(path: Path) -> None:
    assert load_catalogue(path).names() == ["gpt-4o"]


def test_a_providers_key_comes_from_the_environment_and_never_shows(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = load_catalogue(path).providers["one"]
    assert provider.secret() is None
    monkeypatch.setenv("SOME_KEY", "sk-secret")
    assert provider.secret() == "sk-secret"
    assert "sk-secret" not in repr(provider)


def test_cost_is_exact_and_cached_tokens_have_their_own_price() -> None:
    model = Model(
        routes=["a/b"], input_price=Decimal("2.50"), cached_input_price=Decimal("1.25"), output_price=Decimal("10.00")
    )
    assert model.cost(TokenUsage(1000, 10, cached_tokens=400)) == Decimal("0.0021")
    assert Model(routes=["a/b"]).cost(TokenUsage(1, 1)) is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("providers = [\n= 2", "line 2"),
        ('[providers.x]\nkind = "gopher"\nbase_url = "http://x"', "providers.x.kind"),
        ('[providers.x]\nkind = "openai"\nbase_url = "x"', "providers.x.base_url"),
        ('[models.m]\nroutes = ["nobody/m"]', "nobody"),
        ("[models.m]\nroutes = []", "models.m.routes"),
        ("[modles.m]", "modles"),
    ],
    ids=["not-toml", "kind", "url", "provider", "no-route", "typo"],
)
def test_a_mistake_in_the_file_is_told_with_its_place(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "headrace.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        load_catalogue(path)
    assert str(path) in str(caught.value)
    assert told in str(caught.value)
