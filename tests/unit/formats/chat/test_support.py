"""Which fields of a request a format drops, and which it refuses."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.errors import InvalidRequestError
from headrace.formats.chat.generations import (
    Thinking,
    claude_samples,
    claude_thinking,
    gemini_version,
    responses_reason,
)
from headrace.formats.chat.support import Format, dropped_parameters

MESSAGES = [{"role": "user", "content": "Hi"}]
TOOLS = [{"type": "function", "function": {"name": "f"}}]


def dropped(form: Format, model: str = "m", **fields: Any) -> list[str]:
    return dropped_parameters(form, model, {"model": "asked", "messages": MESSAGES, **fields})


def refused(form: Format, **fields: Any) -> str | None:
    with pytest.raises(InvalidRequestError) as raised:
        dropped(form, **fields)
    assert raised.value.code == "unsupported_parameter"
    assert f"'{raised.value.param}'" in raised.value.message
    return raised.value.param


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
def test_what_is_not_given_or_happens_anyway_is_nothing(form: Format) -> None:
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
        assert refused("responses", **{name: value}) == name
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
    ("model", "samples"),
    [
        ("claude-3-7-sonnet-20250219", True),
        ("claude-sonnet-4-20250514", True),
        ("claude-haiku-4-5-20251001", True),
        ("claude-sonnet-4-6", True),
        ("claude-opus-4-7", False),
        ("claude-sonnet-5", False),
        ("anthropic.claude-opus-5-1", False),
        ("fake", True),
    ],
)
def test_which_claudes_take_a_temperature(model: str, samples: bool) -> None:
    assert claude_samples(model) is samples
    assert dropped("messages", model, temperature=0.5, top_p=0.5) == ([] if samples else ["temperature", "top_p"])


def test_a_temperature_that_is_cut_is_named() -> None:
    assert dropped("messages", temperature=1.5) == ["temperature"]
    assert dropped("messages", temperature=1.0) == []


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
