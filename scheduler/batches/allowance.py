"""How many lines of a batch the budgets of its key and its account pay for.

The rest of a budget, less the possible cost of running lines, is shared among the batches under it that have more to
run. A batch's mean cost per line is known once some of its lines have ended. Before that, the cost is estimated, and no
more lines run than have ended. Lines that go to a provider's own batch API take hours to end, so their number follows
the estimate alone.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import orjson
from sqlalchemy.exc import SQLAlchemyError

from headrace.batches.endpoints import ENDPOINTS
from headrace.batches.state import BatchState
from headrace.catalogue.file import CatalogueFile
from headrace.catalogue.models import Catalogue
from headrace.catalogue.routing import usable_routes
from headrace.errors import InvalidRequestError
from headrace.providers.batch_apis.apis import BATCH_APIS
from headrace.quotas.cost import highest_cost
from headrace.quotas.queries import find_left
from headrace.runtime.offload import offloaded
from headrace.stores.connections import Row
from headrace.stores.database import Database
from scheduler.batches.agents import BatchAgents
from scheduler.batches.input import read_input

log = logging.getLogger(__name__)

# Seconds between two questions to the ledger; the spending of batches in between is counted here.
_LOOK_SECONDS = 2.0


def outstanding(batch: Row) -> int:
    """Return how many of a batch's lines are jobs that have not ended."""
    lines: int = batch.fed - batch.completed - batch.failed - batch.cancelled
    return lines


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number of lines, and the highest cost of all of them in USD."""

    lines: int
    cost: Decimal

    @property
    def mean(self) -> Decimal:
        """The cost of one line in USD."""
        return self.cost / self.lines if self.lines else Decimal()

    def plus(self, more: Estimate) -> Estimate:
        """Return the sum of both."""
        return Estimate(self.lines + more.lines, self.cost + more.cost)


_UNKNOWN = Estimate(1, Decimal(1_000_000_000))
"""The estimate of a line whose cost cannot be found: more than any budget has."""


@dataclass(slots=True)
class Purse:
    """The money, in USD, that a batch may spend on lines for its provider's batch API. None is without a limit.

    `least` lines are paid for in any case.
    """

    money: Decimal | None = None
    least: int = 0
    taken: Estimate = Estimate(0, Decimal())

    async def take(self, database: Database, catalogue: Catalogue, batch: Row, most: int) -> int:
        """Return how many of the next `most` lines of a batch the purse pays for."""
        if self.money is None:
            return most
        if batch.completed:
            mean = _mean(batch)
            lines = min(most, int(self.money / mean)) if mean else most
            self.taken = Estimate(lines, lines * mean)
        else:
            self.taken = await estimate(database, catalogue, batch, ahead=True, most=most, money=self.money)
        self.money = self.taken.cost
        return min(most, max(self.taken.lines, self.least))


@dataclass(slots=True)
class _Budget:
    """The budget of a key or an account: the USD that are left, and the part of them that no batch has reserved."""

    left: Decimal
    free: Decimal
    idle: bool = True
    """Whether no line runs under this budget."""
    sharing: int = 0
    """How many batches have more to run and no share yet."""


@dataclass(frozen=True, slots=True)
class _Share:
    """The USD that a batch may spend on new lines. With `alone`, one line may begin that costs more."""

    money: Decimal
    alone: bool


class Allowances:
    """The shares of all batches in the budgets of their keys and accounts."""

    def __init__(self, database: Database, file: CatalogueFile) -> None:
        self._database = database
        self._file = file
        self._look_at = 0.0
        self._keys: set[str] = set()
        self._left: dict[str, Decimal] = {}
        self._spent_then: dict[str, Decimal] = {}
        self._batches: dict[str, Row] = {}
        self._estimates: dict[tuple[str, str | None], Estimate] = {}
        self._purses: dict[str, Purse] = {}
        self._shares: dict[str, _Share] = {}

    async def look(self, batches: Sequence[Row]) -> None:
        """Note how far the active batches are, and share what is left of budgets, read now and then, among them."""
        keys = {batch.key_id for batch in batches}
        if time.monotonic() >= self._look_at or not keys <= self._keys:
            self._left = await find_left(self._database, keys) if keys else {}
            self._look_at = time.monotonic() + _LOOK_SECONDS
            self._keys = keys
            self._spent_then = {batch.id: batch.cost or Decimal() for batch in batches}
            self._batches = {}
        # The last known spending of a batch that has ended counts until the ledger is asked again.
        self._batches |= {batch.id: batch for batch in batches}
        await self._estimate(batches)
        self._share_out([batch for batch in batches if _has_more(batch) and batch.id not in self._purses])

    def lines(self, batch: Row) -> float:
        """Return how many lines of a batch may run at one time: infinitely many without a budget."""
        if not self._is_limited(batch):
            return math.inf
        running, share, cost = outstanding(batch), self._shares.get(batch.id), self._line_cost(batch)
        if share is None:
            return running
        more = max(int(share.alone), math.floor(share.money / cost) if cost else math.inf)
        if not batch.completed:
            more = min(more, max(1, batch.failed) - running)
        return running + max(0, more)

    @contextlib.contextmanager
    def purse(self, batch: Row) -> Iterator[Purse]:
        """Reserve a batch's share for lines that are handed to its provider meanwhile; no other batch gets it."""
        share = self._shares.pop(batch.id, _Share(Decimal(), alone=False))
        purse = Purse(share.money, least=int(share.alone)) if self._is_limited(batch) else Purse()
        self._purses[batch.id] = purse
        try:
            yield purse
        finally:
            del self._purses[batch.id]
            if purse.taken.lines and not batch.completed:
                known = self._estimates.get(_key(batch)) if batch.fed else None
                self._estimates[_key(batch)] = purse.taken if known is None else known.plus(purse.taken)

    def _share_out(self, waiting: Sequence[Row]) -> None:
        budgets = {scope_id: _Budget(left, left) for scope_id, left in self._left.items()}
        for batch in self._batches.values():
            self._count(batch, _of(batch, budgets))
        waiting = [batch for batch in waiting if all(budget.left > 0 for budget in _of(batch, budgets))]
        for batch in waiting:
            for budget in _of(batch, budgets):
                budget.sharing += 1
        self._shares = {batch.id: self._share(batch, _of(batch, budgets)) for batch in waiting}

    def _count(self, batch: Row, budgets: Sequence[_Budget]) -> None:
        """Subtract what a batch has spent since the ledger was asked, and reserve what its running lines may cost."""
        spent = max(Decimal(), (batch.cost or Decimal()) - self._spent_then.get(batch.id, Decimal()))
        purse = self._purses.get(batch.id)
        held = outstanding(batch) * self._line_cost(batch) + ((purse and purse.money) or 0)
        for budget in budgets:
            budget.left -= spent
            budget.free = budget.free - spent - held
            budget.idle &= not outstanding(batch) and purse is None

    def _share(self, batch: Row, budgets: Sequence[_Budget]) -> _Share:
        """Take a batch's share of the free money: as much as any other's, but at least the cost of one line."""
        cost = self._line_cost(batch)
        money = min((budget.free / budget.sharing for budget in budgets), default=Decimal())
        if money < cost:
            money = cost if all(budget.free >= cost for budget in budgets) else Decimal()
        # Less than the cost of a line is left: one line exceeds the budget at most.
        alone = all(budget.idle for budget in budgets)
        for budget in budgets:
            budget.free -= money
            budget.sharing -= 1
            budget.idle &= not alone
        return _Share(money, alone)

    def _is_limited(self, batch: Row) -> bool:
        return bool(self._left.keys() & {batch.key_id, batch.account_id})

    def _line_cost(self, batch: Row) -> Decimal:
        if batch.completed:
            return _mean(batch)
        known = self._estimates.get(_key(batch))
        return Decimal() if known is None else known.mean

    async def _estimate(self, batches: Sequence[Row]) -> None:
        """Estimate the cost of lines for batches without an ended line: by the lines at a provider, or by the first."""
        self._estimates = {key: known for key, known in self._estimates.items() if key[0] in self._batches}
        for batch in batches:
            runs = _has_more(batch) or outstanding(batch)
            if self._is_limited(batch) and runs and not batch.completed and _key(batch) not in self._estimates:
                most = 1 if batch.native_route is None else max(1, batch.fed)
                try:
                    known = await estimate(self._database, self._file.current, batch, most=most)
                except SQLAlchemyError:
                    raise
                except Exception:
                    log.exception("could not estimate the cost of a line of %s", batch.id)
                    known = _UNKNOWN
                self._estimates[_key(batch)] = known


def _mean(batch: Row) -> Decimal:
    mean: Decimal = (batch.cost or Decimal()) / batch.completed
    return mean


def _of(batch: Row, budgets: Mapping[str, _Budget]) -> list[_Budget]:
    return [budgets[scope_id] for scope_id in (batch.key_id, batch.account_id) if scope_id in budgets]


def _key(batch: Row) -> tuple[str, str | None]:
    return batch.id, batch.native_route


def _has_more(batch: Row) -> bool:
    return bool(batch.state == BatchState.IN_PROGRESS and batch.fed < batch.total and not batch.overdue)


async def estimate(
    database: Database,
    catalogue: Catalogue,
    batch: Row,
    *,
    most: int,
    ahead: bool = False,
    money: Decimal | None = None,
) -> Estimate:
    """Estimate the cost of `most` lines of a batch at most, and of no more than `money` pays for.

    It begins with the first line, or with `ahead` with the next line to be fed.
    """
    lines, cost = 0, Decimal()
    async with aclosing(_requests(database, batch, ahead=ahead)) as requests:
        while lines < most and (sized := await anext(requests, None)) is not None:
            size, request = sized
            one = await offloaded(size, _cost, catalogue, batch, request)
            del sized, request  # the next one may be as large
            if money is not None and cost + one > money:
                break
            lines += 1
            cost += one
    return Estimate(lines, cost)


async def _requests(database: Database, batch: Row, *, ahead: bool) -> AsyncGenerator[tuple[int, dict[str, Any]], None]:
    """Yield the request of each line with the size of the line in bytes."""
    place = {"offset": batch.next_offset, "number": batch.next_line} if ahead else {}
    agents = BatchAgents(database, batch)
    async with aclosing(read_input(database, batch.input_file_id, **place)) as lines:
        async for line in lines:
            assert line.text is not None  # validation has checked it
            size = len(line.text)
            body = (await offloaded(size, orjson.loads, line.text))["body"]
            yield size, await agents.resolve(body)


def _cost(catalogue: Catalogue, batch: Row, request: dict[str, Any]) -> Decimal:
    endpoint = ENDPOINTS[batch.endpoint]
    try:
        translation = endpoint.translate(request)
        usable = usable_routes(catalogue, translation, format=endpoint.format, seed=batch.id)
    except InvalidRequestError:  # no route serves it any more
        return Decimal()
    routes = [way.route for way in usable]
    if batch.native_route is None:
        return highest_cost(routes, translation.chat, whole=False)
    own = [route for route in routes if route.native_batch and route.name == batch.native_route]
    factor = max((BATCH_APIS[route.provider.kind].PRICE_FACTOR for route in own), default=Decimal())
    return highest_cost(own, translation.chat, whole=False) * factor
