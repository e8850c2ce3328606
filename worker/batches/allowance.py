"""How many lines of a batch the budgets of its key and account allow to run at one time.

What a line costs is known once it has ended, so as many run as what is left of a budget would pay for at the mean
cost of those before.
"""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from decimal import Decimal

from headrace.database import Database, Row
from headrace.quotas.queries import find_left

# So long the ledger is not asked again; what batches spend meanwhile is counted.
_LOOK_SECONDS = 2.0
# Of a batch of which no line has ended yet.
_FIRST_LINES = 10


class Allowances:
    """What is left of budgets, for all batches."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._look_at = 0.0
        self._left: dict[str, Decimal | None] = {}
        self._spent_then: dict[str, Decimal] = {}
        self._spent: dict[str, Decimal] = {}
        self._sharing: Counter[str] = Counter()

    async def look(self, batches: Sequence[Row]) -> None:
        """Take note of what all active batches have spent, and now and then of what is left."""
        self._sharing = Counter(batch.key_id for batch in batches)
        self._spent = defaultdict(Decimal)
        for batch in batches:
            self._spent[batch.key_id] += batch.cost or 0
        if time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + _LOOK_SECONDS
            self._left.clear()
        for key_id in self._sharing.keys() - self._left.keys():
            self._left[key_id] = await find_left(self._database, key_id)
            self._spent_then[key_id] = self._spent[key_id]

    def lines(self, batch: Row) -> float:
        """Return how many lines of a batch may run at one time; without a budget any number."""
        left = self._left[batch.key_id]
        if left is None:
            return math.inf
        left -= max(Decimal(), self._spent[batch.key_id] - self._spent_then[batch.key_id])
        if left <= 0:
            return 0
        if not batch.completed:
            return _FIRST_LINES
        mean = (batch.cost or Decimal()) / batch.completed
        return max(1, int(left / mean / self._sharing[batch.key_id])) if mean else math.inf
