"""A line in which accounts take turns: those that wait for a provider's limits, in the order of their admission."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice, zip_longest
from typing import Generic, Protocol, TypeVar


class Waiting(Protocol):
    """What stands in a line."""

    @property
    def account(self) -> str:
        """Whose it is."""

    @property
    def background(self) -> bool:
        """Whether no client waits for it."""


W = TypeVar("W", bound=Waiting)


class Line(Generic[W]):
    """First what a client waits for, then the background; in either, accounts in turn, each in order of arrival."""

    def __init__(self) -> None:
        self._waited_for: dict[str, deque[W]] = {}
        self._background: dict[str, deque[W]] = {}
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[W]:
        """Yield all in their order."""
        for accounts in (self._waited_for, self._background):
            for turn in zip_longest(*accounts.values()):
                yield from (waiting for waiting in turn if waiting is not None)

    def first(self, count: int) -> list[W]:
        """Return up to so many that come first."""
        return list(islice(self, count))

    def append(self, waiting: W) -> None:
        """Let one more wait."""
        self._accounts_of(waiting).setdefault(waiting.account, deque()).append(waiting)
        self._length += 1

    def remove(self, leaving: Iterable[W]) -> None:
        """Let go of some whose turn it was: their accounts' next turn comes after that of the others."""
        for waiting in leaving:
            accounts = self._accounts_of(waiting)
            rest = accounts.pop(waiting.account)
            rest.remove(waiting)
            self._length -= 1
            if rest:
                accounts[waiting.account] = rest

    def keep(self, stays: Callable[[W], bool]) -> None:
        """Let go of all that do not stay."""
        self._length = 0
        for accounts in (self._waited_for, self._background):
            for account, line in list(accounts.items()):
                rest = deque(filter(stays, line))
                self._length += len(rest)
                if rest:
                    accounts[account] = rest
                else:
                    del accounts[account]

    def _accounts_of(self, waiting: W) -> dict[str, deque[W]]:
        return self._background if waiting.background else self._waited_for
