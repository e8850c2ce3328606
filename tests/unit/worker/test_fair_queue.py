"""A queue in which accounts take turns."""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from worker.fair_queue import FairQueue


class Call(NamedTuple):
    account: str
    number: int
    background: bool = False


def queue_of(*calls: Call) -> FairQueue[Call]:
    queue: FairQueue[Call] = FairQueue()
    for call in calls:
        queue.append(call)
    return queue


def test_accounts_take_turns_however_many_calls_one_has() -> None:
    many, few = [Call("a", number) for number in range(4)], [Call("b", number) for number in range(2)]
    assert queue_of(*many, *few).first(5) == [many[0], few[0], many[1], few[1], many[2]]


def test_what_a_client_waits_for_comes_first() -> None:
    later, first = Call("a", 0, background=True), Call("b", 1)
    assert list(queue_of(later, first)) == [first, later]


def test_an_account_whose_turn_it_was_comes_after_the_others() -> None:
    a, b = [Call("a", number) for number in range(3)], [Call("b", number) for number in range(3)]
    queue = queue_of(*a, *b)
    admitted = []
    while queue:
        [call] = queue.first(1)
        queue.remove([call])
        admitted.append(call.account)
    assert admitted == ["a", "b"] * 3


CALLS = st.lists(
    st.builds(Call, account=st.sampled_from("abc"), number=st.integers(0, 99), background=st.booleans()), unique=True
)


@given(calls=CALLS, removed=st.data())
def test_nothing_is_lost_or_comes_twice_and_an_accounts_calls_keep_their_order(
    calls: list[Call], removed: st.DataObject
) -> None:
    queue = queue_of(*calls)
    assert len(queue) == len(calls)
    gone = set(removed.draw(st.lists(st.sampled_from(calls), unique=True))) if calls else set()
    kept = set(removed.draw(st.lists(st.sampled_from(calls), unique=True))) if calls else set()
    queue.remove(call for call in queue.first(len(calls)) if call in gone)
    queue.keep(lambda call: call in kept)
    left = [call for call in calls if call in kept - gone]
    assert sorted(queue) == sorted(left)
    assert len(queue) == len(left)
    for account in "abc":
        for background in (False, True):
            mine = [call for call in queue if call[::2] == (account, background)]
            assert mine == [call for call in left if call[::2] == (account, background)]
