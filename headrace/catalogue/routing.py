"""The routes that can serve a request: those to its model, then to its fallbacks, whose formats can honour it.

The API uses this list before it accepts a job, and a worker before it calls a provider.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headrace.catalogue.models import Catalogue, Condition, Route
from headrace.errors import InvalidRequestError
from headrace.formats.chat.request import ChatRequest
from headrace.formats.chat.support import dropped_parameters, unsupported_parameter
from headrace.formats.chat.validation import check_text

# Errors that come from the request's own content, by code, with the condition of the routes that may still serve it.
CONDITIONS: Mapping[str, Condition] = {
    "context_length_exceeded": "context_window",
    "content_filter": "content_filter",
}


@dataclass(frozen=True, slots=True)
class UsableRoute:
    """A route, and the parameters of the request that its format drops."""

    route: Route
    dropped: Sequence[str]


def check_servable(
    catalogue: Catalogue,
    chat: ChatRequest,
    request: Mapping[str, Any],
    *,
    metadata: Mapping[str, str] | None,
    seed: str,
) -> list[UsableRoute]:
    """Return the routes for a chat request before its job is accepted. `request` is the document of `chat`.

    Raises:
        ModelNotFoundError: The catalogue does not have the model, or one of the fallbacks.
        InvalidRequestError: No route to the model can honour the request, or Postgres cannot store a text of it.
    """
    check_text(chat.model, "model")
    for key, value in (metadata or {}).items():
        check_text(key + value, f"metadata.{key}")
    for index, fallback in enumerate(chat.fallbacks or ()):
        catalogue.find(fallback, param=f"fallbacks[{index}]")
    return usable_routes(catalogue, request, seed=seed)


def usable_routes(catalogue: Catalogue, request: Mapping[str, Any], *, seed: str) -> list[UsableRoute]:
    """Return the routes that can honour a request, in the order in which they are tried; at least one.

    The order of weighted routes is drawn from `seed`: a job that gives its id keeps its order.

    Raises:
        ModelNotFoundError: The catalogue does not have the model, or one of the fallbacks.
        InvalidRequestError: No route can honour the request; the error names what the first route refuses.
    """
    strict = catalogue.strict_params or bool(request.get("strict_params"))
    usable = []
    refusal: InvalidRequestError | None = None
    for route in catalogue.routes(request["model"], request.get("fallbacks") or (), seed=seed):
        kind = route.provider.kind
        try:
            dropped = dropped_parameters(kind, route.model, request)
            if strict and dropped:
                raise unsupported_parameter(dropped[0], kind)
        except InvalidRequestError as error:
            refusal = refusal or error
        else:
            usable.append(UsableRoute(route, dropped))
    if refusal is not None and all(way.route.condition is not None for way in usable):
        raise refusal
    return usable
