"""Shares of the window of running lines: accounts share it, then the batches of each account. Pure.

The shares are max-min fair: an account that wants less than an even share gets all it wants, and the others share the
rest. So a small batch beside a huge one runs at once, and a lone batch has the whole window.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

Name = TypeVar("Name")

# Share of a batch's lines for which there is room before more are fed: each feed costs a commit.
_LEAST_FED = 1 / 16


def share(amount: int, wanted: Mapping[Name, int]) -> dict[Name, int]:
    """Return each name's share of `amount`: at least 1 if it wants any, so that none waits for ever."""
    shares: dict[Name, int] = {}
    left = amount
    for at, name in enumerate(sorted(wanted, key=lambda name: wanted[name])):
        even = -(-left // (len(wanted) - at)) if left > 0 else 0
        shares[name] = min(wanted[name], max(1, even))
        left -= shares[name]
    return shares


def share_window(window: int, wanted: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """Return how many lines of each batch may run. `wanted` is by account, then by batch."""
    by_account = share(window, {account: sum(batches.values()) for account, batches in wanted.items()})
    return {
        batch: lines
        for account, batches in wanted.items()
        for batch, lines in share(by_account[account], batches).items()
    }


def room_to_feed(most: int, *, outstanding: int, left: int) -> int:
    """Return how many more lines of a batch to feed, of which `most` may run: 0 while there is room for few of them.

    The last lines that are `left` are fed as soon as there is room for all of them.
    """
    room = most - outstanding
    return room if room >= max(1, min(most * _LEAST_FED, left)) else 0
