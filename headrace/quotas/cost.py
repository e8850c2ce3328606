"""What an answer may cost, before it is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from headrace.catalogue import Route
from headrace.chat.usage import estimate_demand


def highest_cost(routes: Sequence[Route], request: Mapping[str, Any], *, whole: bool = True) -> Decimal:
    """Return what an answer to `request` may cost, in USD, on the dearest of the routes that may be tried.

    Where the request sets no limit, it may be as long as the model can write, or unless `whole`, as long as answers
    usually are. A model without a price costs nothing.
    """
    limits = {route.output_limit for route in routes}
    demands = {limit: estimate_demand(request, output_limit=limit, whole=whole) for limit in limits}
    return max((route.cost(demands[route.output_limit]) or Decimal() for route in routes), default=Decimal())
