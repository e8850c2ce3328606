"""Which models there are, who serves them, at what price: `headrace.toml`, or the built-in table without one.

Keys are named, not held: `api_key = "env:OPENAI_API_KEY"` is read from the environment when a call needs it.
"""

from __future__ import annotations

import fnmatch
import os
import tomllib
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from headrace.chat.usage import TokenUsage
from headrace.errors import ModelNotFoundError

# Every model in the list has a creation time; ours is the day when the catalogue was made.
CATALOGUE_CREATED = 1_763_856_000
_MILLION = 1_000_000


class ConfigurationError(Exception):
    """The configuration file is not valid."""


class Provider(BaseModel):
    """Someone who answers completions, and how to reach them. Times are in seconds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["openai", "anthropic", "gemini"]
    base_url: Annotated[str, StringConstraints(pattern=r"^https?://\S+$")]
    api_key: str | None = Field(default=None, description="`env:NAME`, or the key itself", repr=False)
    max_concurrency: int = Field(default=256, ge=1, description="Requests in flight of one worker")
    timeout: float = Field(default=600, gt=0, description="For a whole call")
    connect_timeout: float = Field(default=10, gt=0)
    read_timeout: float = Field(default=300, gt=0, description="Between bytes: a reasoning model may think for minutes")

    def secret(self) -> str | None:
        """Return the key to send, or None if there is none."""
        if self.api_key is not None and self.api_key.startswith("env:"):
            return os.environ.get(self.api_key.removeprefix("env:")) or None
        return self.api_key


class Model(BaseModel):
    """What a client asks for by name. Prices are in USD for a million tokens."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    routes: list[Annotated[str, StringConstraints(pattern=r"^[^/]+/.+$")]] = Field(min_length=1)
    input_price: Decimal | None = Field(default=None, ge=0)
    cached_input_price: Decimal | None = Field(default=None, ge=0, description="The input price where left out")
    output_price: Decimal | None = Field(default=None, ge=0)

    def cost(self, tokens: TokenUsage) -> Decimal | None:
        """Return the exact price of these tokens in USD, or None if the model has no price."""
        if self.input_price is None or self.output_price is None:
            return None
        cached_price = self.input_price if self.cached_input_price is None else self.cached_input_price
        fresh = tokens.prompt_tokens - tokens.cached_tokens
        total = fresh * self.input_price + tokens.cached_tokens * cached_price
        return (total + tokens.completion_tokens * self.output_price) / _MILLION


Condition = Literal["context_window", "content_filter"]
"""When a route is tried: only after a route failed because of this."""


class Route(BaseModel):
    """One way to a model: the provider, the name by which it knows the model, and whose price is asked for it."""

    model_config = ConfigDict(frozen=True)

    provider_name: str
    provider: Provider
    model: str
    price: Model
    output_limit: int | None = None
    condition: Condition | None = None


class Catalogue(BaseModel):
    """The whole of `headrace.toml`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    providers: Mapping[str, Provider] = Field(default_factory=dict)
    models: Mapping[str, Model] = Field(default_factory=dict)
    strict_params: bool = False

    @model_validator(mode="after")
    def _routes_lead_somewhere(self) -> Catalogue:
        for name, model in self.models.items():
            for route in model.routes:
                provider = route.split("/", 1)[0]
                if provider not in self.providers:
                    raise ValueError(
                        f"models.{name!r}: route {route!r} names provider {provider!r}, which is not there"
                    )
        return self

    def find(self, name: str, *, param: str = "model") -> Model:
        """Return the model that a client means by `name`, in `param`: its own entry, else the first glob that fits.

        Raises:
            ModelNotFoundError: No entry fits.
        """
        if name in self.models:
            return self.models[name]
        for pattern, model in self.models.items():
            if "*" in pattern and fnmatch.fnmatchcase(name, pattern):
                return model
        raise ModelNotFoundError(
            f"The model '{name[:100]}' does not exist or you do not have access to it.", param=param
        )

    def routes(self, name: str, fallbacks: Sequence[str] = (), *, seed: str = "") -> list[Route]:  # noqa: ARG002
        """Return the ways to a model in the order in which they are tried, then those to its fallbacks.

        Raises:
            ModelNotFoundError: One of the names fits no entry.
        """
        return [self._route(route, asked) for asked in (name, *fallbacks) for route in self.find(asked).routes]

    def _route(self, route: str, asked: str) -> Route:
        provider, model = route.split("/", 1)
        return Route(
            provider_name=provider,
            provider=self.providers[provider],
            model=asked if "*" in model else model,
            price=self.find(asked),
        )

    def names(self) -> list[str]:
        """Return the names that clients can look up; a glob is none."""
        return sorted(name for name in self.models if "*" not in name)


DEMO_PROVIDER = "demo"
# Served by the worker itself, on a port that it chooses when it starts.
DEMO_BASE_URL = "http://127.0.0.1:0/v1"


def _demo() -> Catalogue:
    return Catalogue(
        providers={DEMO_PROVIDER: Provider(kind="openai", base_url=DEMO_BASE_URL)},
        models={"demo": Model(routes=["demo/demo"], input_price=Decimal("0.15"), output_price=Decimal("0.60"))},
    )


def _builtin() -> Catalogue:
    if not os.environ.get("OPENAI_API_KEY"):
        return _demo()
    return Catalogue(
        providers={
            "openai": Provider(kind="openai", base_url="https://api.openai.com/v1", api_key="env:OPENAI_API_KEY")
        },
        models={
            "gpt-4o": Model(
                routes=["openai/gpt-4o"],
                input_price=Decimal("2.50"),
                cached_input_price=Decimal("1.25"),
                output_price=Decimal("10.00"),
            ),
            "gpt-4o-mini": Model(
                routes=["openai/gpt-4o-mini"],
                input_price=Decimal("0.15"),
                cached_input_price=Decimal("0.075"),
                output_price=Decimal("0.60"),
            ),
        },
    )


def load_catalogue(path: Path | None) -> Catalogue:
    """Read the file; without one, `headrace.toml` in the working directory; without that, the built-in table.

    Raises:
        ConfigurationError: It is not there, not TOML, or says what it may not. The message names the place.
    """
    if path is None:
        path = Path("headrace.toml")
        if not path.exists():
            return _builtin()
    try:
        document = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path}: {error}") from error
    try:
        catalogue = Catalogue.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "file"
        raise ConfigurationError(f"{path}: {place}: {first['msg']}") from error
    return catalogue if catalogue.providers else _demo()
