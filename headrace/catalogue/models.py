"""The models, the providers that serve them, and their prices: the document that `headrace.toml` holds.

A provider's key stays in the environment: `api_key = "env:OPENAI_API_KEY"` names the variable, which a call reads.
"""

from __future__ import annotations

import fnmatch
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property, lru_cache
from typing import Annotated, Literal
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from headrace.catalogue import known as known_models
from headrace.catalogue.known import Ability, Rates
from headrace.errors import ModelNotFoundError
from headrace.formats.chat.support import FORMAT_OF, Format, Kind, LimitParameter
from headrace.formats.chat.usage import TokenUsage

# The creation time of every model in OpenAI's list, in Unix seconds: the day when this catalogue began.
CATALOGUE_CREATED = 1_763_856_000

NATIVE_BATCH_KINDS: Sequence[Kind] = ("openai", "anthropic")
"""The kinds of providers whose batch APIs Headrace can use."""

_SOURCE = "headrace.toml"

# Requests for other models and fallbacks whose routes are kept, and characters of their names: globs fit any name.
_MOST_KEPT = 1024
_LONGEST_KEPT = 256

# The kinds whose requests have the model's name in the URL, where a `/` would lead to another resource.
_NAMES_IN_URLS: Sequence[Kind] = ("gemini",)


def may_be_asked(kind: Kind, name: str, pattern: str) -> bool:
    """Return whether a provider of this kind can be asked for a model by the name that takes the place of a pattern.

    Where the name becomes part of a URL's path, it needs no quoting, and has as many slashes as the pattern.
    """
    return kind not in _NAMES_IN_URLS or (quote(name) == name and name.count("/") == pattern.count("/"))


Condition = Literal["context_window", "content_filter"]
"""The failure of an earlier route after which a route is tried."""


def _is_plain(name: str) -> bool:
    """Return whether a name is printable and has no `..`, no backslash and no empty part between `/`."""
    return name.isprintable() and ".." not in name and "\\" not in name and "" not in name.split("/")


class Provider(BaseModel):
    """A service that answers completions, and how to reach it. Times are in seconds; limits hold over all workers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind
    base_url: Annotated[str, StringConstraints(pattern=r"^https?://\S+$")]
    api_key: str | None = Field(default=None, description="`env:NAME`, or the key itself", repr=False)
    max_concurrency: int | None = Field(default=None, ge=1, description="Calls under way")
    requests_per_minute: int | None = Field(default=None, ge=1)
    tokens_per_minute: int | None = Field(default=None, ge=1, description="Of prompts and answers")
    adaptive_concurrency: bool = Field(
        default=True, description="Find how many calls each route takes at once, where the provider has no limit"
    )
    limit_parameter: LimitParameter | None = Field(
        default=None, description="What a chat request calls its limit of tokens; the client's name where left out"
    )
    timeout: float = Field(default=600, gt=0, description="For a whole call")
    connect_timeout: float = Field(default=10, gt=0)
    read_timeout: float = Field(default=300, gt=0, description="Between bytes: a reasoning model may think for minutes")

    def secret(self) -> str | None:
        """Return the key to send, or None if the provider has no key."""
        if self.api_key is not None and self.api_key.startswith("env:"):
            return os.environ.get(self.api_key.removeprefix("env:")) or None
        return self.api_key


RouteName = Annotated[str, StringConstraints(pattern=r"^[^/]+/.+$")]
"""`provider/model`: the provider's name in the file, and the model's name at the provider."""


class RouteOptions(BaseModel):
    """A route with options."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    route: RouteName
    weight: float | None = Field(default=None, gt=0, description="Twice the weight is tried first twice as often")
    native_batch: bool = Field(
        default=False, description="Batches with a day's time go to the provider's own batch API, at its price"
    )
    format: Literal["chat", "responses"] | None = Field(
        default=None, description="What a provider of kind openai is asked in: chat completions, or the Responses API"
    )


class Model(BaseModel):
    """A model under the name that clients ask for.

    Prices are in USD for a million tokens. Known prices are used where the file leaves them out.
    """

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
    context_window_fallbacks: list[str] = Field(
        default=[], description="Models for prompts that are too long for this one"
    )
    content_filter_fallbacks: list[str] = Field(default=[], description="Models for answers that this one withholds")

    def ordered_routes(self, seed: str = "") -> list[RouteOptions]:
        """Return the routes in the order in which they are tried: as written, or drawn if any has a weight."""
        routes, drawn = self._routes
        if not drawn:
            return routes
        draw = random.Random(seed)
        # Efraimidis and Spirakis: a route's chance to have the largest of these numbers is in proportion to its weight.
        keyed = [(draw.random() ** (1 / (route.weight or 1)), index) for index, route in enumerate(routes)]
        return [routes[index] for _, index in sorted(keyed, reverse=True)]

    @property
    def is_drawn(self) -> bool:
        """Whether the order of the routes depends on the seed."""
        return self._routes[1]

    @cached_property
    def rates(self) -> Rates | None:
        """The prices of the file, or None where it leaves out that of input or output."""
        fresh, output = self.input_price, self.output_price
        return None if fresh is None or output is None else self._rates(fresh, output, _SOURCE)

    def rates_beside(self, known: Rates) -> Rates:
        """Return the prices of the file, with known ones where it leaves out that of input or output."""
        fresh = known.input if self.input_price is None else self.input_price
        output = known.output if self.output_price is None else self.output_price
        return self._rates(fresh, output, f"{_SOURCE}, {known.source}")

    def _rates(self, fresh: Decimal, output: Decimal, source: str) -> Rates:
        cached, write = self.cached_input_price, self.cache_write_price
        return Rates(
            0,
            fresh,
            fresh if cached is None else cached,
            fresh if write is None else write,
            output,
            input_audio=self.input_audio_price,
            output_audio=self.output_audio_price,
            source=source,
        )

    @cached_property
    def _routes(self) -> tuple[list[RouteOptions], bool]:
        routes = [RouteOptions(route=route) if isinstance(route, str) else route for route in self.routes]
        return routes, any(route.weight is not None for route in routes)


@dataclass(frozen=True, slots=True)
class Route:
    """One way to a model: the provider, the model's name at that provider, and the entry of the file."""

    provider_name: str
    provider: Provider
    model: str
    entry: Model
    condition: Condition | None = None
    native_batch: bool = False
    chosen_format: Format | None = None

    @property
    def name(self) -> str:
        """The route as the file writes it: `provider/model`."""
        return f"{self.provider_name}/{self.model}"

    @property
    def format(self) -> Format:
        """The wire format of calls on this route."""
        return self.chosen_format or FORMAT_OF[self.provider.kind]

    @property
    def output_limit(self) -> int | None:
        """How many tokens the model writes at most, or None if unknown."""
        return self.entry.output_limit or known_models.output_limit(self.model)

    @property
    def context_window(self) -> int | None:
        """How many tokens the model reads and writes at most, or None if unknown."""
        return self.entry.context_window or known_models.find_model(self.provider.base_url, self.model).context_window

    @property
    def abilities(self) -> Sequence[Ability]:
        """What the model can do beyond text, as far as known."""
        return known_models.abilities(self.model) if self.entry.abilities is None else self.entry.abilities

    def rates(self, prompt_tokens: int = 0) -> Rates | None:
        """Return the prices for a prompt of this length: the file's, else the known ones, else None."""
        entry = self.entry
        if entry.rates is not None:
            return entry.rates
        known = known_models.find_model(self.provider.base_url, self.model).rates_for(prompt_tokens)
        if known is None or (entry.input_price is None and entry.output_price is None):
            return known
        return entry.rates_beside(known)

    def cost(self, tokens: TokenUsage) -> Decimal | None:
        """Return the exact price of these tokens in USD, or None if the model has no price."""
        rates = self.rates(tokens.prompt_tokens)
        return None if rates is None else rates.cost(tokens)


class Catalogue(BaseModel):
    """The document of `headrace.toml`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    strict_params: bool = Field(default=False, description="Refuse parameters that a provider's format would drop")
    providers: Mapping[str, Provider] = Field(default_factory=dict)
    models: Mapping[str, Model] = Field(default_factory=dict)

    def find(self, name: str, *, param: str = "model") -> Model:
        """Return the model of a name: the entry with that name, else the first glob that fits.

        A glob passes the client's text on to the provider, so it fits plain names only. `param` is the parameter that
        the error names.

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

    def routes(self, name: str, fallbacks: Sequence[str] = (), *, seed: str = "") -> Sequence[Route]:
        """Return the ways to a model in the order in which they are tried, then those to its fallbacks.

        Routes with a condition, which follow a failure of one kind only, come last. The order of weighted routes is
        drawn from `seed`.

        Raises:
            ModelNotFoundError: One of the names fits no entry.
        """
        names = (name, *fallbacks)
        kept = self._written_order(names) if sum(map(len, names)) <= _LONGEST_KEPT else None
        return self._find_routes(names, seed) if kept is None else kept

    @cached_property
    def _written_order(self) -> Callable[[tuple[str, ...]], Sequence[Route] | None]:
        """Returns, and keeps, the routes to models and fallbacks in their one order; None if the seed decides."""

        @lru_cache(maxsize=_MOST_KEPT)
        def find(names: tuple[str, ...]) -> Sequence[Route] | None:
            routes = self._find_routes(names, "")
            return None if any(route.entry.is_drawn for route in routes) else routes

        return find

    def _find_routes(self, names: Sequence[str], seed: str) -> Sequence[Route]:
        routes = [route for asked in names for route in self._routes_to(asked, seed)]
        for asked in names:
            entry = self.find(asked)
            for model in entry.context_window_fallbacks:
                routes += self._routes_to(model, seed, "context_window")
            for model in entry.content_filter_fallbacks:
                routes += self._routes_to(model, seed, "content_filter")
        return tuple(routes)

    def _routes_to(self, asked: str, seed: str, condition: Condition | None = None) -> Iterator[Route]:
        entry = self.find(asked)
        for options in entry.ordered_routes(seed):
            provider, model = options.route.split("/", 1)
            known = self.providers[provider]
            if "*" in model:
                if not may_be_asked(known.kind, asked, model):
                    raise ModelNotFoundError.of(asked)
                model = asked
            yield Route(provider, known, model, entry, condition, options.native_batch, options.format)

    def having(self, providers: Mapping[str, Provider], models: Mapping[str, Model] | None = None) -> Catalogue:
        """Return the catalogue with other providers, and other models; a `model_copy` would keep this one's routes."""
        models = self.models if models is None else models
        return Catalogue(strict_params=self.strict_params, providers=providers, models=models)

    def look_up_prices(self) -> None:
        """Look up the prices of all models now, as the first look-up loads a large table and no job should wait."""
        for name in self.names():
            for route in self.routes(name):
                route.rates()

    @cached_property
    def written_routes(self) -> frozenset[str]:
        """The routes that name their provider's model, without those with globs."""
        options = (route for model in self.models.values() for route in model.ordered_routes())
        return frozenset(option.route for option in options if "*" not in option.route)

    def names(self) -> list[str]:
        """Return the names of the models without globs, sorted."""
        return sorted(name for name in self.models if "*" not in name)

    def entries(self) -> list[str]:
        """Return the names of all entries: globs in the order in which they are tried, then `names`."""
        return [name for name in self.models if "*" in name] + self.names()
