"""The pace at which lines of batches are fed: the requests and tokens a minute of their key and its account.

A line counts in the same windows as requests do, and its tokens are corrected when it ends, as for any job. A key
without limits costs one short query every two seconds.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import orjson

from headrace.batches.endpoints import ENDPOINTS
from headrace.catalogue.file import CatalogueFile
from headrace.catalogue.routing import usable_routes
from headrace.errors import InvalidRequestError
from headrace.formats.chat.usage import estimate_demand
from headrace.formats.translation import Translation
from headrace.quotas.cost import check_priced
from headrace.quotas.gate import Gate, Scope
from headrace.quotas.queries import find_limits
from headrace.runtime.offload import offloaded
from headrace.stores.connections import Row
from headrace.stores.database import Database

# Seconds for which a key's limits are not read again.
_LOOK_SECONDS = 2.0
# Seconds after which a line without room is tried again at the latest, as jobs that end return unused tokens.
_LONGEST_REST_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Bounds:
    """What limits the lines of a key: rates, and a budget, which requires that every line has a price."""

    rates: Sequence[Scope]
    has_budget: bool


@dataclass(slots=True)
class Ask:
    """What the rates are asked for a line: enough to ask again without the line's request, which may have 20 MB."""

    offset: int
    """The place in the input from which the line is the next."""
    job_id: str
    tokens: int
    admitted: bool = False


class Pace:
    """The pace of all batches of one scheduler."""

    def __init__(self, database: Database, file: CatalogueFile, gate: Gate) -> None:
        self._database = database
        self._file = file
        self._gate = gate
        self._bounds: dict[str, tuple[float, Bounds | None]] = {}
        self._rests: dict[str, float] = {}
        self._waiting: dict[str, Ask] = {}

    def rests(self, batch: Row) -> bool:
        """Return whether a batch's next line has to wait."""
        return self._rests.get(batch.id, 0.0) > time.monotonic()

    async def bounds(self, batch: Row) -> Bounds | None:
        """Return the bounds of a batch's key, or None if it has no limits."""
        found = self._bounds.get(batch.key_id)
        if found is None or time.monotonic() > found[0] + _LOOK_SECONDS:
            limits = await find_limits(self._database, batch.key_id)
            rates = [scope for scope in (Scope(name, of.rates) for name, of in limits.items()) if scope.is_limited]
            has_budget = any(of.has_budget for of in limits.values())
            found = time.monotonic(), Bounds(rates, has_budget) if rates or has_budget else None
            self._bounds[batch.key_id] = found
        return found[1]

    def waiting(self, batch: Row, offset: int) -> Ask | None:
        """Return what was asked for a batch's line at an offset, if the rates had no room for that line."""
        ask = self._waiting.get(batch.id)
        return ask if ask is not None and ask.offset == offset else None

    async def allows(self, batch: Row, bounds: Bounds, offset: int, job_id: str, request: str) -> bool:
        """Count the line at an offset, whose request is JSON, in the rates, unless they have admitted it before.

        Returns False, and lets the batch rest, if the rates have no room for the line, or it has no price.
        """
        size = len(request)
        translation = await offloaded(size, _translate, batch, request)
        if bounds.has_budget and not await offloaded(size, self._is_priced, batch, translation):
            self._rests[batch.id] = time.monotonic() + _LONGEST_REST_SECONDS
            return False
        if not bounds.rates:
            return True
        ask = self.waiting(batch, offset)
        if ask is None:
            demand = await offloaded(size, estimate_demand, translation.chat, output_limit=None)
            ask = Ask(offset, job_id, demand.total_tokens)
        return await self.admits(batch, bounds, ask)

    async def admits(self, batch: Row, bounds: Bounds, ask: Ask) -> bool:
        """Count a line in the rates once. Returns False, and lets the batch rest, if they have no room for the line."""
        if ask.admitted:
            return True
        wait = min(_LONGEST_REST_SECONDS, await self._gate.admit_line(bounds.rates, ask.job_id, ask.tokens))
        if wait:
            self._waiting[batch.id] = ask
            self._rests[batch.id] = time.monotonic() + wait
        ask.admitted = not wait
        return ask.admitted

    def _is_priced(self, batch: Row, translation: Translation) -> bool:
        # Validation has checked the price, but the budget or the configuration may be newer.
        catalogue = self._file.current
        try:
            usable = usable_routes(catalogue, translation, format=ENDPOINTS[batch.endpoint].format, seed=batch.id)
            check_priced(catalogue, [way.route for way in usable], translation.chat)
        except InvalidRequestError as error:
            return error.code != "model_not_priced"
        return True

    def forget(self, active: set[str]) -> None:
        """Forget the rests and the waiting lines of batches that are no longer active."""
        for batch_id in self._rests.keys() - active:
            del self._rests[batch_id]
            self._waiting.pop(batch_id, None)


def _translate(batch: Row, request: str) -> Translation:
    return ENDPOINTS[batch.endpoint].translate(orjson.loads(request))
