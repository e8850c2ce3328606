"""Group commit: items that arrive while a statement runs go into the next statement together.

A lone caller does not wait. Under load a batch lingers for a moment, so that one statement, one round trip and one wait
for the disk serve many callers. If Postgres refuses a row, its batch is written one by one, so that row fails alone.
Large items go into several statements, as one with all of them might never be done within a statement's time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Generic, TypeVar

import sqlalchemy as sa

from headrace.stores.failures import is_unavailable
from headrace.telemetry.metrics import GROUP_COMMIT

Item = TypeVar("Item")
Result = TypeVar("Result")

STATEMENT_BYTES = 16 * 1024 * 1024
"""Bytes of text that one statement takes for many callers. A larger text has a statement of its own."""
# Seconds that a batch lingers under load, and until a statement is tried again after a deadlock.
_LINGER_SECONDS = 0.002
# SQLSTATEs of serialization failures and deadlocks, after which the same statement may succeed.
_TRY_AGAIN = frozenset({"40001", "40P01"})


def fitting(sizes: Iterable[int]) -> int:
    """Return how many of the first items, by their sizes in bytes, one statement takes: at least one."""
    count = total = 0
    for size in sizes:
        total += size
        if count and total > STATEMENT_BYTES:
            break
        count += 1
    return count


class GroupCommit(Generic[Item, Result]):
    """Gathers items into batches for `flush`, one batch at a time, in order of arrival."""

    def __init__(
        self,
        flush: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]],
        *,
        statement: str,
        size: Callable[[Item], int],
        max_batch: int = 500,
    ) -> None:
        """`flush` writes the items and returns one result for each, in their order.

        `statement` is what the metric of the batches' sizes calls it. `size` returns the length of an item's texts,
        where characters may count as bytes.
        """
        self._flush = flush
        self._size = size
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
                batch = self._take()
                crowded = len(batch) > 1
                self._sizes.observe(len(batch))
                await self._write(batch)
        finally:
            self._task = None

    def _take(self) -> Sequence[tuple[Item, asyncio.Future[Result]]]:
        """Take the items of the next batch."""
        count = len(self._pending)
        if count > 1:
            count = fitting(self._size(item) for item, _ in self._pending[: self._max_batch])
        batch, self._pending = self._pending[:count], self._pending[count:]
        return batch

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
