"""An event that takes little memory, because thousands of tasks each wait for one of their own."""

from __future__ import annotations

import asyncio


class Flag:
    """An event in a tenth of the memory of `asyncio.Event`, whose queue takes 600 bytes while it is empty."""

    __slots__ = ("_is_set", "_waiters")

    def __init__(self, *, is_set: bool = False) -> None:
        self._is_set = is_set
        self._waiters: tuple[asyncio.Future[None], ...] = ()

    def is_set(self) -> bool:
        """Return whether it is set."""
        return self._is_set

    def set(self) -> None:
        """Set it, and wake all that wait."""
        if self._is_set:
            return
        self._is_set = True
        waiters, self._waiters = self._waiters, ()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def clear(self) -> None:
        """Clear it: those that wait from now on wait until it is set again."""
        self._is_set = False

    async def wait(self) -> None:
        """Wait until it is set."""
        if not self._is_set:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters = (*(other for other in self._waiters if not other.done()), waiter)
            await waiter
