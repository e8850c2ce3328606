"""The batches that subscribers of this process watch: one look at a batch serves all who watch it."""

from __future__ import annotations

import logging
from functools import partial
from weakref import WeakValueDictionary

from sqlalchemy.exc import SQLAlchemyError

from headrace.batches.batch_object import find_batch
from headrace.runtime.fresh import Fresh
from headrace.stores.connections import Row
from headrace.stores.database import Database

log = logging.getLogger(__name__)

# Seconds for which a look serves others: a little less than a subscriber waits between two looks, as its timer may be
# early.
_FRESH_SECONDS = 0.45


class WatchedBatches:
    """Reads each watched batch at most twice a second."""

    def __init__(self, database: Database) -> None:
        """Watch nothing yet."""
        self._database = database
        self._batches: WeakValueDictionary[tuple[str, str], Fresh[Row | None]] = WeakValueDictionary()

    def watch(self, batch_id: str, account_id: str) -> Fresh[Row | None]:
        """Return an account's batch, which is shared while its subscribers keep this.

        It is None while Postgres is unavailable. Reading it raises NotFoundError once the batch is deleted.
        """
        look = partial(self._look, batch_id, account_id)
        return self._batches.setdefault((batch_id, account_id), Fresh(look, seconds=_FRESH_SECONDS))

    async def _look(self, batch_id: str, account_id: str) -> Row | None:
        try:
            return await find_batch(self._database, batch_id, account_id)
        except SQLAlchemyError as error:
            log.warning("the subscribers of a batch wait, as Postgres is unavailable: %s", error)
            return None
