"""An answer that goes back with the next request is the chat message that the model gave."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from headrace.formats.chat.fold import Fold
from headrace.formats.chat.normaliser import Normaliser
from headrace.formats.chat.request import parse_chat_request
from headrace.formats.registry import FORMATS, WireFormat
from headrace.formats.responses import client
from headrace.formats.responses.request import check_response_request
from tests.unit.formats.responses.answers import Job, whole
from tests.unit.formats.responses.test_contract import TOOLS
from tests.unit.formats.test_recordings import RECORDINGS, recordings

# What a model is not told again, and what only a chat model is.
_FORGOTTEN = {"annotations"}
_PLAIN = {"reasoning_content", "reasoning"}
USER = {"role": "user", "content": "Hi"}


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


def said(message: dict[str, Any], *, forgotten: set[str]) -> dict[str, Any]:
    """Return what a model is told again, with calls of custom tools in the form in which they are offered to it."""
    fields = {name: value for name, value in message.items() if value and name not in forgotten}
    for call in fields.get("tool_calls", ()):
        if custom := call.pop("custom", None):
            arguments = json.dumps({"input": custom["input"]}, separators=(",", ":"))
            call |= {"type": "function", "function": {"name": custom["name"], "arguments": arguments}}
    return fields


@pytest.mark.parametrize(("form", "recording"), recordings("answer", "completion"))
def test_a_recorded_answer_goes_back_as_it_came(form: WireFormat, recording: dict[str, Any]) -> None:
    completion = Normaliser().completion(form.parse_completion(json.dumps(recording["answer"]).encode()))

    from_chat = form is FORMATS["chat"]

    [message] = next_turn(whole(completion, TOOLS, from_chat=from_chat).response["output"])

    forgotten = _FORGOTTEN if from_chat else _FORGOTTEN | _PLAIN
    assert said(message, forgotten=forgotten) == said(completion["choices"][0]["message"], forgotten=forgotten)


@pytest.mark.parametrize("name", ["answer-interleaved", "answer-thinking-behind-text"])
@pytest.mark.parametrize("through", ["chat", "whole", "stream"])
def test_thoughts_go_back_to_their_provider_in_their_places(name: str, through: str) -> None:
    form, recording = FORMATS["messages"], json.loads((RECORDINGS / f"messages/{name}.json").read_text())
    completion = form.parse_completion(json.dumps(recording["answer"]).encode())
    if through == "chat":
        message = completion["choices"][0]["message"]
    elif through == "whole":
        [message] = next_turn(whole(completion, TOOLS).response["output"])
    else:
        parser, fold, renderer = form.parse_stream(), Fold(), client.renderer(Job(), TOOLS)
        for chunk in [chunk for event in recording["events"] for chunk in parser.parse(json.dumps(event).encode())]:
            fold.add(chunk)
            renderer.render([chunk])
        folded = fold.completion(id="", created=0, model="m")
        [message] = next_turn(renderer.end(folded)[1]["output"])
    rendered = form.render_request({"messages": [USER, message]}, model="m", stream=False, output_limit=None)
    blocks = json.loads(rendered)["messages"][1]["content"]
    for block in blocks:
        if "text" in block:
            block["text"] = block["text"].removesuffix("\n\n")  # between two messages of a response
    assert blocks == recording["answer"]["content"]


@pytest.mark.parametrize(
    ("after", "calls_before", "order"),
    [
        ([9], 0, ["thinking", "text"]),  # the provider refuses a thought at the end
        ([1], 0, ["text", "thinking", "text"]),
        ([-1, 3, 1], -1, ["text", "thinking", "text"]),
        ([], 3, ["text", "thinking"]),
    ],
)
def test_a_client_may_say_any_place_of_a_thought(after: list[int], calls_before: int, order: list[str]) -> None:
    thought = {"type": "thinking", "thinking": "Hm", "signature": "s", "calls_before": calls_before}
    message = {
        "role": "assistant",
        "content": "Yes.",
        "thinking_blocks": [thought],
        "thinking_origin": {"after": after},
    }
    request = {"model": "m", "messages": [USER, message, USER]}
    parse_chat_request(json.dumps(request).encode())
    rendered = FORMATS["messages"].render_request(request, model="m", stream=False, output_limit=None)
    assert [block["type"] for block in json.loads(rendered)["messages"][1]["content"]] == order


@pytest.mark.parametrize(
    ("text", "after", "marked"),
    [
        ("One. Two. Three.", [5, 10], "Three."),
        ("One. \n", [4], "One."),  # a piece of white space is left out
        ("One.", [0], "One."),
    ],
)
def test_a_text_that_thoughts_cut_keeps_one_breakpoint_of_the_cache(text: str, after: list[int], marked: str) -> None:
    cached = {"type": "ephemeral"}
    message = {
        "role": "assistant",
        "content": [{"type": "text", "text": "Yes.", "cache_control": cached}, {"type": "text", "text": text}],
        "cache_control": cached,
        "thinking_blocks": [{"type": "thinking", "thinking": "Hm", "signature": "s"}] * (1 + len(after)),
        "thinking_origin": {"after": [2, *(len("Yes.") + place for place in after)]},
        "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
    }
    request = {"messages": [USER, message, {"role": "tool", "tool_call_id": "c", "content": "x"}]}
    rendered = FORMATS["messages"].render_request(request, model="m", stream=False, output_limit=None)
    blocks = json.loads(rendered)["messages"][1]["content"]
    assert "".join(block.get("text", "") for block in blocks).rstrip() == f"Yes.{text}".rstrip()
    assert [block["text"] for block in blocks if "cache_control" in block] == ["s.", marked]


@pytest.mark.parametrize("through", ["chat", "responses"])
@pytest.mark.parametrize(
    ("form", "recording"),
    [recorded for recorded in recordings("answer", "completion") if recorded.values[0] is not FORMATS["chat"]],
)
def test_a_chat_server_gets_nothing_that_only_another_format_has(
    form: WireFormat, recording: dict[str, Any], through: str
) -> None:
    completion = Normaliser().completion(form.parse_completion(json.dumps(recording["answer"]).encode()))
    [message] = next_turn(whole(completion, TOOLS).response["output"])
    if through == "chat":
        message = completion["choices"][0]["message"]
    before = copy.deepcopy(message)
    request = {"messages": [USER, message]}
    rendered = FORMATS["chat"].render_request(request, model="m", stream=False, output_limit=None)
    assert message == before  # another provider may be asked next
    sent = json.loads(rendered)["messages"][1]
    signed = message.keys() & {"thinking_blocks", "reasoning_items"}
    assert sent.keys() <= {"role", "content", "refusal", "annotations", "tool_calls"} | (
        set() if signed else {"reasoning_content"}
    )
    assert all(call.keys() == {"id", "type", call["type"]} for call in sent.get("tool_calls", ()))


def test_a_chat_server_gets_back_what_it_gave() -> None:
    signature = {"google": {"thought_signature": "s"}}
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}, "extra_content": signature}
    own = {
        "role": "assistant",
        "content": "Yes.",
        "reasoning_content": "Hm",
        "thinking_blocks": [{"type": "thinking", "thinking": "Hm", "signature": "s"}],
        "tool_calls": [call, {**call, "extra_content": "odd"}, {**call, "extra_content": {"origin": "odd"}}],
    }
    request = {"messages": [USER, {**own, "thinking_origin": {"after": [2]}}]}
    rendered = FORMATS["chat"].render_request(request, model="m", stream=False, output_limit=None)
    assert json.loads(rendered)["messages"] == [USER, own]


def test_a_thought_stays_before_its_call_when_each_call_is_followed_by_its_output() -> None:
    [recording] = [json.loads(path.read_text()) for path in RECORDINGS.glob("messages/answer-interleaved.json")]
    completion = FORMATS["messages"].parse_completion(json.dumps(recording["answer"]).encode())
    items: list[dict[str, Any]] = []
    for item in whole(completion, TOOLS).response["output"]:
        items.append(item)
        if "call_id" in item:
            items.append({"type": f"{item['type']}_output", "call_id": item["call_id"], "output": "Done."})
    messages = client.translate({**TOOLS, "input": [{"role": "user", "content": "Hi"}, *items]}).chat["messages"]
    turns = [message for message in messages if message["role"] == "assistant"]
    assert [len(turn["tool_calls"]) for turn in turns] == [1] * len(turns)
    thoughts = [block for turn in turns for block in turn.get("thinking_blocks", ())]
    assert len(turns) > 1
    assert len(thoughts) > 1
    assert not any("calls_before" in thought for thought in thoughts)
