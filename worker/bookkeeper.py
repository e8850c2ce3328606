"""Keeps the ledger's sums up, makes its partitions before they are needed, and lets go of what ended jobs held back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from datetime import UTC, datetime

from sqlalchemy.exc import SQLAlchemyError

from headrace.database import Database
from headrace.quotas.gate import Gate
from headrace.quotas.queries import alert
from headrace.redis_url import AWAY
from headrace.usage.partitions import ensure_partitions
from headrace.usage.rollups import fold_usage

log = logging.getLogger(__name__)

_FOLD_SECONDS = 1.0
_PARTITION_SECONDS = 3600.0
_CORRECTION_SECONDS = 10.0
# A fold this long has more behind it.
_LONG_FOLD = 10_000


class Bookkeeper:
    """The bookkeeper of one scheduler. Whoever else folds meanwhile, every row is added once."""

    def __init__(self, database: Database, gate: Gate, *, metadata_keys: Sequence[str]) -> None:
        self._database = database
        self._gate = gate
        self._metadata_keys = metadata_keys

    async def run(self) -> None:
        """Keep the books until cancelled."""
        loop = asyncio.get_running_loop()
        partitions_due = corrections_due = loop.time()
        while True:
            folded = 0
            try:
                if loop.time() >= partitions_due:
                    await ensure_partitions(self._database, now=datetime.now(UTC))
                    partitions_due = loop.time() + _PARTITION_SECONDS
                folded = await fold_usage(self._database, metadata_keys=self._metadata_keys)
                await self._gate.reconcile()
                if loop.time() >= corrections_due:
                    corrections_due = loop.time() + _CORRECTION_SECONDS
                    await alert(self._database)
                    await self._gate.correct()
            except SQLAlchemyError as error:
                log.warning("the books wait: %s", error)
            except AWAY as error:
                log.warning("limits wait for Redis: %s", error)
            except Exception:
                log.exception("could not keep the books")
            if folded < _LONG_FOLD:
                await asyncio.sleep(_FOLD_SECONDS)
