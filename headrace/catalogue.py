"""Which models there are, who serves them, at what price: `headrace.toml`, or the built-in table without one.

Keys are named, not held: `api_key = "env:OPENAI_API_KEY"` is read from the environment when a call needs it.
"""

from __future__ import annotations

import fnmatch
import os
import random
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from headrace import known_models
from headrace.chat.support import Kind
from headrace.chat.usage import TokenUsage
from headrace.configuration import Problem, locate, problems_of
from headrace.errors import ModelNotFoundError
from headrace.known_models import Ability, Rates

# Every model in the list has a creation time; ours is the day when the catalogue was made.
CATALOGUE_CREATED = 1_763_856_000

NATIVE_BATCH_KINDS: Sequence[Kind] = ("openai", "anthropic")
"""The wire formats whose providers have batch APIs that we know."""

_SOURCE = "headrace.toml"
_DEFAULT_FILE = Path("headrace.toml")

# The wire formats whose requests have the model's name in the URL, where a `/` names another kind of resource.
_NAMES_IN_URLS: Sequence[Kind] = ("gemini",)

Condition = Literal["context_window", "content_filter"]
"""When a route is tried: only after a route failed because of this."""


def _is_plain(name: str) -> bool:
    """Return whether a name is printable and has no `..`, no backslash and no empty part between `/`."""
    return name.isprintable() and ".." not in name and "\\" not in name and "" not in name.split("/")


class ConfigurationError(Exception):
    """The configuration file is not valid; the message has a line for each problem, with its place."""


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


@dataclass(frozen=True, slots=True)
class _BuiltIn:
    """A provider that a variable switches on. Models newer than our table are found by `globs`."""

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


def _builtin() -> Catalogue:
    there = [built_in for built_in in _BUILT_IN if os.environ.get(built_in.variable)]
    return Catalogue(
        providers={
            one.kind: Provider(kind=one.kind, base_url=one.base_url, api_key=f"env:{one.variable}") for one in there
        },
        models={name: Model(routes=[f"{one.kind}/{name}"]) for one in there for name in one.models()},
    )


def configuration_file(path: Path | None) -> Path | None:
    """Return the file to read: this one, else `headrace.toml` in the working directory; None if neither is there."""
    return path or (_DEFAULT_FILE if _DEFAULT_FILE.exists() else None)


def load_catalogue(path: Path | None) -> Catalogue:
    """Read the file; without one, `headrace.toml` in the working directory; without that, the built-in table.

    The demo models are not in it: `headrace.demo_models` adds them.

    Raises:
        ConfigurationError: It is not there, not TOML, or says what it may not. The message names the place.
    """
    file = configuration_file(path)
    if file is None:
        return _builtin()
    try:
        catalogue, problems = read_catalogue(file)
    except ConfigurationError as error:
        raise ConfigurationError(f"HEADRACE_CONFIG: {error}") from error
    if catalogue is None:
        raise ConfigurationError("\n".join(problem.render(file) for problem in problems))
    return catalogue


def read_catalogue(path: Path) -> tuple[Catalogue | None, list[Problem]]:
    """Return the catalogue of a file, or None if it is not valid, and all that is wrong or doubtful in the file.

    Raises:
        ConfigurationError: There is no such file, or it cannot be read.
    """
    try:
        text = path.read_text()
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: it is not text in UTF-8") from error
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        return None, [Problem.of_toml(error, text)]
    try:
        catalogue = Catalogue.model_validate(document)
    except ValidationError as error:
        return None, locate(text, problems_of(error, Catalogue))
    problems = locate(text, [*_dead_ends(catalogue), *_doubts(catalogue)])
    return (None if any(problem.fatal for problem in problems) else catalogue), problems


def _dead_ends(catalogue: Catalogue) -> Iterator[Problem]:
    """Yield the names that lead nowhere."""
    for name, model in catalogue.models.items():
        for index, route in enumerate(model.routes):
            text = route if isinstance(route, str) else route.route
            provider = text.split("/", 1)[0]
            if provider not in catalogue.providers:
                yield Problem.unknown(
                    ("models", name, "routes", index), f"route '{text}' names provider", provider, catalogue.providers
                )
            elif isinstance(route, RouteOptions) and route.native_batch:
                kind = catalogue.providers[provider].kind
                if kind not in NATIVE_BATCH_KINDS:
                    told = f"native batches are for providers of kind {' and '.join(NATIVE_BATCH_KINDS)}, not {kind}"
                    yield Problem(("models", name, "routes", index, "native_batch"), told)
        for field in ("context_window_fallbacks", "content_filter_fallbacks"):
            for index, fallback in enumerate(getattr(model, field)):
                try:
                    catalogue.find(fallback)
                except ModelNotFoundError:
                    yield Problem.unknown(("models", name, field, index), "model", fallback, catalogue.models)


def _route_names(model: Model) -> list[str]:
    return [route.route for route in model.ordered_routes()]


def _doubts(catalogue: Catalogue) -> Iterator[Problem]:
    """Yield what is valid, but hardly meant."""
    for name, provider in catalogue.providers.items():
        key = provider.api_key
        if key is not None and key.startswith("env:") and provider.secret() is None:
            variable = key.removeprefix("env:")
            yield Problem(("providers", name, "api_key"), f"the variable {variable} is not set here", fatal=False)
        elif key is not None and not key.startswith("env:"):
            told = "the key itself is in the file; `env:NAME` keeps it out"
            yield Problem(("providers", name, "api_key"), told, fatal=False)
        routed = {text.split("/", 1)[0] for model in catalogue.models.values() for text in _route_names(model)}
        if name not in routed:
            yield Problem(("providers", name), "no model is routed to it", fatal=False)
