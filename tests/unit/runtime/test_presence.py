"""Records of workers: what one release writes, this and others read."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headrace.runtime.presence import About, Calls, View

NAMES = st.lists(st.text(max_size=5), max_size=4)
KEYS = st.dictionaries(st.text(max_size=5), NAMES, max_size=3)
COUNTS = st.integers(0, 2**50)
ABOUT = st.none() | st.builds(
    About,
    host=st.text(max_size=5),
    pid=COUNTS,
    version=st.text(max_size=5),
    started_at=st.floats(0, 2**40),
    slots=COUNTS,
    running=COUNTS,
    draining=st.booleans(),
    cut_off=st.booleans(),
)
CALLS = st.dictionaries(st.text(max_size=5), st.builds(Calls, COUNTS, COUNTS, COUNTS), max_size=3)

LIMITS = st.dictionaries(st.text(max_size=5), COUNTS, max_size=3)


@given(st.builds(View, NAMES, KEYS, KEYS, KEYS, NAMES, ABOUT, CALLS, LIMITS))
def test_a_view_comes_back_the_same(view: View) -> None:
    assert View.unpack(view.pack()) == view


@given(st.binary())
def test_a_text_that_makes_no_sense_is_a_worker_that_serves_nothing(text: bytes) -> None:
    assert View.unpack(text) == View((), {}, {}, {})


def test_a_field_of_the_wrong_kind_is_a_worker_that_serves_nothing() -> None:
    text = b'{"tiers": ["default"], "open": {}, "failing": {}, "answered": {}, "about": {"host": "here"}}'
    assert View.unpack(text) == View((), {}, {}, {})
