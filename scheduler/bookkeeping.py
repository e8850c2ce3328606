"""Keeps the ledger's roll-ups current, makes its partitions ahead of time, and releases reservations of ended jobs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from functools import partial

from sqlalchemy.exc import SQLAlchemyError

from headrace.quotas.alerts import alert
from headrace.quotas.gate import Gate
from headrace.runtime.chores import until_tick
from headrace.stores.database import Database
from headrace.stores.redis import REDIS_UNAVAILABLE
from headrace.usage.partitions import ensure_partitions
from headrace.usage.rollups import fold_usage, repair_short_months
from scheduler.lookout import work_or_rest

log = logging.getLogger(__name__)

# Seconds between two folds. A fold of a few rows costs as much as one of hundreds. A question reads the rows that no
# fold has added: with eight thousand of its account, as many as batches end in three seconds, percentiles take 40 ms.
_FOLD_SECONDS = 3.0
# Seconds between two folds while the roll-ups lack no row.
_IDLE_FOLD_SECONDS = 60.0
# Seconds between two releases of the reservations of ended jobs.
_RECONCILE_SECONDS = 1.0
# Seconds between two such releases while no job is open.
_IDLE_RECONCILE_SECONDS = 10.0
# Seconds between two corrections of what Redis counts as spent.
_CORRECTION_SECONDS = 10.0
# Seconds between two looks for budgets that are due for an alert.
_ALERT_SECONDS = 10.0
# Seconds between two looks for partitions to make.
_PARTITION_SECONDS = 3600.0
# Seconds between two comparisons of the roll-ups with the ledger.
_CHECK_SECONDS = 86_400.0
# Seconds until work is tried again after Postgres or Redis failed.
_RETRY_SECONDS = 1.0
# Seconds of the longest period that follows the process's ticks. A longer one begins when the scheduler begins to lead.
_LONGEST_TICK_SECONDS = 10.0
# Rows of a fold that was probably cut off at its limit, so that more wait.
_LONG_FOLD = 10_000


class Bookkeeper:
    """The bookkeeper of one scheduler. If two keep books at the same time, every row is still added once."""

    def __init__(self, database: Database, gate: Gate, *, metadata_keys: Sequence[str]) -> None:
        self._database = database
        self._gate = gate
        self._metadata_keys = metadata_keys

    async def run(self, *, usage: asyncio.Event, jobs: asyncio.Event) -> None:
        """Keep the books until cancelled. Each kind of work has its own loop, so that a slow one delays no other.

        While `usage` is not set, the roll-ups lack no row of the ledger; while `jobs` is not set, all jobs have ended.
        """
        await asyncio.gather(
            _again_and_again(self._fold, _FOLD_SECONDS, needed=usage, idle_seconds=_IDLE_FOLD_SECONDS),
            _again_and_again(
                self._gate.reconcile, _RECONCILE_SECONDS, needed=jobs, idle_seconds=_IDLE_RECONCILE_SECONDS
            ),
            _again_and_again(self._gate.correct, _CORRECTION_SECONDS),
            _again_and_again(partial(alert, self._database), _ALERT_SECONDS),
            _again_and_again(self._make_partitions, _PARTITION_SECONDS),
            _again_and_again(self._check, _CHECK_SECONDS),
        )

    async def _fold(self) -> None:
        while await fold_usage(self._database, metadata_keys=self._metadata_keys) >= _LONG_FOLD:
            pass

    async def _make_partitions(self) -> None:
        await ensure_partitions(self._database, now=datetime.now(UTC))

    async def _check(self) -> None:
        for month in await repair_short_months(self._database):
            log.warning("the roll-ups of %s were less than the ledger and were rebuilt", f"{month:%Y-%m}")


async def _again_and_again(
    work: Callable[[], Awaitable[bool | None]],
    seconds: float,
    *,
    needed: asyncio.Event | None = None,
    idle_seconds: float = 0.0,
) -> None:
    """Do some work every `seconds`, or a second after Postgres or Redis failed. Any other error is logged.

    With `needed`, work that does not return true rests until that is set, or for `idle_seconds`.
    """
    while True:
        pause, goes_on = seconds, True
        try:
            goes_on = bool(await work())
        except SQLAlchemyError as error:
            log.warning("bookkeeping waits for Postgres: %s", error)
            pause = _RETRY_SECONDS
        except REDIS_UNAVAILABLE as error:
            log.warning("bookkeeping of limits waits for Redis: %s", error)
            pause = _RETRY_SECONDS
        except Exception:
            log.exception("could not keep the books")
        rest = until_tick(pause) if pause <= _LONGEST_TICK_SECONDS else pause
        if needed is None or goes_on:
            await asyncio.sleep(rest)
        else:
            await work_or_rest(needed, least=rest, most=until_tick(idle_seconds))
