"""A queue in which accounts take turns: the calls that wait for a provider's limits."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice, zip_longest
from typing import Generic, Protocol, TypeVar


class Waiting(Protocol):
    """An entry of a queue."""

    @property
    def account(self) -> str:
        """The account that it belongs to."""

    @property
    def background(self) -> bool:
        """Whether it belongs to a background job."""


W = TypeVar("W", bound=Waiting)


class FairQueue(Generic[W]):
    """Foreground entries, then background entries; in either, accounts in turn, each in order of arrival."""

    def __init__(self) -> None:
        self._waited_for: dict[str, deque[W]] = {}
        self._background: dict[str, deque[W]] = {}
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[W]:
        """Yield the entries in their order."""
        for accounts in (self._waited_for, self._background):
            for turn in zip_longest(*accounts.values()):
                yield from (waiting for waiting in turn if waiting is not None)

    def first(self, count: int) -> list[W]:
        """Return the first entries, up to `count`."""
        return list(islice(self, count))

    def append(self, waiting: W) -> None:
        """Add an entry."""
        self._accounts_of(waiting).setdefault(waiting.account, deque()).append(waiting)
        self._length += 1

    def remove(self, leaving: Iterable[W]) -> None:
        """Remove entries whose turn it was: their accounts' next turn comes after that of the others."""
        for waiting in leaving:
            accounts = self._accounts_of(waiting)
            rest = accounts.pop(waiting.account)
            rest.remove(waiting)
            self._length -= 1
            if rest:
                accounts[waiting.account] = rest

    def keep(self, stays: Callable[[W], bool]) -> None:
        """Remove the entries that do not stay."""
        self._length = 0
        for accounts in (self._waited_for, self._background):
            for account, queue in list(accounts.items()):
                rest = deque(filter(stays, queue))
                self._length += len(rest)
                if rest:
                    accounts[account] = rest
                else:
                    del accounts[account]

    def _accounts_of(self, waiting: W) -> dict[str, deque[W]]:
        return self._background if waiting.background else self._waited_for
