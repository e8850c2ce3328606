"""At which pace lines of batches run: that of the requests and tokens a minute of their key and its account.

A line is taken from the same windows as requests, and its tokens are put right when it has ended, as any job's. A key
without limits costs one small question every two seconds.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headrace.catalogue.file import CatalogueFile
from headrace.catalogue.routing import usable_routes
from headrace.errors import InvalidRequestError
from headrace.formats.chat.usage import estimate_demand
from headrace.quotas.cost import check_priced
from headrace.quotas.gate import Gate, Scope
from headrace.quotas.queries import find_limits
from headrace.runtime.offload import offloaded
from headrace.stores.connections import Row
from headrace.stores.database import Database

# Seconds for which a key's limits are not read again.
_LOOK_SECONDS = 2.0
# Seconds after which a line that had no room is tried again, at the latest: what ended early gives some back.
_LONGEST_REST_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Bounds:
    """What holds up lines of a key: rates, and a budget, under which each has to have a price."""

    rates: Sequence[Scope]
    has_budget: bool


class Pace:
    """The pace of all batches of one scheduler."""

    def __init__(self, database: Database, file: CatalogueFile, gate: Gate) -> None:
        self._database = database
        self._file = file
        self._gate = gate
        self._bounds: dict[str, tuple[float, Bounds | None]] = {}
        self._rests: dict[str, float] = {}

    def rests(self, batch: Row) -> bool:
        """Tell whether a batch's next line has to wait."""
        return self._rests.get(batch.id, 0.0) > time.monotonic()

    async def bounds(self, batch: Row) -> Bounds | None:
        """Return what holds up lines of a batch's key, or None if nothing does."""
        found = self._bounds.get(batch.key_id)
        if found is None or time.monotonic() > found[0] + _LOOK_SECONDS:
            limits = await find_limits(self._database, batch.key_id)
            rates = [scope for scope in (Scope(name, of.rates) for name, of in limits.items()) if scope.is_limited]
            has_budget = any(of.has_budget for of in limits.values())
            found = time.monotonic(), Bounds(rates, has_budget) if rates or has_budget else None
            self._bounds[batch.key_id] = found
        return found[1]

    async def allows(self, batch: Row, bounds: Bounds, job_id: str, request: Mapping[str, Any], *, size: int) -> bool:
        """Take a line from the rates, whose request has `size` bytes.

        If it has no room there, or no price, its batch rests, and this is False.
        """
        wait = 0.0
        if bounds.has_budget and not await offloaded(size, self._is_priced, batch, request):
            wait = _LONGEST_REST_SECONDS
        elif bounds.rates:
            demand = await offloaded(size, estimate_demand, request, output_limit=None)
            wait = min(_LONGEST_REST_SECONDS, await self._gate.admit_line(bounds.rates, job_id, demand.total_tokens))
        if wait:
            self._rests[batch.id] = time.monotonic() + wait
        return not wait

    def _is_priced(self, batch: Row, request: Mapping[str, Any]) -> bool:
        # It was checked when the batch began, but the budget or the configuration may be newer.
        catalogue = self._file.current
        try:
            check_priced(catalogue, [way.route for way in usable_routes(catalogue, request, seed=batch.id)], request)
        except InvalidRequestError as error:
            return error.code != "model_not_priced"
        return True

    def forget(self, active: set[str]) -> None:
        """Let go of what is known of batches that are not active any more."""
        for batch_id in self._rests.keys() - active:
            del self._rests[batch_id]
