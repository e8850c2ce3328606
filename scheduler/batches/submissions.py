"""Parcels that are being handed over. A scheduler that ends waits for them, as not every provider finds one later."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator

from headrace.runtime.chores import wait_for

log = logging.getLogger(__name__)


class Submissions:
    """The hand-overs of parcels to providers that are under way."""

    def __init__(self) -> None:
        self.draining = False
        """Whether no other one may begin."""
        self._under_way = 0
        self._ended = asyncio.Event()
        self._ended.set()

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """Count one that is under way until its provider has the parcel and Postgres the provider's id of it."""
        self._under_way += 1
        self._ended.clear()
        try:
            yield
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._ended.set()

    async def drain(self, seconds: float) -> None:
        """Let no other one begin, and wait for `seconds` at most until those under way have ended."""
        self.draining = True
        try:
            await wait_for(self._ended, seconds)
        finally:
            if self._under_way:
                log.warning("ends while it hands parcels over: providers may get them twice")
