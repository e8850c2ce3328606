"""The catalogue without a file: the providers whose API keys are in the environment."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from headrace.catalogue import known as known_models
from headrace.catalogue.models import Catalogue, Model, Provider
from headrace.formats.chat.support import Kind


@dataclass(frozen=True, slots=True)
class _BuiltIn:
    """A provider that is in the catalogue if its variable is set.

    Its models are `seeds`, those in the table of prices, and any whose name fits one of `globs`, for models that are
    newer than the table.
    """

    kind: Kind
    variable: str
    base_url: str
    known_as: Literal["openai", "anthropic", "google"]
    seeds: Sequence[str]
    globs: Sequence[str]

    def models(self) -> list[str]:
        return list(dict.fromkeys((*self.seeds, *known_models.chat_models(self.known_as), *self.globs)))


_BUILT_IN = (
    _BuiltIn(
        kind="openai",
        variable="OPENAI_API_KEY",
        base_url="https://api.openai.com/v1",
        known_as="openai",
        seeds=("gpt-4o", "gpt-4o-mini"),
        globs=("gpt-*", "chatgpt-*", "o1*", "o3*", "o4*"),
    ),
    _BuiltIn(
        kind="anthropic",
        variable="ANTHROPIC_API_KEY",
        base_url="https://api.anthropic.com/v1",
        known_as="anthropic",
        seeds=("claude-sonnet-4-6",),
        globs=("claude-*",),
    ),
    _BuiltIn(
        kind="gemini",
        variable="GEMINI_API_KEY",
        base_url="https://generativelanguage.googleapis.com/v1beta",
        known_as="google",
        seeds=("gemini-1.5-pro",),
        globs=("gemini-*",),
    ),
)


def builtin() -> Catalogue:
    """Return the catalogue of the providers whose variables are set."""
    switched_on = [built_in for built_in in _BUILT_IN if os.environ.get(built_in.variable)]
    return Catalogue(
        providers={
            one.kind: Provider(kind=one.kind, base_url=one.base_url, api_key=f"env:{one.variable}")
            for one in switched_on
        },
        models={name: Model(routes=[f"{one.kind}/{name}"]) for one in switched_on for name in one.models()},
    )
