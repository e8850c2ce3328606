"""Digests of the configuration: alike in processes of several releases that read the same file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from headrace.catalogue.models import Catalogue, Model, Provider
from headrace.runtime.fingerprints import of_configuration

FILE: dict[str, Any] = {
    "providers": {
        "openai": {"kind": "openai", "base_url": "https://openai.invalid/v1", "api_key": "env:OPENAI_API_KEY"}
    },
    "models": {"gpt": {"routes": ["openai/gpt", {"route": "openai/gpt-2", "weight": 2}], "input_price": "1.5"}},
}


class NewerProvider(Provider):
    """A provider of a later release, which has more settings."""

    region: str | None = None
    tags: list[str] = Field(default=[])


class NewerModel(Model):
    """A model of a later release."""

    hidden: bool = False


class NewerCatalogue(Catalogue):
    """The configuration of a later release."""

    providers: Mapping[str, NewerProvider]
    models: Mapping[str, NewerModel]


def newer(**provider: Any) -> str:
    """Return the digest of a later release, of a file with more settings of the provider."""
    file = FILE | {"providers": {"openai": FILE["providers"]["openai"] | provider}}
    return of_configuration(NewerCatalogue.model_validate(file))


def test_a_setting_that_the_file_leaves_out_changes_nothing() -> None:
    assert newer() == of_configuration(Catalogue.model_validate(FILE))


def test_a_setting_that_the_file_has_changes_the_digest() -> None:
    assert len({newer(), newer(region="eu"), newer(timeout=60), newer(tags=["a"])}) == 4
