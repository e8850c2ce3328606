from __future__ import annotations

from typing import Any

import orjson
import pytest

from headrace.formats.chat.support import Kind
from headrace.formats.chat.usage import TokenUsage
from headrace.telemetry.genai import describe_answer, describe_input, describe_output, describe_request
from headrace.telemetry.tracing import Attributes


def described(request: dict[str, Any], *, latest: bool = False, **others: Any) -> Attributes:
    arguments: dict[str, Any] = {
        "kind": "openai",
        "base_url": "http://localhost:8000/v1",
        "model": "m",
        "streamed": True,
        **others,
    }
    attributes = describe_request(request, latest=latest, **arguments)
    return {name: value for name, value in attributes.items() if value is not None}


def test_a_request_has_the_parameters_that_it_came_with() -> None:
    request = {
        "max_completion_tokens": 100,
        "temperature": 0,
        "top_p": 0.5,
        "frequency_penalty": 1,
        "presence_penalty": -1.5,
        "seed": 7,
        "n": 2,
    }
    assert described(request) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.system": "openai",
        "gen_ai.request.model": "m",
        "gen_ai.request.max_tokens": 100,
        "gen_ai.request.temperature": 0,
        "gen_ai.request.top_p": 0.5,
        "gen_ai.request.frequency_penalty": 1,
        "gen_ai.request.presence_penalty": -1.5,
        "gen_ai.request.seed": 7,
        "gen_ai.request.choice.count": 2,
        "server.address": "localhost",
        "server.port": 8000,
    }


@pytest.mark.parametrize(
    ("kind", "system"), [("openai", "openai"), ("anthropic", "anthropic"), ("gemini", "gcp.gemini")]
)
def test_newest_names_come_beside_the_others(kind: Kind, system: str) -> None:
    old = described({}, kind=kind)
    assert old["gen_ai.system"] == system
    assert described({"reasoning_effort": "low"}, kind=kind, latest=True) == {
        **old,
        "gen_ai.provider.name": system,
        "gen_ai.request.stream": True,
        "gen_ai.request.reasoning.level": "low",
    }


@pytest.mark.parametrize(
    ("base_url", "address", "port"),
    [
        ("https://user:secret@api.example.com/secret/v1?key=secret", "api.example.com", 443),
        ("http://api.example.com", "api.example.com", 80),
        ("http://[::1]:9", "::1", 9),
        ("http://api.example.com:secret", None, None),
    ],
)
def test_nothing_of_a_url_but_its_server_is_told(base_url: str, address: str | None, port: int | None) -> None:
    attributes = described({}, base_url=base_url)
    assert (attributes.get("server.address"), attributes.get("server.port")) == (address, port)
    assert "secret" not in str(attributes)


def test_an_answer_has_its_usage_unless_it_is_estimated() -> None:
    usage = TokenUsage(50, 30, cached_tokens=20, reasoning_tokens=10, cache_write_tokens=5)
    arguments: dict[str, Any] = {"model": "m-1", "finish_reasons": ["stop"], "seconds_to_first": 0.25}
    old = describe_answer(usage=usage, latest=False, **arguments)
    assert old == {
        "gen_ai.response.model": "m-1",
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.input_tokens": 50,
        "gen_ai.usage.output_tokens": 30,
    }
    assert describe_answer(usage=usage, latest=True, **arguments) == {
        **old,
        "gen_ai.response.time_to_first_chunk": 0.25,
        "gen_ai.usage.cache_read.input_tokens": 20,
        "gen_ai.usage.cache_write.input_tokens": 5,
        "gen_ai.usage.reasoning.output_tokens": 10,
    }
    assert "usage" not in str(describe_answer(usage=None, latest=True, **arguments))


def test_content_has_the_form_of_the_conventions() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}}
    request = {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Look"}, {"type": "image_url", "image_url": {}}]},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "3"},
        ]
    }
    asked = describe_input(request)["gen_ai.input.messages"]
    assert isinstance(asked, str)
    assert orjson.loads(asked) == [
        {"role": "system", "parts": [{"type": "text", "content": "Be brief."}]},
        {"role": "user", "parts": [{"type": "text", "content": "Look"}, {"type": "image_url"}]},
        {"role": "assistant", "parts": [{"type": "tool_call", "id": "c1", "name": "add", "arguments": '{"a":1}'}]},
        {"role": "tool", "parts": [{"type": "tool_call_response", "id": "c1", "response": "3"}]},
    ]
    answered = describe_output(
        {"choices": [{"message": {"role": "assistant", "content": "3"}, "finish_reason": "stop"}]}
    )["gen_ai.output.messages"]
    assert isinstance(answered, str)
    assert orjson.loads(answered) == [
        {"role": "assistant", "parts": [{"type": "text", "content": "3"}], "finish_reason": "stop"}
    ]


def test_long_content_is_left_out() -> None:
    assert describe_input({"messages": [{"role": "user", "content": "x" * 70_000}]}) == {"gen_ai.input.messages": None}
