from __future__ import annotations

import json
from typing import Any

from headrace.conversations.turn import turn_of

Json = dict[str, Any]


def item(name: str) -> Json:
    return {"id": name, "type": "message", "text": f"{name} \0 è"}


def test_a_turn_is_what_the_request_says_itself_and_its_answer() -> None:
    document = {"input": [item("a"), item("b"), item("c")], "context_items": 2}
    response = {"output": [item("d"), item("e")]}
    turn = turn_of(document, response)
    assert [added.id for added in turn] == ["c", "d", "e"]
    assert [json.loads(added.document) for added in turn] == [item("c"), item("d"), item("e")]
    assert all("\0" not in added.document for added in turn), "Postgres has no U+0000"


def test_a_response_without_output_adds_its_input() -> None:
    assert [added.id for added in turn_of({"input": [item("a")], "context_items": 0}, {"output": []})] == ["a"]
