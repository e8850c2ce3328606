from __future__ import annotations

import pytest

from worker.throttle import estimate_tokens


@pytest.mark.parametrize(
    ("limits", "reserved"),
    [
        ({}, 0),
        ({"max_tokens": 100}, 100),
        ({"max_tokens": None, "max_completion_tokens": 200}, 200),
        ({"max_tokens": 100, "n": 3}, 300),
        ({"max_tokens": 1_000_000}, 4096),
    ],
)
def test_tokens_are_reserved_for_the_prompt_and_a_limited_answer(limits: dict[str, int], reserved: int) -> None:
    request = {"messages": [{"role": "user", "content": "x" * 400}]}
    assert estimate_tokens(request | limits) == estimate_tokens(request) + reserved
    assert estimate_tokens(request) >= 100
