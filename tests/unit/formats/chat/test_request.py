"""The chat completion request: valid requests pass unchanged, and an error names the invalid field."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import InvalidRequestError
from headrace.formats.chat.request import EXTENSIONS, ChatRequest, JobSubmission, parse_chat_request
from headrace.formats.chat.validation import parse_body

HELLO = {"role": "user", "content": "Hello"}
WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}


def chat(**parameters: Any) -> dict[str, Any]:
    return {"model": "demo", "messages": [HELLO], **parameters}


def saying(*messages: Any) -> dict[str, Any]:
    return chat(messages=list(messages))


def showing(*parts: Any) -> dict[str, Any]:
    return saying({"role": "user", "content": list(parts)})


def calling(**function: Any) -> dict[str, Any]:
    return chat(tools=[{"type": "function", "function": function}])


def parse(body: Any) -> ChatRequest:
    return parse_chat_request(json.dumps(body).encode())


def outcome(body: Any) -> ChatRequest | InvalidRequestError:
    try:
        return parse_chat_request(body if isinstance(body, bytes) else json.dumps(body).encode())
    except InvalidRequestError as error:
        return error


def refusal(body: Any) -> InvalidRequestError:
    error = outcome(body)
    assert isinstance(error, InvalidRequestError)
    return error


ACCEPTED = {
    "the least": chat(),
    "instructions": saying({"role": "system", "content": "Be brief."}, {"role": "developer", "content": "Be brief."}),
    "named speakers": saying({**HELLO, "name": "Ada"}),
    "text parts": saying({"role": "system", "content": [{"type": "text", "text": "Be brief."}]}, HELLO),
    "an image": showing({"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"}}),
    "a recording": showing({"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}}),
    "a file": showing({"type": "file", "file": {"file_id": "file-1"}}),
    "a cache breakpoint": showing({"type": "text", "text": "x", "prompt_cache_breakpoint": {"mode": "explicit"}}),
    "a refusal in parts": saying({"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}),
    "a refusal without content": saying({"role": "assistant", "refusal": "No."}),
    "a spoken answer without content": saying({"role": "assistant", "audio": {"id": "audio_1"}}),
    "calls without content": saying(
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{"}},
                {"id": "2", "type": "custom", "custom": {"name": "g", "input": ""}},
            ],
        },
        {"role": "tool", "content": "sunny", "tool_call_id": "1"},
        {"role": "tool", "content": [{"type": "text", "text": "warm"}], "tool_call_id": "2"},
    ),
    "a deprecated function call": saying(
        {"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "function", "name": "f", "content": None},
    ),
    "sampling at its lowest": chat(temperature=0, top_p=0, presence_penalty=-2, frequency_penalty=-2, n=1),
    "sampling at its highest": chat(temperature=2, top_p=1, presence_penalty=2, frequency_penalty=2, n=128),
    "one stop": chat(stop="\n"),
    "four stops": chat(stop=["a", "b", "c", "d"]),
    "limits": chat(max_tokens=1, max_completion_tokens=1),
    "biases": chat(logit_bias={"50256": -100, "1": 100}),
    "log probabilities": chat(logprobs=True, top_logprobs=20),
    "the greatest seed": chat(seed=2**63 - 1),
    "the least seed": chat(seed=-(2**63)),
    "a function tool": chat(tools=[WEATHER], tool_choice="auto", parallel_tool_calls=False),
    "a strict function": calling(name="a-Z_9", strict=True, description="…"),
    "a custom tool": chat(tools=[{"type": "custom", "custom": {"name": "sql", "format": {"type": "text"}}}]),
    "a grammar": chat(
        tools=[
            {
                "type": "custom",
                "custom": {
                    "name": "sql",
                    "format": {"type": "grammar", "grammar": {"definition": "a", "syntax": "lark"}},
                },
            }
        ]
    ),
    "a named choice": chat(tools=[WEATHER], tool_choice={"type": "function", "function": {"name": "get_weather"}}),
    "a named custom choice": chat(
        tools=[{"type": "custom", "custom": {"name": "sql"}}], tool_choice={"type": "custom", "custom": {"name": "sql"}}
    ),
    "a choice among an agent's tools": chat(model="agent_1", tool_choice="required"),
    "allowed tools": chat(
        tools=[WEATHER],
        tool_choice={"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [{"type": "function"}]}},
    ),
    "functions": chat(functions=[{"name": "f"}], function_call={"name": "f"}),
    "text format": chat(response_format={"type": "text"}),
    "object format": chat(response_format={"type": "json_object"}),
    "schema format": chat(
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "n", "schema": {"type": "object"}, "strict": None},
        }
    ),
    "reasoning": chat(reasoning_effort="xhigh", verbosity="low"),
    "audio out": chat(modalities=["text", "audio"], audio={"voice": "alloy", "format": "pcm16"}),
    "a voice of one's own": chat(modalities=["audio"], audio={"voice": {"id": "voice_1"}, "format": "aac"}),
    "a prediction": chat(prediction={"type": "content", "content": [{"type": "text", "text": "x"}]}),
    "web search": chat(
        web_search_options={
            "search_context_size": "low",
            "user_location": {"type": "approximate", "approximate": {"country": "CH"}},
        }
    ),
    "moderation": chat(moderation={"model": "omni", "policy": {"input": {"mode": "block"}}}),
    "a stream with usage": chat(stream=True, stream_options={"include_usage": True, "include_obfuscation": False}),
    "metadata at its limits": chat(metadata={f"{i:064}": "v" * 512 for i in range(16)}, store=True),
    "identifiers": chat(user="u", safety_identifier="s" * 128, prompt_cache_key="k", prompt_cache_retention="24h"),
    "parts of another server": showing(
        {"type": "text", "text": "Look"},
        {"type": "video_url", "video_url": {"url": "https://example.com/a.mp4"}},
        {"type": "audio_url", "audio_url": {"url": "https://example.com/a.wav"}},
    ),
    "tools of another server": chat(tools=[WEATHER, {"type": "browser_search"}], tool_choice="required"),
    # Words that are newer than ours, or another server's, are for the provider to judge.
    "another server's detail": showing({"type": "image_url", "image_url": {"url": "u", "detail": "original"}}),
    "another server's effort": chat(reasoning_effort="default"),
    "another server's modalities": chat(modalities=["image", "text"]),
    "another server's choice": chat(tools=[WEATHER], tool_choice="any"),
    "a longer time in the cache": chat(prompt_cache_options={"ttl": "12h"}),
    "cache options": chat(prompt_cache_options={"ttl": "30m", "mode": "implicit"}),
    "the extensions": chat(
        background=True, webhook="HTTPS://example.com:8443/hook?x=1", timeout=604_800, fallbacks=["a"] * 8
    ),
    "unknown parameters": chat(top_k=40, guided_json={"a": [1, None]}, model_dump="not a method"),
    "unknown fields anywhere": showing({"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}),
}


@pytest.mark.parametrize("body", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_what_is_accepted_comes_out_as_it_went_in(body: dict[str, Any]) -> None:
    assert parse(body).model_dump(exclude_unset=True) == body
    assert json.loads(parse(body).model_dump_json(exclude_unset=True)) == body


@pytest.mark.parametrize("tier", ["auto", "default", "flex", "scale", "priority", "fast"])
def test_every_service_tier_of_openai_is_accepted(tier: str) -> None:
    assert parse(chat(service_tier=tier)).service_tier == tier


@pytest.mark.parametrize("parameter", sorted(ChatRequest.model_fields.keys() - {"model", "messages"}))
def test_null_means_not_given_for_every_optional_parameter(parameter: str) -> None:
    assert getattr(parse(chat(**{parameter: None})), parameter) is None


def test_the_extensions_are_parameters_of_the_request() -> None:
    assert ChatRequest.model_fields.keys() >= EXTENSIONS


# body, param, code, a part of the message
REFUSED: dict[str, tuple[Any, str, str, str]] = {
    # What must be there
    "no model": ({"messages": [HELLO]}, "model", "missing_required_parameter", "Missing required parameter: 'model'."),
    "null model": (chat(model=None), "model", "invalid_type", "expected a string, but got null"),
    "empty model": (chat(model=""), "model", "empty_string", "minimum length 1"),
    "no messages": ({"model": "demo"}, "messages", "missing_required_parameter", "'messages'"),
    "empty messages": (saying(), "messages", "empty_array", "got an empty array"),
    "messages no array": (chat(messages="Hi"), "messages", "invalid_type", "expected an array, but got a string"),
    # Messages
    "message no object": (saying(HELLO, "Hi"), "messages[1]", "invalid_type", "expected an object, but got a string"),
    "no role": (saying({"content": "Hi"}), "messages[0].role", "missing_required_parameter", "messages[0].role"),
    "unknown role": (saying({"role": "bot"}), "messages[0].role", "invalid_value", "'bot'. Supported values are: 'dev"),
    "role no string": (saying({"role": 3}), "messages[0].role", "invalid_type", "but got an integer"),
    "role an object": (saying({"role": {}}), "messages[0].role", "invalid_type", "but got an object"),
    "no content": (saying({"role": "user"}), "messages[0].content", "missing_required_parameter", ""),
    "null content": (
        saying({"role": "user", "content": None}),
        "messages[0].content",
        "invalid_type",
        "expected a string or an array, but got null",
    ),
    "empty parts": (showing(), "messages[0].content", "empty_array", "minimum length 1"),
    "part of no type": (showing({"type": ""}), "messages[0].content[0].type", "empty_string", ""),
    "part's type a number": (showing({"type": 3}), "messages[0].content[0].type", "invalid_type", "but got an integer"),
    "part without type": (showing({}), "messages[0].content[0].type", "missing_required_parameter", ""),
    "part no object": (showing("x"), "messages[0].content[0]", "invalid_type", "expected an object"),
    "part without its field": (
        showing({"type": "text", "text": "x"}, {"type": "image_url"}),
        "messages[0].content[1].image_url",
        "missing_required_parameter",
        "",
    ),
    "url no string": (
        showing({"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": 3}}),
        "messages[0].content[1].image_url.url",
        "invalid_type",
        "Invalid type for 'messages[0].content[1].image_url.url': expected a string, but got an integer instead.",
    ),
    "detail no string": (
        showing({"type": "image_url", "image_url": {"url": "u", "detail": 2}}),
        "messages[0].content[0].image_url.detail",
        "invalid_type",
        "expected a string, but got an integer",
    ),
    "no detail": (
        showing({"type": "image_url", "image_url": {"url": "u", "detail": ""}}),
        "messages[0].content[0].image_url.detail",
        "empty_string",
        "",
    ),
    "unknown audio format": (
        showing({"type": "input_audio", "input_audio": {"data": "", "format": "ogg"}}),
        "messages[0].content[0].input_audio.format",
        "invalid_value",
        "'wav' or 'mp3'",
    ),
    "image in instructions": (
        saying({"role": "system", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}),
        "messages[0].content[0].type",
        "invalid_value",
        "Supported values are: 'text'",
    ),
    "assistant saying nothing": (
        saying({"role": "assistant"}),
        "messages[0].content",
        "missing_required_parameter",
        "tool_calls",
    ),
    "assistant calling nothing": (
        saying({"role": "assistant", "tool_calls": []}),
        "messages[0].content",
        "missing_required_parameter",
        "",
    ),
    "call without arguments": (
        saying({"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f"}}]}),
        "messages[0].tool_calls[0].function.arguments",
        "missing_required_parameter",
        "",
    ),
    "tool without call": (
        saying({"role": "tool", "content": "x"}),
        "messages[0].tool_call_id",
        "missing_required_parameter",
        "",
    ),
    "function without name": (
        saying({"role": "function", "content": "x"}),
        "messages[0].name",
        "missing_required_parameter",
        "",
    ),
    # Numbers
    "temperature 3": (
        chat(temperature=3),
        "temperature",
        "decimal_above_max_value",
        "Invalid 'temperature': decimal above maximum value. Expected a value <= 2, but got 3 instead.",
    ),
    "temperature below": (chat(temperature=-0.1), "temperature", "decimal_below_min_value", ">= 0, but got -0.1"),
    "temperature in words": (chat(temperature="1"), "temperature", "invalid_type", "a number, but got a string"),
    "temperature true": (chat(temperature=True), "temperature", "invalid_type", "but got a boolean"),
    "temperature beyond floats": (chat(temperature=10**400), "temperature", "invalid_value", "finite"),
    "top_p": (chat(top_p=1.01), "top_p", "decimal_above_max_value", "<= 1, but got 1.01"),
    "n 0": (chat(n=0), "n", "integer_below_min_value", ">= 1, but got 0"),
    "n 129": (chat(n=129), "n", "integer_above_max_value", "<= 128, but got 129"),
    "n 1.5": (chat(n=1.5), "n", "invalid_type", "expected an integer, but got a decimal"),
    "n in words": (chat(n="1"), "n", "invalid_type", "but got a string"),
    "max_tokens": (chat(max_tokens=0), "max_tokens", "integer_below_min_value", ""),
    "max_completion_tokens": (chat(max_completion_tokens=-1), "max_completion_tokens", "integer_below_min_value", ""),
    "presence_penalty": (chat(presence_penalty=2.5), "presence_penalty", "decimal_above_max_value", ""),
    "frequency_penalty": (chat(frequency_penalty=-3), "frequency_penalty", "decimal_below_min_value", ""),
    "seed beyond 64 bits": (chat(seed=2**63), "seed", "integer_above_max_value", "9223372036854775807"),
    "seed below 64 bits": (chat(seed=-(2**63) - 1), "seed", "invalid_value", "an integer"),
    "bias": (chat(logit_bias={"50256": 101}), "logit_bias.50256", "integer_above_max_value", ""),
    "bias no integer": (chat(logit_bias={"50256": "1"}), "logit_bias.50256", "invalid_type", ""),
    # Stops
    "five stops": (
        chat(stop=list("abcde")),
        "stop",
        "array_above_max_length",
        "maximum length 4, but got an array with",
    ),
    "no stops": (chat(stop=[]), "stop", "empty_array", ""),
    "stop a number": (chat(stop=3), "stop", "invalid_type", "expected a string or an array, but got an integer"),
    "stop of numbers": (chat(stop=["a", 3]), "stop[1]", "invalid_type", "expected a string"),
    # Tools
    "tool without type": (chat(tools=[{}]), "tools[0].type", "missing_required_parameter", ""),
    "tool no object": (chat(tools=["browser_search"]), "tools[0]", "invalid_type", "an object, but got a string"),
    "tool's type a number": (chat(tools=[{"type": 3}]), "tools[0].type", "invalid_type", "but got an integer"),
    "tool without function": (
        chat(tools=[{"type": "function"}]),
        "tools[0].function",
        "missing_required_parameter",
        "",
    ),
    "tool with bad function": (
        chat(tools=[WEATHER, {"type": "function", "function": 3}]),
        "tools[1].function",
        "invalid_type",
        "",
    ),
    "function without a name": (calling(), "tools[0].function.name", "missing_required_parameter", ""),
    "function with a space": (calling(name="a b"), "tools[0].function.name", "invalid_value", "^[a-zA-Z0-9_-]+$"),
    "function with a newline": (calling(name="ab\n"), "tools[0].function.name", "invalid_value", ""),
    "function with a long name": (calling(name="a" * 65), "tools[0].function.name", "string_above_max_length", "65"),
    "function with an empty name": (calling(name=""), "tools[0].function.name", "empty_string", ""),
    "parameters no object": (calling(name="f", parameters=[]), "tools[0].function.parameters", "invalid_type", ""),
    "unknown syntax": (
        chat(
            tools=[
                {
                    "type": "custom",
                    "custom": {
                        "name": "c",
                        "format": {"type": "grammar", "grammar": {"definition": "", "syntax": "peg"}},
                    },
                }
            ]
        ),
        "tools[0].custom.format.grammar.syntax",
        "invalid_value",
        "'lark' or 'regex'",
    ),
    "choice without tools": (chat(tool_choice="required"), "tool_choice", "invalid_value", "'tools' are specified"),
    "another choice without tools": (chat(tool_choice="any"), "tool_choice", "invalid_value", "'tools' are specified"),
    "no choice": (chat(tools=[WEATHER], tool_choice=""), "tool_choice", "empty_string", ""),
    "choice a number": (chat(tool_choice=3), "tool_choice", "invalid_type", "or an object, but got an integer"),
    "choice of unknown type": (chat(tool_choice={"type": "x"}), "tool_choice.type", "invalid_value", "'allowed_tools'"),
    "choice without name": (
        chat(tool_choice={"type": "function", "function": {}}),
        "tool_choice.function.name",
        "missing_required_parameter",
        "",
    ),
    "allowed tools' mode": (
        chat(tool_choice={"type": "allowed_tools", "allowed_tools": {"mode": "none", "tools": []}}),
        "tool_choice.allowed_tools.mode",
        "invalid_value",
        "",
    ),
    "no functions": (chat(functions=[]), "functions", "empty_array", ""),
    "too many functions": (chat(functions=[{"name": "f"}] * 129), "functions", "array_above_max_length", "128"),
    "unknown function call": (chat(function_call="all"), "function_call", "invalid_value", "'none' or 'auto'"),
    # Formats and modes
    "unknown format": (chat(response_format={"type": "xml"}), "response_format.type", "invalid_value", "'json_schema'"),
    "format without schema": (
        chat(response_format={"type": "json_schema"}),
        "response_format.json_schema",
        "missing_required_parameter",
        "",
    ),
    "schema with a bad name": (
        chat(response_format={"type": "json_schema", "json_schema": {"name": "a.b"}}),
        "response_format.json_schema.name",
        "invalid_value",
        "pattern",
    ),
    "schema no object": (
        chat(response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": "x"}}),
        "response_format.json_schema.schema",
        "invalid_type",
        "",
    ),
    "strict in words": (
        chat(response_format={"type": "json_schema", "json_schema": {"name": "a", "strict": "true"}}),
        "response_format.json_schema.strict",
        "invalid_type",
        "a boolean, but got a string",
    ),
    "effort a number": (chat(reasoning_effort=3), "reasoning_effort", "invalid_type", "a string, but got an integer"),
    "effort too long": (chat(reasoning_effort="x" * 65), "reasoning_effort", "string_above_max_length", "64"),
    "verbosity": (chat(verbosity="none"), "verbosity", "invalid_value", "'medium'"),
    "modality": (chat(modalities=["text", 3]), "modalities[1]", "invalid_type", "a string, but got an integer"),
    "audio without parameters": (chat(modalities=["audio"]), "audio", "missing_required_parameter", "modalities"),
    "audio without voice": (chat(audio={"format": "wav"}), "audio.voice", "missing_required_parameter", ""),
    "audio format": (chat(audio={"voice": "ash", "format": "ogg"}), "audio.format", "invalid_value", "'flac'"),
    "voice without id": (
        chat(audio={"voice": {}, "format": "wav"}),
        "audio.voice.id",
        "missing_required_parameter",
        "",
    ),
    "voice with more": (
        chat(audio={"voice": {"id": "v", "pitch": 1}, "format": "wav"}),
        "audio.voice.pitch",
        "unknown_parameter",
        "",
    ),
    "prediction": (
        chat(prediction={"type": "content", "content": [{"type": "text"}]}),
        "prediction.content[0].text",
        "missing_required_parameter",
        "",
    ),
    "location": (
        chat(web_search_options={"user_location": {"type": "approximate", "approximate": {"country": 41}}}),
        "web_search_options.user_location.approximate.country",
        "invalid_type",
        "",
    ),
    "moderation": (chat(moderation={}), "moderation.model", "missing_required_parameter", ""),
    "retention": (chat(prompt_cache_retention="1y"), "prompt_cache_retention", "invalid_value", "'in_memory' or '24h'"),
    # What depends on more than one parameter
    "top_logprobs alone": (chat(top_logprobs=3), "top_logprobs", "invalid_value", "'logprobs' is true"),
    "top_logprobs 21": (chat(logprobs=True, top_logprobs=21), "top_logprobs", "integer_above_max_value", "<= 20"),
    "stream_options alone": (chat(stream_options={}), "stream_options", "invalid_value", "'stream' is true"),
    "stream_options unstreamed": (chat(stream=False, stream_options={}), "stream_options", "invalid_value", ""),
    "include_usage": (
        chat(stream=True, stream_options={"include_usage": 1}),
        "stream_options.include_usage",
        "invalid_type",
        "",
    ),
    # The account's own
    "stream in words": (chat(stream="true"), "stream", "invalid_type", "a boolean, but got a string"),
    "service tier": (chat(service_tier="first"), "service_tier", "invalid_value", "'flex'"),
    "service tier a number": (chat(service_tier=1), "service_tier", "invalid_type", "but got an integer"),
    "17 pairs": (
        chat(metadata={str(i): "" for i in range(17)}),
        "metadata",
        "object_above_max_properties",
        "at most 16 properties, but got 17",
    ),
    "metadata a number": (chat(metadata={"k": 3}), "metadata.k", "invalid_type", "expected a string"),
    "metadata's long value": (chat(metadata={"k": "v" * 513}), "metadata.k", "string_above_max_length", "512"),
    "metadata's odd key": (chat(metadata={"a b": 3}), "metadata['a b']", "invalid_type", ""),
    "metadata's long key": (chat(metadata={"k" * 65: ""}), "metadata", "string_above_max_length", "key in 'metadata'"),
    "safety_identifier": (chat(safety_identifier="s" * 129), "safety_identifier", "string_above_max_length", ""),
    # The extensions
    "background in words": (chat(background="yes"), "background", "invalid_type", ""),
    "webhook by ftp": (chat(webhook="ftp://example.com"), "webhook", "invalid_value", ""),
    "webhook nowhere": (chat(webhook="https:///hook"), "webhook", "invalid_value", ""),
    "webhook with a newline": (chat(webhook="https://example.com/\nx"), "webhook", "invalid_value", ""),
    "webhook too long": (chat(webhook="https://example.com/" + "x" * 2029), "webhook", "string_above_max_length", ""),
    "timeout 0": (chat(timeout=0), "timeout", "decimal_below_min_value", "> 0"),
    "timeout over a week": (chat(timeout=604_801), "timeout", "decimal_above_max_value", "604800"),
    "nine fallbacks": (chat(fallbacks=["a"] * 9), "fallbacks", "array_above_max_length", ""),
    "empty fallback": (chat(fallbacks=["a", ""]), "fallbacks[1]", "empty_string", ""),
}


@pytest.mark.parametrize(("body", "param", "code", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_refused_is_named_by_path(body: Any, param: str, code: str, message: str) -> None:
    error = refusal(body)
    assert (error.status, error.type, error.param, error.code) == (400, "invalid_request_error", param, code)
    assert message in error.message
    assert param in error.message


NOT_A_REQUEST: dict[str, tuple[bytes, str, str]] = {
    "nothing": (b"", "invalid_json", "could not parse the JSON body"),
    "half an object": (b'{"model": "demo"', "invalid_json", "could not parse the JSON body"),
    "a form": (b"model=demo", "invalid_json", "could not parse the JSON body"),
    "no UTF-8": (b'{"model": "\xff"}', "invalid_json", "could not parse the JSON body"),
    "half a surrogate pair": (b'{"model": "\\ud800"}', "invalid_json", "could not parse the JSON body"),
    "an array": (b"[]", "invalid_type", "expected an object, but got an array"),
    "a string": (b'"hi"', "invalid_type", "expected an object, but got a string"),
    "null": (b"null", "invalid_type", "expected an object, but got null"),
    "deep arrays": (b"[" * 50_000, "invalid_json", "nested too deeply"),
    "deep objects in a parameter": (
        b'{"model":"m","messages":[{"role":"user","content":"x"}],"x":' + b'{"a":' * 500 + b"1" + b"}" * 501,
        "invalid_json",
        "nested too deeply",
    ),
    "empty arrays without end": (b"[" + b"[]," * 200_000 + b"1]", "too_many_values", "more than 100000 values"),
}


@pytest.mark.parametrize(("body", "code", "message"), NOT_A_REQUEST.values(), ids=NOT_A_REQUEST.keys())
def test_what_is_no_request_at_all_is_said_to_be_so(body: bytes, code: str, message: str) -> None:
    error = refusal(body)
    assert (error.status, error.param, error.code) == (400, None, code)
    assert message in error.message


@pytest.mark.parametrize(
    "number", [b"NaN", b"[-Infinity]", b"1e999", b'{"y":-1e999}', b"9" * 5000, b"1" + b"0" * 400], ids=lambda b: b[:12]
)
def test_a_number_that_is_not_finite_is_named_wherever_it_stands(number: bytes) -> None:
    error = refusal(b'{"model":"m","messages":[{"role":"user","content":"x"}],"x":%b}' % number)
    paths = {b"[": "x[0]", b"{": "x.y"}
    assert (error.status, error.param, error.code) == (400, paths.get(number[:1], "x"), "invalid_value")
    assert "finite" in error.message


def test_nan_as_a_word_is_text() -> None:
    body = saying({"role": "user", "content": "NaN and Infinity"})
    assert parse(body).model_dump(exclude_unset=True) == body


def test_an_error_does_not_send_back_what_was_sent() -> None:
    for body in (
        chat(service_tier="x" * 10_000),
        chat(metadata={"k" * 10_000: 3}),
        chat(n=10**4000),
        saying({"role": "x" * 10_000}),
        saying({"role": "assistant", "content": [{"x" * 10_000: 3}]}),
    ):
        error = refusal(body)
        assert len(error.message) <= 300
        assert len(error.param or "") <= 100
        assert "x" * 100 not in error.message
        assert "pydantic" not in error.message


def test_a_body_of_very_many_errors_is_refused_without_describing_each() -> None:
    assert "5000 invalid values" in refusal(chat(logit_bias=dict.fromkeys(map(str, range(5000)), 101))).message
    assert refusal(saying(*[3] * 5000)).param == "messages[0]"


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(st.sampled_from(["role", "content", "type", "function", "text", "x"]), inner, max_size=4)
        ),
        max_leaves=12,
    ),
    st.sampled_from(["messages", "tools", "tool_choice", "stop", "metadata", "response_format", "audio", "logit_bias"]),
)
@settings(deadline=None)
def test_any_json_in_any_parameter_is_taken_or_refused_by_name(value: Any, parameter: str) -> None:
    error = outcome(chat(**{parameter: value}))
    if isinstance(error, InvalidRequestError):
        assert error.param is None or error.param.startswith(parameter)
        assert error.param is not None or error.code == "invalid_json"


class TestJobSubmission:
    def parse(self, **fields: Any) -> JobSubmission:
        return parse_body(JobSubmission, json.dumps(fields).encode())

    def test_a_request_and_what_concerns_the_job(self) -> None:
        submission = self.parse(
            request=chat(top_k=1),
            priority="flex",
            metadata={"a": "b"},
            webhook="http://localhost/x",
            timeout=60,
        )
        assert submission.request.model_dump(exclude_unset=True) == chat(top_k=1)
        assert (submission.priority, submission.metadata, submission.timeout) == ("flex", {"a": "b"}, 60)

    def test_the_request_alone_is_enough(self) -> None:
        assert self.parse(request=chat()).priority is None

    @pytest.mark.parametrize(
        ("fields", "param", "code"),
        [
            pytest.param({}, "request", "missing_required_parameter", id="no request"),
            pytest.param({"request": chat(n=0)}, "request.n", "integer_below_min_value", id="in the request"),
            pytest.param({"request": saying(3)}, "request.messages[0]", "invalid_type", id="deep in the request"),
            pytest.param({"request": chat(), "prio": 1}, "prio", "unknown_parameter", id="unknown field"),
            pytest.param({"request": chat(), "priority": "auto"}, "priority", "invalid_value", id="priority"),
            pytest.param({"request": chat(), "timeout": 0}, "timeout", "decimal_below_min_value", id="timeout"),
        ],
    )
    def test_what_is_refused_is_named_by_path(self, fields: dict[str, Any], param: str, code: str) -> None:
        with pytest.raises(InvalidRequestError) as caught:
            self.parse(**fields)
        assert (caught.value.param, caught.value.code) == (param, code)


def test_the_schema_names_every_parameter_and_has_examples_that_are_valid() -> None:
    schema = ChatRequest.model_json_schema()
    assert {"temperature", "tools", "response_format", "background"} <= schema["properties"].keys()
    assert schema["properties"]["max_tokens"]["deprecated"]
    for example in schema["examples"]:
        assert parse(example).model_dump(exclude_unset=True) == example
    for example in JobSubmission.model_json_schema()["examples"]:
        submission = parse_body(JobSubmission, json.dumps(example).encode())
        assert submission.model_dump(exclude_unset=True) == example
