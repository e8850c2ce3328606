"""Reads headrace.toml, and finds what is wrong or doubtful in it."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from headrace.catalogue.builtin import builtin
from headrace.catalogue.models import NATIVE_BATCH_KINDS, Catalogue, Model, RouteOptions, may_be_asked
from headrace.catalogue.problems import Problem, locate, problems_of
from headrace.errors import ModelNotFoundError
from headrace.formats.chat.support import Kind

_DEFAULT_FILE = Path("headrace.toml")


class ConfigurationError(Exception):
    """The configuration file is not valid. The message has a line for each problem, with its place."""


def configuration_file(path: Path | None) -> Path | None:
    """Return the file to read: `path`, else `headrace.toml` in the working directory, else None."""
    return path or (_DEFAULT_FILE if _DEFAULT_FILE.exists() else None)


def load_catalogue(path: Path | None) -> Catalogue:
    """Return the catalogue of `configuration_file(path)`, or the built-in one without a file.

    The demo models are not in it: `headrace.catalogue.demo` adds them.

    Raises:
        ConfigurationError: The file does not exist, is not TOML, or is not valid. The message names the places.
    """
    file = configuration_file(path)
    if file is None:
        return builtin()
    try:
        catalogue, problems = read_catalogue(file)
    except ConfigurationError as error:
        raise ConfigurationError(f"HEADRACE_CONFIG: {error}") from error
    if catalogue is None:
        raise ConfigurationError("\n".join(problem.render(file) for problem in problems))
    return catalogue


def read_catalogue(path: Path) -> tuple[Catalogue | None, list[Problem]]:
    """Return the catalogue of a file, or None if the file is not valid, with all its errors and warnings.

    Raises:
        ConfigurationError: The file does not exist, or cannot be read.
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
    """Yield names of providers and models that do not exist, and options that a provider does not support."""
    for name, entry in catalogue.providers.items():
        if entry.limit_parameter is not None and entry.kind != "openai":
            message = f"a name can be chosen for providers of kind openai, not {entry.kind}"
            yield Problem(("providers", name, "limit_parameter"), message)
    for name, model in catalogue.models.items():
        for index, route in enumerate(model.routes):
            text = route if isinstance(route, str) else route.route
            provider = text.split("/", 1)[0]
            if provider not in catalogue.providers:
                yield Problem.unknown(
                    ("models", name, "routes", index), f"route '{text}' names provider", provider, catalogue.providers
                )
                continue
            kind = catalogue.providers[provider].kind
            if "*" in text and "*" not in name and not may_be_asked(kind, name, text.split("/", 1)[1]):
                yield Problem(
                    ("models", name, "routes", index),
                    f"the route '{text}' asks a provider of kind {kind} for '{name}', which cannot be in its URL: "
                    "name the provider's model in place of '*'",
                )
            if isinstance(route, RouteOptions):
                for field, message in _misplaced(route, kind):
                    yield Problem(("models", name, "routes", index, field), message)
        for field in ("context_window_fallbacks", "content_filter_fallbacks"):
            for index, fallback in enumerate(getattr(model, field)):
                try:
                    catalogue.find(fallback)
                except ModelNotFoundError:
                    yield Problem.unknown(("models", name, field, index), "model", fallback, catalogue.models)


def _misplaced(route: RouteOptions, kind: Kind) -> Iterator[tuple[str, str]]:
    """Yield the options of a route that a provider of this kind does not support, each with what is wrong."""
    if route.native_batch and kind not in NATIVE_BATCH_KINDS:
        yield "native_batch", f"native batches are for providers of kind {' and '.join(NATIVE_BATCH_KINDS)}, not {kind}"
    if route.native_batch and route.format == "responses":
        yield "native_batch", "native batches are for routes of format chat, not responses"
    if route.format is not None and kind != "openai":
        yield "format", f"a format can be chosen for providers of kind openai, not {kind}"


def _route_names(model: Model) -> list[str]:
    return [route.route for route in model.ordered_routes()]


def _doubts(catalogue: Catalogue) -> Iterator[Problem]:
    """Yield the warnings: what is valid, but hardly intended."""
    for name, provider in catalogue.providers.items():
        key = provider.api_key
        if key is not None and key.startswith("env:") and provider.secret() is None:
            variable = key.removeprefix("env:")
            yield Problem(("providers", name, "api_key"), f"the variable {variable} is not set here", fatal=False)
        elif key is not None and not key.startswith("env:"):
            message = "the key itself is in the file; `env:NAME` keeps it out"
            yield Problem(("providers", name, "api_key"), message, fatal=False)
        routed = {text.split("/", 1)[0] for model in catalogue.models.values() for text in _route_names(model)}
        if name not in routed:
            yield Problem(("providers", name), "no model is routed to it", fatal=False)
