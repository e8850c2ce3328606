"""Which batches get one of a few places for long work: accounts take turns, and the batches of each take turns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import count

from headrace.stores.connections import Row


class Turns:
    """Turns for at most `most` batches at a time, and at most `most_of_account` of one account."""

    def __init__(self, *, most: int, most_of_account: int) -> None:
        self._most = most
        self._most_of_account = most_of_account
        self._running: dict[str, str] = {}
        self._turns = count()
        self._last_turn: dict[str, int] = {}

    def __contains__(self, batch_id: object) -> bool:
        """Return whether a batch has a turn."""
        return batch_id in self._running

    def take(self, waiting: Sequence[Row]) -> list[Row]:
        """Begin the turns of waiting batches, oldest first, and return those batches.

        The account with the fewest turns under way goes first; among several, the account that has waited the longest.
        """
        running = Counter(self._running.values())
        accounts = {batch.account_id for batch in waiting}
        self._last_turn = {
            account: turn for account, turn in self._last_turn.items() if account in accounts or running[account]
        }
        left = list(waiting)
        begun: list[Row] = []
        while len(self._running) < self._most:
            free = [batch for batch in left if running[batch.account_id] < self._most_of_account]
            if not free:
                break
            batch = min(free, key=lambda batch: (running[batch.account_id], self._last_turn.get(batch.account_id, -1)))
            left.remove(batch)
            begun.append(batch)
            running[batch.account_id] += 1
            self._running[batch.id] = batch.account_id
            self._last_turn[batch.account_id] = next(self._turns)
        return begun

    def end(self, batch_id: str) -> None:
        """End a batch's turn."""
        self._running.pop(batch_id, None)
