"""Group commit: items that arrive while a statement runs go into the next statement together.

A lone caller does not wait. Under load a batch lingers for a moment, so that one statement, one round trip and one wait
for the disk serve many callers. If Postgres refuses a row, its batch is written one by one, so that row fails alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

import sqlalchemy as sa

from headrace.stores.failures import is_unavailable
from headrace.telemetry.metrics import GROUP_COMMIT

Item = TypeVar("Item")
Result = TypeVar("Result")

# Seconds that a batch lingers under load, and until a statement is tried again after a deadlock.
_LINGER_SECONDS = 0.002
# SQLSTATEs of serialization failures and deadlocks, after which the same statement may succeed.
_TRY_AGAIN = frozenset({"40001", "40P01"})


class GroupCommit(Generic[Item, Result]):
    """Gathers items into batches for `flush`, one batch at a time, in order of arrival."""

    def __init__(
        self,
        flush: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]],
        *,
        statement: str,
        max_batch: int = 500,
    ) -> None:
        """`flush` writes the items and returns one result for each, in their order.

        `statement` is what the metric of the batches' sizes calls it.
        """
        self._flush = flush
        self._sizes = GROUP_COMMIT.labels(statement)
        self._max_batch = max_batch
        self._pending: list[tuple[Item, asyncio.Future[Result]]] = []
        self._task: asyncio.Task[None] | None = None

    async def submit(self, item: Item) -> Result:
        """Return the item's result once its batch is written, or raise the error of the write."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._pending.append((item, future))
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        return await future

    async def _run(self) -> None:
        try:
            crowded = False
            while self._pending:
                if crowded and len(self._pending) < self._max_batch:
                    await asyncio.sleep(_LINGER_SECONDS)
                batch, self._pending = self._pending[: self._max_batch], self._pending[self._max_batch :]
                crowded = len(batch) > 1
                self._sizes.observe(len(batch))
                await self._write(batch)
        finally:
            self._task = None

    async def _write(self, batch: Sequence[tuple[Item, asyncio.Future[Result]]]) -> None:
        try:
            results = await self._flush([item for item, _ in batch])
        except sa.exc.DBAPIError as error:
            if len(batch) == 1 and _state(error) in _TRY_AGAIN:
                await asyncio.sleep(_LINGER_SECONDS)
                await self._write(batch)
            elif len(batch) > 1 and (_state(error) in _TRY_AGAIN or not is_unavailable(error)):
                for entry in batch:
                    await self._write([entry])
            else:
                _fail(batch, error)
        except Exception as error:  # noqa: BLE001  (the error goes to the callers that wait)
            _fail(batch, error)
        else:
            for (_, future), result in zip(batch, results, strict=True):
                if not future.done():
                    future.set_result(result)


def _fail(batch: Sequence[tuple[Item, asyncio.Future[Result]]], error: Exception) -> None:
    for _, future in batch:
        if not future.done():
            future.set_exception(error)


def _state(error: sa.exc.DBAPIError) -> str | None:
    return getattr(error.orig, "sqlstate", None)
