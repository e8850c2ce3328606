"""Which models there are, who serves them, at what price: `headrace.toml`, or the built-in table without one.

Keys are named, not held: `api_key = "env:OPENAI_API_KEY"` is read from the environment when a call needs it.
"""

from __future__ import annotations

import fnmatch
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import Annotated, Literal
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from headrace.catalogue import known as known_models
from headrace.catalogue.known import Ability, Rates
from headrace.errors import ModelNotFoundError
from headrace.formats.chat.support import Kind
from headrace.formats.chat.usage import TokenUsage

# Every model in the list has a creation time; ours is the day when the catalogue was made.
CATALOGUE_CREATED = 1_763_856_000

NATIVE_BATCH_KINDS: Sequence[Kind] = ("openai", "anthropic")
"""The wire formats whose providers have batch APIs that we know."""

_SOURCE = "headrace.toml"

# The wire formats whose requests have the model's name in the URL, where a `/` names another kind of resource.
_NAMES_IN_URLS: Sequence[Kind] = ("gemini",)

Condition = Literal["context_window", "content_filter"]
"""When a route is tried: only after a route failed because of this."""


def _is_plain(name: str) -> bool:
    """Return whether a name is printable and has no `..`, no backslash and no empty part between `/`."""
    return name.isprintable() and ".." not in name and "\\" not in name and "" not in name.split("/")


class Provider(BaseModel):
    """Someone who answers completions, and how to reach them. Times are in seconds, limits over all workers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind
    base_url: Annotated[str, StringConstraints(pattern=r"^https?://\S+$")]
    api_key: str | None = Field(default=None, description="`env:NAME`, or the key itself", repr=False)
    max_concurrency: int | None = Field(default=None, ge=1, description="Calls under way")
    requests_per_minute: int | None = Field(default=None, ge=1)
    tokens_per_minute: int | None = Field(default=None, ge=1, description="Of prompts and answers")
    timeout: float = Field(default=600, gt=0, description="For a whole call")
    connect_timeout: float = Field(default=10, gt=0)
    read_timeout: float = Field(default=300, gt=0, description="Between bytes: a reasoning model may think for minutes")

    def secret(self) -> str | None:
        """Return the key to send, or None if there is none."""
        if self.api_key is not None and self.api_key.startswith("env:"):
            return os.environ.get(self.api_key.removeprefix("env:")) or None
        return self.api_key


RouteName = Annotated[str, StringConstraints(pattern=r"^[^/]+/.+$")]
"""`provider/model`, by the provider's name in the file and the model's name at the provider."""


class RouteOptions(BaseModel):
    """A route with more to say of it than its name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    route: RouteName
    weight: float | None = Field(default=None, gt=0, description="Twice the weight is tried first twice as often")
    native_batch: bool = Field(
        default=False, description="Batches with a day's time go to the provider's own batch API, at its price"
    )


class Model(BaseModel):
    """What a client asks for by name. Prices are in USD for a million tokens; known ones stand where left out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    routes: list[RouteName | RouteOptions] = Field(min_length=1)
    input_price: Decimal | None = Field(default=None, ge=0)
    cached_input_price: Decimal | None = Field(default=None, ge=0, description="The input price where left out")
    cache_write_price: Decimal | None = Field(default=None, ge=0, description="The input price where left out")
    output_price: Decimal | None = Field(default=None, ge=0)
    input_audio_price: Decimal | None = Field(default=None, ge=0, description="The input price where left out")
    output_audio_price: Decimal | None = Field(default=None, ge=0, description="The output price where left out")
    context_window: int | None = Field(default=None, ge=1, description="Tokens")
    output_limit: int | None = Field(default=None, ge=1, description="Tokens")
    abilities: list[Ability] | None = None
    context_window_fallbacks: list[str] = Field(default=[], description="Models for what is too long for this one")
    content_filter_fallbacks: list[str] = Field(default=[], description="Models for what this one withholds")

    def ordered_routes(self, seed: str = "") -> list[RouteOptions]:
        """Return the routes in the order in which they are tried: as written, or if any has a weight, as drawn."""
        routes, drawn = self._routes
        if not drawn:
            return routes
        draw = random.Random(seed)
        # Efraimidis and Spirakis: the largest of these is a route's with a probability in proportion to its weight.
        keyed = [(draw.random() ** (1 / (route.weight or 1)), index) for index, route in enumerate(routes)]
        return [routes[index] for _, index in sorted(keyed, reverse=True)]

    @cached_property
    def _routes(self) -> tuple[list[RouteOptions], bool]:
        routes = [RouteOptions(route=route) if isinstance(route, str) else route for route in self.routes]
        return routes, any(route.weight is not None for route in routes)


@dataclass(frozen=True, slots=True)
class Route:
    """One way to a model: the provider, the name by which it knows the model, and the entry that leads there."""

    provider_name: str
    provider: Provider
    model: str
    entry: Model
    condition: Condition | None = None
    native_batch: bool = False

    @property
    def name(self) -> str:
        """The route as the file writes it: `provider/model`."""
        return f"{self.provider_name}/{self.model}"

    @property
    def output_limit(self) -> int | None:
        """How many tokens the model writes at most, if we know."""
        return self.entry.output_limit or known_models.output_limit(self.model)

    @property
    def context_window(self) -> int | None:
        """How many tokens the model reads and writes at most, if we know."""
        return self.entry.context_window or known_models.find_model(self.provider.base_url, self.model).context_window

    @property
    def abilities(self) -> Sequence[Ability]:
        """What the model can do besides writing, as far as we know."""
        return known_models.abilities(self.model) if self.entry.abilities is None else self.entry.abilities

    def rates(self, prompt_tokens: int = 0) -> Rates | None:
        """Return the prices with a prompt of this length: the file's, else the known ones; None without either."""
        entry, source = self.entry, _SOURCE
        fresh, output = entry.input_price, entry.output_price
        if fresh is None or output is None:
            known = known_models.find_model(self.provider.base_url, self.model).rates_for(prompt_tokens)
            if known is None or (fresh is None and output is None):
                return known
            source = f"{_SOURCE}, {known.source}"
            fresh = known.input if fresh is None else fresh
            output = known.output if output is None else output
        cached, write = entry.cached_input_price, entry.cache_write_price
        cached = fresh if cached is None else cached
        return Rates(
            0,
            fresh,
            cached,
            fresh if write is None else write,
            output,
            input_audio=entry.input_audio_price,
            output_audio=entry.output_audio_price,
            source=source,
        )

    def cost(self, tokens: TokenUsage) -> Decimal | None:
        """Return the exact price of these tokens in USD, or None if the model has no price."""
        rates = self.rates(tokens.prompt_tokens)
        return None if rates is None else rates.cost(tokens)


class Catalogue(BaseModel):
    """The whole of `headrace.toml`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    strict_params: bool = Field(default=False, description="Refuse what would be dropped for a format")
    providers: Mapping[str, Provider] = Field(default_factory=dict)
    models: Mapping[str, Model] = Field(default_factory=dict)

    def find(self, name: str, *, param: str = "model") -> Model:
        """Return the model that a client means by `name`, in `param`: its own entry, else the first glob that fits.

        A glob passes the client's text on, so it fits no text that a provider could take for more than a name.

        Raises:
            ModelNotFoundError: No entry fits.
        """
        if name in self.models:
            return self.models[name]
        if _is_plain(name):
            for pattern, model in self.models.items():
                if "*" in pattern and fnmatch.fnmatchcase(name, pattern):
                    return model
        raise ModelNotFoundError.of(name, param=param)

    def routes(self, name: str, fallbacks: Sequence[str] = (), *, seed: str = "") -> list[Route]:
        """Return the ways to a model in the order in which they are tried, then those to its fallbacks.

        Last come those that are for one error only, with their condition. The order of weighted routes is drawn from
        `seed`.

        Raises:
            ModelNotFoundError: One of the names fits no entry.
        """
        names = (name, *fallbacks)
        routes = [route for asked in names for route in self._routes(asked, seed)]
        for asked in names:
            entry = self.find(asked)
            for model in entry.context_window_fallbacks:
                routes += self._routes(model, seed, "context_window")
            for model in entry.content_filter_fallbacks:
                routes += self._routes(model, seed, "content_filter")
        return routes

    def _routes(self, asked: str, seed: str, condition: Condition | None = None) -> Iterator[Route]:
        entry = self.find(asked)
        for options in entry.ordered_routes(seed):
            provider, model = options.route.split("/", 1)
            known = self.providers[provider]
            if "*" in model:
                # A client's name is a part of the path that needs no quoting, and has the slashes of its route.
                if known.kind in _NAMES_IN_URLS and (quote(asked) != asked or asked.count("/") != model.count("/")):
                    raise ModelNotFoundError.of(asked)
                model = asked
            yield Route(provider, known, model, entry, condition, options.native_batch)

    def look_up_prices(self) -> None:
        """Find the known prices of all models now: the first look reads a large table, which no job should wait for."""
        for name in self.names():
            for route in self.routes(name):
                route.rates()

    def names(self) -> list[str]:
        """Return the names that clients can look up; a glob is none."""
        return sorted(name for name in self.models if "*" not in name)

    def entries(self) -> list[str]:
        """Return the names of all entries: globs in the order in which they are tried, then `names`."""
        return [name for name in self.models if "*" in name] + self.names()
