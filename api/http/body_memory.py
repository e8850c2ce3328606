"""The memory for large request bodies: a limit on all of them together in one process, from first byte to job row.

A parsed body takes a few times its size, so the limit is a part of the process's memory. A request takes memory as its
body arrives, so a slow client holds only as much as it has sent.
"""

from __future__ import annotations

import asyncio
from collections import Counter

from api.http.request import ApiRequest
from headrace.errors import RateLimitError, UnavailableError
from headrace.runtime.offload import LARGE_BYTES

# Bytes that a request takes and gives back at a time.
_UNIT = 1024 * 1024
# Seconds for which a body waits until other requests give back memory.
_PATIENCE_SECONDS = 10.0


class BodyMemory:
    """The memory for the large bodies of one process. An account takes at most half of it."""

    def __init__(self, size: int) -> None:
        """Allow bodies of `size` bytes together."""
        units = max(2, size // _UNIT)
        self._share = units // 2
        self._free = asyncio.Semaphore(units)
        self._taken: Counter[str] = Counter()

    async def take(self, request: ApiRequest, size: int) -> None:
        """Take memory for the `size` bytes of a request's body that have arrived, less what the request has already.

        Raises:
            RateLimitError: The account's bodies have all of its share.
            UnavailableError: No memory became free in time.
        """
        if size <= LARGE_BYTES:
            return
        state, wanted = request.state, -(-size // _UNIT)
        account_id = state["account_id"]
        while request.scope["state"].get("body_units", 0) < wanted:
            if self._taken[account_id] >= self._share:
                raise RateLimitError("Too many large requests of this account are in progress.", retry_after=1)
            self._taken[account_id] += 1
            try:
                async with asyncio.timeout(_PATIENCE_SECONDS):
                    await self._free.acquire()
            except BaseException as error:
                self._leave(account_id, 1)
                if isinstance(error, TimeoutError):
                    raise UnavailableError("Too many large requests are in progress.", retry_after=1) from None
                raise
            state["body_units"] = request.scope["state"].get("body_units", 0) + 1

    def give_back(self, request: ApiRequest) -> None:
        """Give back all memory of a request, which may take some again."""
        units = request.scope["state"].pop("body_units", 0)
        if units:
            self._leave(request.state["account_id"], units)
            for _ in range(units):
                self._free.release()

    def _leave(self, account_id: str, units: int) -> None:
        self._taken[account_id] -= units
        if not self._taken[account_id]:
            del self._taken[account_id]
