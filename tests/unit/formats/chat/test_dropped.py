"""Which fields of a request a format drops, and which it refuses."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from headrace.errors import InvalidRequestError
from headrace.formats.chat.dropped import dropped_parameters
from headrace.formats.chat.generations import (
    Thinking,
    claude_sampling,
    claude_thinking,
    gemini_version,
    responses_reason,
)
from headrace.formats.chat.support import Format
from headrace.formats.registry import FORMATS

MESSAGES = [{"role": "user", "content": "Hi"}]
TOOLS = [{"type": "function", "function": {"name": "f"}}]


def dropped(form: Format, model: str = "m", **fields: Any) -> list[str]:
    return dropped_parameters(form, model, {"model": "asked", "messages": MESSAGES, **fields})


def refused(form: Format, model: str = "m", **fields: Any) -> str | None:
    with pytest.raises(InvalidRequestError) as raised:
        dropped(form, model, **fields)
    assert raised.value.code == "unsupported_parameter"
    assert f"'{raised.value.param}'" in raised.value.message
    return raised.value.param


def rendered(form: Format, model: str = "m", **fields: Any) -> Any:
    request = {"model": "asked", "messages": MESSAGES, **fields}
    return orjson.loads(FORMATS[form].render_request(request, model=model, stream=False, output_limit=None))


def test_openais_format_drops_nothing() -> None:
    assert dropped("chat", seed=1, logit_bias={"1": 2}, newer=3) == []


@pytest.mark.parametrize("form", ["messages", "gemini"])
def test_what_is_harmless_is_dropped_and_named(form: Format) -> None:
    assert dropped(form, verbosity="low", prediction={"type": "content", "content": "x"}, newer=1) == [
        "verbosity",
        "prediction",
        "newer",
    ]


def test_gemini_drops_a_wish_for_one_call_at_a_time() -> None:
    assert dropped("gemini", tools=TOOLS, parallel_tool_calls=False) == ["parallel_tool_calls"]
    assert dropped("gemini", tools=TOOLS, parallel_tool_calls=True) == []


@pytest.mark.parametrize("form", ["messages", "gemini"])
def test_a_parameter_that_is_absent_or_changes_nothing_is_not_dropped(form: Format) -> None:
    assert dropped(form, n=1, logprobs=False, logit_bias={}, presence_penalty=0, modalities=["text"], user=None) == []
    assert dropped(form, parallel_tool_calls=False) == []  # there are no tools


@pytest.mark.parametrize("form", ["messages", "gemini"])
def test_what_matters_is_refused_by_name(form: Format) -> None:
    assert refused(form, logit_bias={"1": 2}) == "logit_bias"
    assert refused(form, tools=[{"type": "custom", "custom": {"name": "c"}}]) == "tools[0]"
    file = {"type": "file", "file": {"file_id": "file-1"}}
    assert refused(form, messages=[{"role": "user", "content": [file]}]) == "messages[0].content[0].file.file_id"
    assert refused(form, messages=[*MESSAGES, {"role": "function", "name": "f", "content": ""}]) == "messages[1].role"


def test_audio_goes_to_gemini_alone() -> None:
    spoken = [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}]}]
    assert refused("messages", messages=spoken) == "messages[0].content[0]"
    assert dropped("gemini", messages=spoken) == []


def test_the_responses_api_takes_what_chat_completions_take_but_for_some_parameters() -> None:
    custom = [{"type": "custom", "custom": {"name": "c"}}]
    choice = {"type": "custom", "custom": {"name": "c"}}
    file = {"role": "user", "content": [{"type": "file", "file": {"file_id": "file-1"}}]}
    taken: dict[str, Any] = {"logprobs": True, "verbosity": "low", "web_search_options": {}, "n": 2, "metadata": {}}
    assert dropped("responses", tools=custom, tool_choice=choice, messages=[file], **taken) == []
    assert dropped("responses", seed=1, frequency_penalty=1, top_k=3, max_tokens=15) == [
        "seed",
        "frequency_penalty",
        "top_k",
        "max_tokens",
    ]
    assert dropped("responses", max_tokens=1, max_completion_tokens=16) == []
    for name, value in {"stop": "x", "logit_bias": {"1": 2}, "audio": {"voice": "v", "format": "wav"}}.items():
        assert refused("responses", "m", **{name: value}) == name
    spoken = {"role": "assistant", "audio": {"id": "audio_1"}}
    assert refused("responses", messages=[*MESSAGES, spoken]) == "messages[1].audio"


@pytest.mark.parametrize(
    ("model", "effort", "reasons"),
    [
        ("gpt-4o", None, False),
        ("gpt-4.1-mini", None, False),
        ("gpt-4o", "low", True),
        ("gpt-5.1", None, True),
        ("openai/gpt-5-mini", None, True),
        ("gpt-5-chat-latest", None, False),
        ("o4-mini", None, True),
        ("codex-mini-latest", None, True),
        ("llama3.2", None, False),
        ("llama3.2", "none", False),
    ],
)
def test_which_models_are_asked_for_encrypted_reasoning(model: str, effort: str | None, reasons: bool) -> None:
    assert responses_reason(model, {"reasoning_effort": effort}) is reasons


def test_names_are_dropped() -> None:
    assert dropped("gemini", messages=[{**MESSAGES[0], "name": "ann"}]) == ["messages[0].name"]


@pytest.mark.parametrize(
    ("model", "taken"),
    [
        ("claude-3-7-sonnet-20250219", ["temperature", "top_p"]),
        ("claude-sonnet-4-20250514", ["temperature"]),
        ("claude-haiku-4-5-20251001", ["temperature"]),
        ("claude-sonnet-4-6", ["temperature"]),
        ("claude-opus-4-7", []),
        ("claude-sonnet-5", []),
        ("anthropic.claude-opus-5-1", []),
        ("fake", ["temperature"]),
    ],
)
def test_which_claudes_take_a_temperature(model: str, taken: list[str]) -> None:
    asked = {"temperature": 0.5, "top_p": 0.5}
    assert list(claude_sampling(model, {"messages": MESSAGES, **asked})) == taken
    assert dropped("messages", model, **asked) == [name for name in asked if name not in taken]


@pytest.mark.parametrize(
    ("temperature", "top_p", "taken", "named"),
    [
        (0.5, 1, {"temperature": 0.5}, []),
        (1, 0.5, {"top_p": 0.5}, []),
        (1.5, 0.5, {"top_p": 0.5}, ["temperature"]),
        (1, 1, {"temperature": 1}, []),
        (0, 0.5, {"temperature": 0}, ["top_p"]),
        (None, 0.5, {"top_p": 0.5}, []),
    ],
)
def test_a_default_counts_as_not_given_beside_the_other(
    temperature: float | None, top_p: float, taken: dict[str, float], named: list[str]
) -> None:
    asked = {"temperature": temperature, "top_p": top_p}
    assert claude_sampling("claude-opus-4-5", {"messages": MESSAGES, **asked}) == taken
    assert dropped("messages", "claude-opus-4-5", **asked) == named


def test_a_temperature_that_is_cut_is_named() -> None:
    assert dropped("messages", temperature=1.5) == ["temperature"]
    assert dropped("messages", temperature=1.0) == []
    assert dropped("messages", "claude-opus-4-7", temperature=1.0) == []


def test_strict_tools_beyond_those_that_anthropic_takes_are_named() -> None:
    tools = [{"type": "function", "function": {"name": f"f{index}", "strict": index != 3}} for index in range(23)]
    assert dropped("messages", tools=tools[:21]) == []
    assert dropped("messages", tools=tools) == ["tools[21].function.strict", "tools[22].function.strict"]
    request = {"messages": MESSAGES, "tools": tools}
    body = orjson.loads(FORMATS["messages"].render_request(request, model="m", stream=False, output_limit=None))
    assert [tool["name"] for tool in body["tools"] if "strict" not in tool] == ["f3", "f21", "f22"]
    # A tool that is not offered does not count.
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": tools[2:]}}
    assert dropped("messages", tools=tools, tool_choice=choice) == []


@pytest.mark.parametrize(
    ("model", "quiet"),
    [
        ("claude-opus-4-7", True),
        ("claude-sonnet-5", True),
        ("claude-opus-5", True),
        ("claude-haiku-5-5", True),
        ("claude-sonnet-5-5", True),
        ("claude-opus-5-5", False),
        ("claude-fable-5", False),
        ("claude-mythos-preview", False),
    ],
)
def test_which_claudes_always_think(model: str, quiet: bool) -> None:
    assert dropped("messages", model, reasoning_effort="none") == ([] if quiet else ["reasoning_effort"])
    assert dropped("messages", model, reasoning_effort="none", thinking={"type": "adaptive"}) == []


@pytest.mark.parametrize("model", ["claude-opus-5-5", "anthropic.claude-sonnet-5-5", "claude-fable-5-1"])
def test_the_newest_claudes_cannot_be_made_to_call_a_tool(model: str) -> None:
    named = {"type": "function", "function": {"name": "f"}}
    for choice in (
        "required",
        named,
        {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [named]}},
    ):
        assert refused("messages", model, tools=TOOLS, tool_choice=choice) == "tool_choice"
    for other in ("claude-haiku-5-5", "claude-opus-5", "claude-fable-5", "fake"):
        assert dropped("messages", other, tools=TOOLS, tool_choice="required") == []
    assert dropped("messages", model, tools=TOOLS, tool_choice="auto") == []


def test_how_claudes_think() -> None:
    def thinking(model: str, **fields: Any) -> Thinking | None:
        return claude_thinking(model, {"messages": MESSAGES, **fields})

    forced = {"tools": TOOLS, "tool_choice": "required"}
    assert thinking("claude-opus-4-6", reasoning_effort="low") is Thinking.ADAPTIVE
    assert thinking("claude-opus-4-6", reasoning_effort="low", **forced) is Thinking.EFFORT
    assert thinking("claude-opus-4-6", reasoning_effort="none") is None
    assert thinking("claude-opus-4-5", reasoning_effort="low") is Thinking.BUDGET
    assert thinking("claude-opus-4-5", reasoning_effort="low", **forced) is None
    assert thinking("claude-opus-4-5", reasoning_effort="low", max_tokens=1024) is None
    assert thinking("claude-opus-4-5", thinking={"type": "enabled", "budget_tokens": 2000}) is Thinking.BUDGET
    assert dropped("messages", "claude-opus-4-5", reasoning_effort="low", **forced) == ["reasoning_effort"]
    assert dropped("messages", "claude-opus-4-6", reasoning_effort="low", temperature=0.3) == ["temperature"]


def test_a_claude_does_not_think_on_from_a_call_whose_thoughts_are_gone() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    history = [*MESSAGES, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "c"}]
    assert dropped("messages", "claude-opus-4-5", reasoning_effort="low", messages=history) == ["reasoning_effort"]
    history[1]["thinking_blocks"] = [{"type": "thinking"}]  # type: ignore[index]
    assert dropped("messages", "claude-opus-4-5", reasoning_effort="low", messages=history) == []


def test_generations_of_gemini() -> None:
    assert gemini_version("gemini-1.5-pro") == (1, 5)
    assert gemini_version("models/gemini-3-pro-preview") == (3, 0)
    assert gemini_version("fake") == (2, 5)
    assert dropped("gemini", "gemini-2.0-flash", reasoning_effort="low") == ["reasoning_effort"]


def test_gemini_has_no_penalties_since_2_5() -> None:
    asked = {"presence_penalty": 1, "frequency_penalty": -0.5}
    assert dropped("gemini", "gemini-2.0-flash", **asked) == []
    for model in ("gemini-2.5-flash", "gemini-3-pro-preview"):
        assert dropped("gemini", model, **asked) == list(asked)
        assert dropped("gemini", model, presence_penalty=0, frequency_penalty=0) == []


def test_gemini_2_5_pro_always_thinks() -> None:
    assert dropped("gemini", "gemini-2.5-pro", reasoning_effort="none") == ["reasoning_effort"]
    assert dropped("gemini", "gemini-2.5-pro", reasoning_effort="low") == []
    assert dropped("gemini", "gemini-2.5-flash", reasoning_effort="none") == []


def test_gemini_3_pro_always_thinks() -> None:
    for model in ("gemini-3-pro-preview", "gemini-3.1-pro-preview"):
        assert dropped("gemini", model, reasoning_effort="none") == ["reasoning_effort"]
        assert dropped("gemini", model, reasoning_effort="minimal") == []
    for model in ("gemini-3-flash-preview", "gemini-3.5-flash-lite"):
        assert dropped("gemini", model, reasoning_effort="none") == []


@pytest.mark.parametrize("kind", ["json_object", "json_schema"])
def test_gemini_before_3_answers_in_json_only_without_tools(kind: str) -> None:
    asked: dict[str, Any] = {"response_format": {"type": kind, "json_schema": {"name": "n"}}}
    for choice in (None, "auto", "required"):
        assert refused("gemini", "gemini-2.5-flash", tools=TOOLS, tool_choice=choice, **asked) == "response_format"
    assert dropped("gemini", "gemini-2.5-flash", tools=TOOLS, tool_choice="none", **asked) == []
    assert dropped("gemini", "gemini-2.5-flash", tools=TOOLS, response_format={"type": "text"}) == []
    assert dropped("gemini", "gemini-2.5-flash", **asked) == []
    assert dropped("gemini", "gemini-3-flash-preview", tools=TOOLS, **asked) == []


COUNTS = {"type": "object", "properties": {"counts": {"type": "object", "additionalProperties": {"type": "integer"}}}}


def test_anthropic_is_given_a_tool_with_a_map_that_is_not_strict() -> None:
    tools = [
        {"type": "function", "function": {"name": "count", "parameters": COUNTS, "strict": True}},
        {"type": "function", "function": {"name": "now", "strict": True}},
    ]
    assert dropped("messages", tools=tools) == ["tools[0].function.strict"]
    body = rendered("messages", tools=tools)
    assert [(tool["input_schema"], tool.get("strict")) for tool in body["tools"]] == [
        (COUNTS, None),
        ({"type": "object", "additionalProperties": False}, True),
    ]


def test_anthropic_cannot_answer_with_a_map() -> None:
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": COUNTS}}
    assert refused("messages", response_format=form) == "response_format"
    assert dropped("gemini", response_format=form) == []


def test_a_json_schema_that_says_nothing_asks_anthropic_for_any_json() -> None:
    form = {"type": "json_schema", "json_schema": {"name": "n"}}
    assert dropped("messages", response_format=form) == []
    body = rendered("messages", response_format=form)
    assert body == rendered("messages", response_format={"type": "json_object"})
    assert "output_config" not in body


@pytest.mark.parametrize(("form", "model"), [("messages", m) for m in ("claude-3-7-sonnet", "claude-opus-4-7")])
@pytest.mark.parametrize("effort", ["default", "ultra"])
def test_an_effort_that_anthropic_has_not_is_dropped_and_named(form: Format, model: str, effort: str) -> None:
    assert dropped(form, model, reasoning_effort=effort) == ["reasoning_effort"]
    assert rendered(form, model, reasoning_effort=effort) == rendered(form, model)


@pytest.mark.parametrize("model", ["gemini-2.0-flash", "gemini-2.5-pro", "gemini-3-flash-preview"])
def test_an_effort_that_google_has_not_is_dropped_and_named(model: str) -> None:
    assert dropped("gemini", model, reasoning_effort="default") == ["reasoning_effort"]
    assert rendered("gemini", model, reasoning_effort="default") == rendered("gemini", model)


@pytest.mark.parametrize("form", ["responses", "messages", "gemini"])
def test_any_tool_is_mistrals_word_for_a_required_one(form: Format) -> None:
    assert dropped(form, tools=TOOLS, tool_choice="any") == []
    assert rendered(form, tools=TOOLS, tool_choice="any") == rendered(form, tools=TOOLS, tool_choice="required")
    assert refused(form, tools=TOOLS, tool_choice="maybe") == "tool_choice"


def test_a_chat_server_judges_words_that_we_do_not_know() -> None:
    asked: dict[str, Any] = {
        "reasoning_effort": "default",
        "tools": TOOLS,
        "tool_choice": "any",
        "modalities": ["image"],
    }
    assert dropped("chat", **asked) == []
    assert {name: rendered("chat", **asked)[name] for name in asked} == asked
    for form in ("responses", "messages", "gemini"):
        assert refused(form, modalities=["image", "text"]) == "modalities"


@pytest.mark.parametrize("form", ["responses", "messages", "gemini"])
def test_what_only_a_chat_server_has_is_refused_by_name(form: Format) -> None:
    video = {"type": "video_url", "video_url": {"url": "https://example.com/a.mp4"}}
    shown = [*MESSAGES, {"role": "user", "content": [{"type": "text", "text": "Look"}, video]}]
    assert refused(form, messages=shown) == "messages[1].content[1]"
    assert refused(form, messages=[{"role": "user", "content": [{"type": "refusal"}]}]) == "messages[0].content[0]"
    search = [*TOOLS, {"type": "browser_search"}]
    assert refused(form, tools=search) == "tools[1]"
    asked: dict[str, Any] = {"messages": shown, "tools": search}
    assert {name: rendered("chat", **asked)[name] for name in asked} == asked
