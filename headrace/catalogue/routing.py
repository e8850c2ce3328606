"""The routes that can serve a request: those to its model, then to its fallbacks, whose formats can honour it.

The API uses this list before it accepts a job, and a worker before it calls a provider.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from headrace.catalogue.models import Catalogue, Condition, Route
from headrace.errors import InvalidRequestError
from headrace.formats.chat.dropped import dropped_parameters, unsupported_parameter
from headrace.formats.chat.support import Format
from headrace.formats.chat.validation import check_metadata, check_text
from headrace.formats.translation import Translation

# Errors that come from the request's own content, by code, with the condition of the routes that may still serve it.
CONDITIONS: Mapping[str, Condition] = {
    "context_length_exceeded": "context_window",
    "content_filter": "content_filter",
}


@dataclass(frozen=True, slots=True)
class UsableRoute:
    """A route, and the parameters of the client's request, by their paths, that its format drops."""

    route: Route
    dropped: Sequence[str]


class Terms(Protocol):
    """What a checked request of any format asks of the catalogue."""

    @property
    def model(self) -> str:
        """The model's name."""

    @property
    def fallbacks(self) -> Sequence[str] | None:
        """The models to try where that one fails."""


def check_servable(
    catalogue: Catalogue,
    terms: Terms,
    translation: Translation,
    *,
    format: Format,  # noqa: A002  (the word for it everywhere)
    metadata: Mapping[str, str] | None,
    seed: str,
) -> list[UsableRoute]:
    """Return the routes for a request before its job is accepted: `terms` is checked, `translation` its meaning.

    Raises:
        ModelNotFoundError: The catalogue does not have the model, or one of the fallbacks.
        InvalidRequestError: No route to the model can honour the request, or Postgres cannot store a text of it.
    """
    check_text(terms.model, "model")
    check_metadata(metadata)
    for index, fallback in enumerate(terms.fallbacks or ()):
        catalogue.find(fallback, param=f"fallbacks[{index}]")
    return usable_routes(catalogue, translation, format=format, seed=seed)


def usable_routes(
    catalogue: Catalogue,
    translation: Translation,
    *,
    format: Format,  # noqa: A002  (the word for it everywhere)
    seed: str,
) -> list[UsableRoute]:
    """Return the routes that can honour a request, in the order in which they are tried; at least one.

    `format` is the client's. The order of weighted routes is drawn from `seed`: a job that gives its id keeps its
    order.

    Raises:
        ModelNotFoundError: The catalogue does not have the model, or one of the fallbacks.
        InvalidRequestError: No route can honour the request; the error names what the first route refuses.
    """
    chat = translation.chat
    strict = catalogue.strict_params or bool(chat.get("strict_params"))
    usable = []
    refusal: InvalidRequestError | None = None
    for route in catalogue.routes(chat["model"], chat.get("fallbacks") or (), seed=seed):
        try:
            # A provider of the client's own format gets the request as it came.
            dropped = () if route.format == format else _dropped(route, translation)
            if strict and dropped:
                raise unsupported_parameter(dropped[0], route.format)
        except InvalidRequestError as error:
            refusal = refusal or error
        else:
            usable.append(UsableRoute(route, dropped))
    if refusal is not None and all(way.route.condition is not None for way in usable):
        raise refusal
    return usable


def _dropped(route: Route, translation: Translation) -> Sequence[str]:
    """Return the client's paths of what is dropped on a route of another format than the client's.

    Raises:
        InvalidRequestError: The route's format cannot honour the request; the error names the client's path.
    """
    for path, kind in translation.own.items():
        raise unsupported_parameter(path, route.format, kind=kind)
    try:
        dropped = dropped_parameters(route.format, route.model, translation.chat)
    except InvalidRequestError as error:
        raise error if error.param is None else error.about(translation.path(error.param)) from None
    return [*translation.dropped, *map(translation.path, dropped)]
