"""What a provider of chat completions is asked."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from headrace.formats.chat import upstream
from headrace.formats.chat.support import LimitParameter


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({"max_completion_tokens": 5}, 5),
        ({"max_tokens": 5}, 5),
        ({"max_tokens": 7, "max_completion_tokens": 5}, 5),
        ({"max_tokens": 5, "max_completion_tokens": None}, 5),
        ({"max_completion_tokens": None}, None),
        ({}, None),
    ],
)
@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_the_limit_has_the_name_that_the_provider_wants(given: dict[str, Any], sent: int | None, name: Any) -> None:
    assert limits(given, name) == ({} if sent is None else {name: sent})


def test_the_limit_keeps_its_name_where_the_provider_wants_none() -> None:
    for given in ({"max_tokens": 5}, {"max_completion_tokens": 5}, {"max_tokens": 7, "max_completion_tokens": 5}, {}):
        assert limits(given, None) == given


def limits(given: dict[str, Any], name: LimitParameter | None) -> dict[str, Any]:
    request = {"model": "asked", "messages": [{"role": "user", "content": "Hi"}], **given}
    body = orjson.loads(upstream.render_request(request, model="m", stream=False, output_limit=9, limit_parameter=name))
    return {name: value for name, value in body.items() if name.startswith("max_")}
