"""The order of keys: a key that is no stronger than another can do nothing that the other cannot."""

from __future__ import annotations

import fnmatch
import itertools
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.keys.strength import Strength, inherit
from headrace.quotas.rules import Limits

NAMES = ["".join(letters) for size in range(4) for letters in itertools.product("ab-]", repeat=size)]
COUNTS = ("requests_per_minute", "tokens_per_minute", "jobs_in_flight", "jobs_queued")
BUDGETS = ("daily_budget", "monthly_budget")

patterns = st.text("ab*?[]!-", min_size=1, max_size=5)
counts = st.none() | st.integers(1, 3)
budgets = st.none() | st.sampled_from([Decimal(0), Decimal("0.5"), Decimal(1)])
limits = st.builds(
    Limits,
    models=st.none() | st.lists(patterns, max_size=2),
    wait=st.none() | st.booleans(),
    **dict.fromkeys(COUNTS, counts),
    **dict.fromkeys(BUDGETS, budgets),
)
strengths = st.builds(
    Strength,
    scopes=st.frozensets(st.sampled_from(["usage:read", "keys:write", "webhooks:write", "admin"])),
    limits=limits,
    expires_at=st.none() | st.integers(1, 3),
    read_only=st.booleans(),
)


def may_do(key: Strength) -> set[object]:
    """Everything that a key may do, one by one."""
    scopes = ["usage:read", "keys:write", "webhooks:write", "admin"]
    able: set[object] = set(scopes if "admin" in key.scopes else key.scopes)
    able |= {("model", name) for name in NAMES if key.limits.allows_model(name)}
    able |= set() if key.read_only else {"change"}
    able |= {("at", time) for time in range(5) if key.expires_at is None or time < key.expires_at}
    for name in (*COUNTS, *BUDGETS):
        bound = getattr(key.limits, name)
        able |= {(name, half) for half in range(10) if bound is None or half <= bound * 2}
    return able


@given(strengths, strengths)
def test_a_key_that_is_no_stronger_does_nothing_more(one: Strength, other: Strength) -> None:
    if one.beyond(other) is None:
        assert may_do(one) <= may_do(other)


@given(strengths, strengths, strengths)
def test_it_is_an_order(one: Strength, other: Strength, third: Strength) -> None:
    assert one.beyond(one) is None
    if one.beyond(other) is None and other.beyond(third) is None:
        assert may_do(one) <= may_do(third)


@given(limits, limits)
def test_what_is_inherited_is_no_stronger_where_nothing_is_asked_for(asked: Limits, maker: Limits) -> None:
    own = Strength((), maker, None)
    assert Strength((), inherit(Limits(), maker), None).beyond(own) is None
    got = inherit(asked, maker)
    for name in (*COUNTS, *BUDGETS, "models"):
        expected = getattr(maker, name) if getattr(asked, name) is None else getattr(asked, name)
        assert getattr(got, name) == expected


@given(patterns, patterns)
def test_a_pattern_that_is_covered_fits_nothing_more(narrow: str, wide: str) -> None:
    if Strength((), Limits(models=[narrow]), None).beyond(Strength((), Limits(models=[wide]), None)) is None:
        assert {n for n in NAMES if fnmatch.fnmatchcase(n, narrow)} <= {
            n for n in NAMES if fnmatch.fnmatchcase(n, wide)
        }


@pytest.mark.parametrize(
    ("narrow", "wide"),
    [
        (["gpt-4o"], ["gpt-*"]),
        (["gpt-4*", "o1"], ["gpt-*", "o?"]),
        (["gpt-*-mini"], ["gpt-*"]),
        (["a[0-9]*"], ["a?*"]),
        (["a[0-9]*"], ["a[0-9]*"]),
        ([], ["x"]),
        (["*"], None),
        (["a**b"], ["a*b"]),
    ],
)
def test_what_is_plainly_narrower_is_seen_to_be(narrow: list[str], wide: list[str] | None) -> None:
    assert Strength((), Limits(models=narrow), None).beyond(Strength((), Limits(models=wide), None)) is None


@pytest.mark.parametrize(
    ("narrow", "wide"), [(None, ["*"]), (["gpt-*"], ["gpt-4*"]), (["*"], ["?*"]), (["a"], []), (["a[!b]"], ["a[b]"])]
)
def test_what_reaches_further_is_named(narrow: list[str] | None, wide: list[str]) -> None:
    beyond = Strength((), Limits(models=narrow), None).beyond(Strength((), Limits(models=wide), None))
    assert beyond == "limits.models"
