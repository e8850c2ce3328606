"""An upper bound of an answer's cost, before the answer exists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from headrace.catalogue.models import Catalogue, Route
from headrace.errors import InvalidRequestError, shorten
from headrace.formats.chat.usage import estimate_demand


def highest_cost(routes: Sequence[Route], request: Mapping[str, Any], *, whole: bool = True) -> Decimal:
    """Return what an answer to `request` may cost at most, in USD, on the most expensive of its routes.

    Where the request sets no limit, it may be as long as the model can write, or unless `whole`, as long as answers
    usually are. A model without a price costs nothing; under a budget `check_priced` refuses it.
    """
    limits = {route.output_limit for route in routes}
    demands = {limit: estimate_demand(request, output_limit=limit, whole=whole) for limit in limits}
    return max((route.cost(demands[route.output_limit]) or Decimal() for route in routes), default=Decimal())


def check_priced(catalogue: Catalogue, routes: Sequence[Route], request: Mapping[str, Any]) -> None:
    """Check that each of the routes that may be tried has a price, as a budget demands.

    Raises:
        InvalidRequestError: One has none; the error names the parameter that leads to it.
    """
    unpriced = {route.name for route in routes if route.rates() is None}
    if not unpriced:
        return
    names = {"model": request["model"]}
    names |= {f"fallbacks[{index}]": name for index, name in enumerate(request.get("fallbacks") or ())}
    for param, name in names.items():
        if unpriced.intersection(route.name for route in catalogue.routes(name)):
            raise InvalidRequestError(
                f"Invalid '{param}': the price of '{shorten(name)}', or of a model that may answer in its place, is "
                "not known, and this API key or its account has a budget. Ask for a model with a price.",
                param=param,
                code="model_not_priced",
            )
