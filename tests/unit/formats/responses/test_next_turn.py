"""An answer that goes back with the next request is the chat message that the model gave."""

from __future__ import annotations

import json
from typing import Any

import pytest

from headrace.formats.chat.normaliser import Normaliser
from headrace.formats.registry import WireFormat
from headrace.formats.responses import client
from headrace.formats.responses.request import check_response_request
from tests.unit.formats.responses.answers import whole
from tests.unit.formats.responses.test_contract import TOOLS
from tests.unit.formats.test_recordings import recordings

# What a model is not told again.
_FORGOTTEN = {"annotations", "reasoning_content", "reasoning"}


def next_turn(output: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the chat messages that a request has of an answer, whose calls are all answered."""
    answers = [
        {"type": f"{item['type']}_output", "call_id": item["call_id"], "output": "Done."}
        for item in output
        if "call_id" in item
    ]
    document = {**TOOLS, "input": [{"role": "user", "content": "Hi"}, *output, *answers]}
    check_response_request(document)
    return [message for message in client.translate(document).chat["messages"] if message["role"] == "assistant"]


def said(message: dict[str, Any]) -> dict[str, Any]:
    """Return what a message says, with calls of custom tools in the form in which these are offered to the model."""
    fields = {name: value for name, value in message.items() if value and name not in _FORGOTTEN}
    for call in fields.get("tool_calls", ()):
        if custom := call.pop("custom", None):
            arguments = json.dumps({"input": custom["input"]}, separators=(",", ":"))
            call |= {"type": "function", "function": {"name": custom["name"], "arguments": arguments}}
    return fields


@pytest.mark.parametrize(("form", "recording"), recordings("answer", "completion"))
def test_a_recorded_answer_goes_back_as_it_came(form: WireFormat, recording: dict[str, Any]) -> None:
    completion = Normaliser().completion(form.parse_completion(json.dumps(recording["answer"]).encode()))

    [message] = next_turn(whole(completion, TOOLS).response["output"])

    assert said(message) == said(completion["choices"][0]["message"])
