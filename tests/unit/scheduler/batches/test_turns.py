from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from headrace.stores.connections import Row
from scheduler.batches.turns import Turns


@dataclass(frozen=True)
class Batch:
    """The columns of a batch's row that turns read."""

    id: str
    account_id: str


def batches(**counts: int) -> list[Row]:
    """Return this many batches of each account, one account's after another's."""
    return [
        cast("Row", Batch(f"{account}{number}", account))
        for account, count in counts.items()
        for number in range(count)
    ]


def ids(rows: list[Row]) -> list[str]:
    return [row.id for row in rows]


def test_one_account_leaves_room_for_another() -> None:
    turns, many = Turns(most=4, most_of_account=2), batches(a=20)
    assert ids(turns.take(many)) == ["a0", "a1"]
    assert turns.take(many[2:]) == []
    assert ids(turns.take([*many[2:], *batches(b=1)])) == ["b0"]


def test_no_more_are_under_way_than_there_are_turns() -> None:
    turns = Turns(most=4, most_of_account=2)
    assert ids(turns.take(batches(a=9, b=9, c=9))) == ["a0", "b0", "c0", "a1"]
    assert turns.take(batches(d=1)) == []
    turns.end("b0")
    assert ids(turns.take(batches(d=1))) == ["d0"]


def test_accounts_take_turns_however_old_their_batches_are() -> None:
    turns, waiting = Turns(most=1, most_of_account=1), batches(a=3, b=2, c=1)
    order = []
    while waiting:
        [row] = turns.take(waiting)
        assert row.id in turns
        order.append(row.id)
        waiting.remove(row)
        turns.end(row.id)
        assert row.id not in turns
    assert order == ["a0", "b0", "c0", "a1", "b1", "a2"]
