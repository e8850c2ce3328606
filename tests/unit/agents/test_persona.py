"""How an agent's persona and defaults change a request."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.agents.persona import AgentDefinition, resolve_chat
from headrace.errors import InvalidRequestError
from headrace.formats.chat.request import parse_chat_request
from headrace.formats.chat.validation import parse_body

AGENT: dict[str, Any] = {
    "name": "Miller",
    "bio": ["You have run a mill for forty years.", "You speak plainly."],
    "system_prompt": "Be brief.",
    "model": "gpt-4o",
    "parameters": {"temperature": 0.3, "max_completion_tokens": 300},
    "messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "The miller."}],
}
HI = {"role": "user", "content": "Hi"}
PERSONA = "You are Miller.\nYou have run a mill for forty years.\nYou speak plainly.\n\nBe brief."


def ask(agent: dict[str, Any] = AGENT, **fields: Any) -> dict[str, Any]:
    return resolve_chat(agent, {"model": "agent_1", "messages": [HI], **fields})


def test_persona_and_examples_come_before_the_caller() -> None:
    assert ask()["messages"] == [{"role": "system", "content": PERSONA}, *AGENT["messages"], HI]
    assert ask()["model"] == "gpt-4o"


def test_the_callers_system_messages_are_added_after_the_persona() -> None:
    own = [{"role": "system", "content": "Rhyme."}, {"role": "developer", "content": "In Dutch."}]
    later = {"role": "system", "content": "Stop rhyming."}
    assert ask(messages=[*own, HI, later])["messages"] == [
        {"role": "system", "content": PERSONA},
        *own,
        *AGENT["messages"],
        HI,
        later,
    ]


def test_a_conversation_of_instructions_alone_keeps_them() -> None:
    own = {"role": "system", "content": "Say hello."}
    assert ask(messages=[own])["messages"] == [{"role": "system", "content": PERSONA}, own, *AGENT["messages"]]


def test_parameters_of_the_call_go_before_the_defaults() -> None:
    assert ask()["temperature"] == 0.3
    assert ask(temperature=0)["temperature"] == 0
    assert ask(temperature=None)["temperature"] == 0.3
    limited = ask(max_tokens=5)
    assert limited["max_tokens"] == 5
    assert "max_completion_tokens" not in limited


F, G = ({"type": "function", "function": {"name": name}} for name in "fg")
TOOLS = {"tools": [F], "tool_choice": F, "parallel_tool_calls": False}
FUNCTIONS = {"functions": [{"name": "f"}], "function_call": {"name": "f"}}
LOGPROBS = {"logprobs": True, "top_logprobs": 3}
AUDIO = {"modalities": ["text", "audio"], "audio": {"voice": "alloy", "format": "wav"}}


@pytest.mark.parametrize(
    ("defaults", "call", "expected"),
    [
        (TOOLS, {}, TOOLS),
        (TOOLS, {"tools": [G]}, {"tools": [G]}),
        (TOOLS, {"tools": []}, {"tools": []}),
        (TOOLS, {"tools": None}, TOOLS),
        (TOOLS, {"tools": [G], "tool_choice": "auto"}, {"tools": [G], "tool_choice": "auto"}),
        (TOOLS, {"tool_choice": "none"}, {**TOOLS, "tool_choice": "none"}),
        (TOOLS, {"parallel_tool_calls": True}, {**TOOLS, "parallel_tool_calls": True}),
        (TOOLS, FUNCTIONS, FUNCTIONS),
        (TOOLS, {"functions": [{"name": "g"}]}, {"functions": [{"name": "g"}]}),
        ({"tool_choice": "auto", "parallel_tool_calls": False}, {}, {}),
        (FUNCTIONS, {}, FUNCTIONS),
        (FUNCTIONS, {"functions": [{"name": "g"}]}, {"functions": [{"name": "g"}]}),
        (FUNCTIONS, TOOLS, TOOLS),
        (FUNCTIONS, {"tools": [G]}, {"tools": [G]}),
        (LOGPROBS, {}, LOGPROBS),
        (LOGPROBS, {"logprobs": False}, {"logprobs": False}),
        (LOGPROBS, {"top_logprobs": 1}, {"logprobs": True, "top_logprobs": 1}),
        (AUDIO, {}, AUDIO),
        (AUDIO, {"modalities": ["text"]}, {"modalities": ["text"]}),
        (AUDIO, {"modalities": ["text", "audio"]}, AUDIO),
        ({"max_tokens": 5}, {"max_completion_tokens": 6}, {"max_completion_tokens": 6}),
    ],
)
def test_defaults_go_aside_with_what_they_are_about(
    defaults: dict[str, Any], call: dict[str, Any], expected: dict[str, Any]
) -> None:
    agent = {"name": "A", "model": "m", "parameters": defaults}
    parse_chat_request(orjson.dumps({"model": f"agent_{'0' * 32}", "messages": [HI], **call}))
    resolved = ask(agent, **call)
    assert resolved == {"model": "m", "messages": [HI], **expected}
    assert parse_chat_request(orjson.dumps(resolved)).model == "m"


@pytest.mark.parametrize(
    ("agent", "persona"),
    [
        ({"name": "A"}, None),
        ({"name": "A", "bio": "You mill."}, "You are A.\nYou mill."),
        ({"name": "A", "system_prompt": "Mill."}, "You are A.\n\nMill."),
        ({"name": "A", "bio": []}, None),
    ],
)
def test_a_persona_is_made_of_what_there_is(agent: dict[str, Any], persona: str | None) -> None:
    messages = ask({"model": "m", **agent})["messages"]
    assert messages == ([HI] if persona is None else [{"role": "system", "content": persona}, HI])


TEXT = st.text(min_size=1, max_size=20)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(["system", "developer", "user", "assistant"]),
            "content": TEXT.filter(lambda text: not text.startswith("example")),
        }
    ),
    min_size=1,
    max_size=6,
)


@given(messages=MESSAGES, examples=MESSAGES, bio=st.none() | TEXT | st.lists(TEXT, max_size=3), n=st.integers(1, 3))
def test_nothing_the_caller_says_is_lost_or_moved(
    messages: list[dict[str, str]], examples: list[dict[str, str]], bio: Any, n: int
) -> None:
    examples = [{**message, "content": f"example {message['content']}"} for message in examples]
    agent = {"name": "A", "bio": bio, "model": "m", "messages": examples, "parameters": {"n": 4, "top_p": 0.5}}
    request = {"model": "agent_1", "messages": messages, "n": n, "seed": None}
    resolved = resolve_chat(agent, request)
    said = list(resolved["messages"])
    for message in examples:
        said.remove(message)
    if bio:
        said.pop(0)
    assert said == messages
    assert (resolved["n"], resolved["top_p"]) == (n, 0.5)
    assert parse_chat_request(orjson.dumps(resolved)).model == "m"


# -- definitions ------------------------------------------------------------------------------------------------------


def refused(**changes: Any) -> str | None:
    with pytest.raises(InvalidRequestError) as raised:
        parse_body(AgentDefinition, orjson.dumps(AGENT | changes)).check()
    return raised.value.param


def test_a_definition_is_taken() -> None:
    parse_body(AgentDefinition, orjson.dumps(AGENT)).check()


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"name": ""}, "name"),
        ({"bio": 3}, "bio"),
        ({"model": "agent_019a5e0c3d7f4b1e8a2c6d9f0b3e5a71"}, "model"),
        ({"parameters": {"temperature": 3}}, "parameters.temperature"),
        ({"parameters": {"stop": ["a"] * 5}}, "parameters.stop"),
        ({"parameters": {"stream": True}}, "parameters.stream"),
        ({"parameters": {"messages": []}}, "parameters.messages"),
        ({"messages": [{"role": "nobody", "content": "x"}]}, "messages[0].role"),
        ({"metadata": {"k": 1}}, "metadata.k"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_mistake_is_named_by_its_path(changes: dict[str, Any], param: str) -> None:
    assert refused(**changes) == param
