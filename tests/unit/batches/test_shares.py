from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headrace.batches.shares import room_to_feed, share, share_window

WANTED = st.dictionaries(st.text(max_size=3), st.integers(0, 5000), max_size=8)


@given(st.integers(0, 3000), WANTED)
def test_no_share_exceeds_its_want_and_nothing_is_left_that_is_wanted(amount: int, wanted: dict[str, int]) -> None:
    shares = share(amount, wanted)
    assert shares.keys() == wanted.keys()
    assert all(0 <= shares[name] <= wanted[name] for name in wanted)
    if amount >= len(wanted):
        assert sum(shares.values()) >= min(amount, sum(wanted.values()))


@given(st.integers(0, 3000), WANTED)
def test_a_share_below_its_want_is_as_large_as_any(amount: int, wanted: dict[str, int]) -> None:
    shares = share(amount, wanted)
    for name, lines in shares.items():
        if lines < wanted[name]:
            assert lines >= max(shares.values()) - 1
        if wanted[name]:
            assert lines >= 1


@given(st.integers(1, 3000), st.dictionaries(st.text(max_size=2), WANTED, max_size=5))
def test_accounts_share_first_and_then_their_batches(window: int, accounts: dict[str, dict[str, int]]) -> None:
    wanted = {
        account: {f"{account}/{batch}": lines for batch, lines in batches.items()}
        for account, batches in accounts.items()
    }
    shares = share_window(window, wanted)
    by_account = share(window, {account: sum(batches.values()) for account, batches in wanted.items()})
    for account, batches in wanted.items():
        assert {batch: shares[batch] for batch in batches} == share(by_account[account], batches)


def test_a_small_batch_beside_a_huge_one_is_under_way_at_once() -> None:
    assert share_window(2000, {"a": {"huge": 50_000}, "b": {"small": 100}}) == {"huge": 1900, "small": 100}
    assert share_window(2000, {"a": {"huge": 50_000, "small": 100}}) == {"huge": 1900, "small": 100}
    assert share_window(2000, {"a": {"x": 9000, "y": 9000}, "b": {"z": 9000}}) == {"x": 500, "y": 500, "z": 1000}


@given(most=st.integers(1, 3000), left=st.integers(1, 3000), outstanding=st.integers(0, 4000))
def test_lines_are_fed_until_none_is_left_and_never_beyond_the_share(most: int, left: int, outstanding: int) -> None:
    room = room_to_feed(most, outstanding=outstanding, left=left)
    assert 0 <= room <= max(0, most - outstanding)
    assert room or outstanding, "a batch without a running line is fed"
    if most - outstanding >= left:
        assert room, "the last lines need not wait for more room"


def test_few_lines_are_fed_together_unless_they_are_the_last() -> None:
    assert room_to_feed(2000, outstanding=1876, left=5000) == 0
    assert room_to_feed(2000, outstanding=1875, left=5000) == 125
    assert room_to_feed(2000, outstanding=1998, left=2) == 2
    assert room_to_feed(8, outstanding=7, left=5000) == 1
    assert room_to_feed(0, outstanding=0, left=5) == 0
