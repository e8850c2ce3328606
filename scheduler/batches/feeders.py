"""Feeds all batches whose lines workers run: together they have as many lines at workers as the window allows."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence

from headrace.batches.parcels import count_held
from headrace.batches.shares import room_to_feed, share_window
from headrace.queue import JobQueue
from headrace.stores.connections import Row
from headrace.stores.database import Database
from scheduler.batches.allowance import Allowances, outstanding
from scheduler.batches.feed import Feeder
from scheduler.batches.pace import Pace

# Seconds between two counts of the lines that parcels hold.
_HELD_SECONDS = 5.0
# Inputs that stay open between two feeds, each with a chunk of its file in memory. Other batches open theirs each time,
# which takes a millisecond or two.
_MOST_OPEN_INPUTS = 256


class Feeders:
    """The feeders of batches that have more lines for workers, and what is known of the lines at workers."""

    def __init__(self, database: Database, queue: JobQueue, allowances: Allowances, pace: Pace, *, window: int) -> None:
        """Share a `window` of so many lines."""
        self._database = database
        self._queue = queue
        self._allowances = allowances
        self._pace = pace
        self._window = window
        self._open: dict[str, Feeder] = {}
        self._held: dict[str, int] = {}
        """Lines that parcels hold, of each batch of which workers run others."""
        self._held_until = 0.0

    async def look(self, batches: Sequence[Row]) -> None:
        """Count the lines that parcels hold, of the batches of which workers run others. They may be very many."""
        mixed = {batch.id for batch in batches if batch.has_parcels and batch.native_route is None}
        if mixed != self._held.keys() or (mixed and time.monotonic() > self._held_until):
            self._held = {batch_id: await count_held(self._database, batch_id) for batch_id in mixed}
            self._held_until = time.monotonic() + _HELD_SECONDS

    def count_returned(self, batch_id: str, lines: int) -> None:
        """Subtract lines that leave their parcels from the last count."""
        if batch_id in self._held:
            self._held[batch_id] -= lines

    async def keep(self, feedable: Sequence[Row]) -> None:
        """Close the inputs of all other batches."""
        for batch_id in self._open.keys() - {batch.id for batch in feedable}:
            await self._open.pop(batch_id).close()

    def rooms(self, feedable: Sequence[Row], batches: Sequence[Row]) -> Iterator[tuple[Row, int]]:
        """Yield the batches to feed, and how many lines there is room for, while `batches` share the window."""
        wanted: dict[str, dict[str, int]] = defaultdict(dict)
        for batch in batches:
            lines = self._at_workers(batch)
            if batch in feedable:
                lines += int(min(batch.total - batch.fed, max(0, self._most_at_workers(batch) - lines)))
            if lines:
                wanted[batch.account_id][batch.id] = lines
        shares = share_window(self._window, wanted)
        for batch in feedable:
            most = int(min(shares.get(batch.id, 0), self._most_at_workers(batch)))
            if room := room_to_feed(most, outstanding=self._at_workers(batch), left=batch.total - batch.fed):
                yield batch, room

    async def feed(self, batch: Row, lines: int) -> None:
        """Make jobs of the next lines of a batch. Its input stays open if it has more and there is a place."""
        feeder = self._open.pop(batch.id, None)
        if feeder is not None and feeder.offset != batch.next_offset:
            await feeder.close()
            feeder = None
        feeder = feeder or Feeder(self._database, self._queue, batch, pace=self._pace)
        goes_on = False
        try:
            goes_on = await feeder.feed(lines)
        finally:
            if goes_on and len(self._open) < _MOST_OPEN_INPUTS:
                self._open[batch.id] = feeder
            else:
                await feeder.close()

    def _most_at_workers(self, batch: Row) -> float:
        """Return how many lines of a batch that workers run may be with them at one time."""
        return self._allowances.lines(batch) - self._held.get(batch.id, 0)

    def _at_workers(self, batch: Row) -> int:
        """Return how many lines of a batch take room in the window: those with a provider's own batch API do not."""
        # Some held lines may have ended since they were counted.
        return 0 if batch.native_route is not None else max(0, outstanding(batch) - self._held.get(batch.id, 0))
