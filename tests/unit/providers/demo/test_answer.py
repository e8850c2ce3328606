"""Answers of the demo models: valid by OpenAI's specification and as the request asks, whole and streamed."""

from __future__ import annotations

import json
from typing import Any

import jsonschema_rs
import pytest

from headrace.formats.chat.fold import Fold
from headrace.providers.demo.answer import RefusedError, answer
from tests.unit.formats.chat.test_normaliser import check_chunk, check_whole

SAID: dict[str, Any] = {"role": "user", "content": "Hello!"}
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 3}},
    "required": ["city", "days"],
    "additionalProperties": False,
}


def function(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": SCHEMA, **more}}


TOOLS = [function("weather"), function("news"), {"type": "custom", "custom": {"name": "shell"}}]
CALLED = [
    SAID,
    {
        "role": "assistant",
        "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}],
    },
    {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
]
FORMAT = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA}}
IMAGES = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "What is it?"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        ],
    }
]
LEGACY = {"functions": [{"name": "weather", "parameters": SCHEMA}]}


def whole(messages: Any = None, **request: Any) -> dict[str, Any]:
    """Return the completion, checked against OpenAI's specification."""
    made = answer({"model": "demo", "messages": messages or [SAID], **request})
    completion = {"id": "c", "created": 1, "model": "demo", "choices": made.whole(), "usage": made.usage}
    check_whole(completion)
    return completion


def names(completion: dict[str, Any]) -> list[str]:
    calls = completion["choices"][0]["message"].get("tool_calls") or []
    return [call[call["type"]]["name"] for call in calls]


REQUESTS: list[dict[str, Any]] = [
    {},
    {"n": 3, "logprobs": True, "top_logprobs": 5},
    {"logprobs": True},
    {"max_tokens": 4},
    {"stop": ["demo", "answer"]},
    {"tools": TOOLS},
    {"tools": TOOLS[:2], "parallel_tool_calls": True, "n": 2},
    {"tools": TOOLS, "max_completion_tokens": 2},
    {"tools": TOOLS, "messages": CALLED},
    {"response_format": {"type": "json_object"}},
    {"response_format": FORMAT, "n": 2},
    {"messages": IMAGES},
    LEGACY,
]


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: ",".join(request) or "plain")
def test_whole_and_streamed_are_the_same_and_validate(request_: dict[str, Any]) -> None:
    made = answer({"model": "demo", "messages": [SAID], **request_})
    completion: dict[str, Any] = {"choices": made.whole(), "usage": made.usage}
    check_whole(completion)
    fold = Fold()
    for choices in made.rounds():
        for choice in choices:
            check_chunk({"choices": [choice]})
            fold.add({"choices": [choice]})
    folded = fold.completion(id="c", created=1, model="demo")
    for one, other in zip(completion["choices"], folded["choices"], strict=True):
        del one["message"]["annotations"]  # chunks have none
        one["message"] = {name: value for name, value in one["message"].items() if value is not None}
        other["message"] = {name: value for name, value in other["message"].items() if value is not None}
        if one["message"].get("content") == "":
            other["message"].setdefault("content", "")
        assert other == one


def test_the_first_tool_is_called_with_arguments_that_fit() -> None:
    completion = whole(tools=TOOLS)
    choice = completion["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    assert names(completion) == ["weather"]
    jsonschema_rs.validate(SCHEMA, json.loads(choice["message"]["tool_calls"][0]["function"]["arguments"]))


@pytest.mark.parametrize(
    ("request_", "called"),
    [
        ({"tool_choice": "none"}, []),
        ({"tool_choice": "required"}, ["weather"]),
        ({"tool_choice": {"type": "function", "function": {"name": "news"}}}, ["news"]),
        ({"tool_choice": {"type": "custom", "custom": {"name": "shell"}}}, ["shell"]),
        (
            {
                "tool_choice": {
                    "type": "allowed_tools",
                    "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "news"}}]},
                }
            },
            ["news"],
        ),
        ({"parallel_tool_calls": True}, ["weather", "news", "shell"]),
        ({"parallel_tool_calls": False}, ["weather"]),
        ({"parallel_tool_calls": True, "tools": TOOLS[:1]}, ["weather", "weather"]),
        ({"messages": CALLED}, []),
        ({"messages": [*CALLED, SAID]}, ["weather"]),
        ({"messages": CALLED, "tool_choice": "required"}, ["weather"]),
        ({"tools": [{"type": "function", "function": {"name": "now"}}]}, ["now"]),
    ],
)
def test_tool_choice_is_kept_to(request_: dict[str, Any], called: list[str]) -> None:
    completion = whole(**{"tools": TOOLS, **request_})
    assert names(completion) == called
    calls = completion["choices"][0]["message"].get("tool_calls") or []
    assert len({call["id"] for call in calls}) == len(calls)


def test_a_result_of_a_tool_is_answered_with_text() -> None:
    message = whole(CALLED, tools=TOOLS)["choices"][0]["message"]
    assert message["content"].startswith("weather returned: sunny")


def test_functions_of_old_are_called_as_they_were() -> None:
    choice = whole(**LEGACY)["choices"][0]
    assert choice["finish_reason"] == "function_call"
    jsonschema_rs.validate(SCHEMA, json.loads(choice["message"]["function_call"]["arguments"]))
    assert whole(**LEGACY, function_call="none")["choices"][0]["finish_reason"] == "stop"


def test_choices_are_as_many_as_asked_for_and_differ() -> None:
    choices = whole(n=3, response_format=FORMAT)["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2]
    values = [json.loads(choice["message"]["content"]) for choice in choices]
    for value in values:
        jsonschema_rs.validate(SCHEMA, value)
    assert len({json.dumps(value) for value in values}) == 3


def test_a_limit_cuts_and_a_stop_sequence_ends() -> None:
    cut = whole(max_completion_tokens=3)
    assert cut["choices"][0]["finish_reason"] == "length"
    assert cut["usage"]["completion_tokens"] == 3
    stopped = whole(stop="Hello")["choices"][0]
    assert (stopped["message"]["content"], stopped["finish_reason"]) == ("You said: ", "stop")


def test_log_probabilities_cover_the_text() -> None:
    choice = whole(logprobs=True, top_logprobs=20)["choices"][0]
    tokens = choice["logprobs"]["content"]
    assert "".join(token["token"] for token in tokens) == choice["message"]["content"]
    for token in tokens:
        assert bytes(token["bytes"]).decode() == token["token"]
        likeliest = token["top_logprobs"]
        assert len({one["token"] for one in likeliest}) == 20
        assert likeliest[0]["token"] == token["token"]
        assert [one["logprob"] for one in likeliest] == sorted((one["logprob"] for one in likeliest), reverse=True)


def test_images_are_counted() -> None:
    completion = whole(IMAGES)
    assert "You sent an image." in completion["choices"][0]["message"]["content"]
    assert completion["usage"]["prompt_tokens"] > 85


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "#"}}}}, "response_format"),
        ({"tools": [{"type": "function", "function": {"name": "a", "parameters": {"$ref": "#/no"}}}]}, "tools"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "no"}}}, "tool_choice"),
    ],
)
def test_what_it_cannot_do_is_refused_with_its_place(request_: dict[str, Any], param: str) -> None:
    with pytest.raises(RefusedError) as caught:
        answer({"model": "demo", "messages": [SAID], **request_})
    assert caught.value.param == param
