"""A request of the Responses API to an agent becomes one to its model."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.agents.formats import resolve
from headrace.errors import InvalidRequestError
from headrace.formats.registry import CLIENT_FORMATS
from headrace.formats.responses.context import COMPACTS, CONTEXT_ITEMS, expand, with_ids, without_context
from headrace.formats.responses.request import check_response_request
from tests.unit.agents.test_persona import AGENT, PERSONA

JOB_ID = "job_" + "1" * 32


def ask(
    agent: dict[str, Any] = AGENT,
    *,
    input: str | list[dict[str, Any]] = "Hi",  # noqa: A002  (the name of the field)
    context: list[dict[str, Any]] | None = None,
    **fields: Any,
) -> dict[str, Any]:
    asked = expand({"model": "agent_1", "input": input, **fields}, context or [])
    resolved = resolve(agent, asked, "responses")
    check_response_request(without_context(resolved))
    return resolved


def with_parameters(**parameters: Any) -> dict[str, Any]:
    return {**AGENT, "parameters": parameters}


def test_a_compaction_may_name_an_agent() -> None:
    asked = {**expand({"model": "agent_1", "input": "Hi"}, []), COMPACTS: True}
    resolved = resolve(AGENT, asked, "responses")
    assert resolved[COMPACTS]
    assert check_response_request(without_context(resolved)).model == "gpt-4o"


def test_persona_and_examples_come_before_the_caller() -> None:
    asked = ask(instructions="In Dutch.")
    assert (asked["model"], asked["instructions"]) == ("gpt-4o", f"{PERSONA}\n\nIn Dutch.")
    chat = CLIENT_FORMATS["responses"].translate(with_ids(asked, JOB_ID)).chat
    said = [(message["role"], _text(message["content"])) for message in chat["messages"]]
    assert said == [
        ("system", asked["instructions"]),
        ("user", "Who?"),
        ("assistant", "The miller."),
        ("user", "Hi"),
    ]


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def test_the_callers_first_instructions_stay_before_the_examples() -> None:
    own = [{"role": "developer", "content": "Rhyme."}, {"role": "user", "content": "Hi"}]
    roles = [item["role"] for item in ask(input=own)["input"]]
    assert roles == ["developer", "user", "assistant", "user"]


def test_a_tool_that_only_some_servers_have_is_the_agents() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}, {"type": "browser_search"}]
    assert ask(with_parameters(tools=tools, tool_choice="any"))["tools"][1] == tools[1]


def test_every_item_gets_an_id() -> None:
    ids = [item["id"] for item in with_ids(ask(), JOB_ID)["input"]]
    assert len(set(ids)) == 3


def test_a_context_has_the_examples_already() -> None:
    context = with_ids(ask(), JOB_ID)["input"]
    asked = ask(input="And then?", context=context)
    assert [item["role"] for item in asked["input"]] == ["user", "assistant", "user", "user"]
    assert asked[CONTEXT_ITEMS] == 3
    assert asked["instructions"] == PERSONA


@pytest.mark.parametrize("instructed", [[], [{"id": "msg_0", "role": "developer", "content": "Rhyme."}]])
def test_examples_come_before_a_context_that_lacks_them(instructed: list[dict[str, Any]]) -> None:
    who = {"id": "msg_1", "type": "message", "role": "user", "content": [{"type": "input_text", "text": "Who?"}]}
    asked = ask(input=[*instructed, {"role": "user", "content": "Hi"}], context=[*instructed, who])
    roles = [item["role"] for item in instructed]
    assert [item["role"] for item in asked["input"]] == [*roles, "user", "assistant", "user", *roles, "user"]
    assert asked[CONTEXT_ITEMS] == len(instructed) + 3
    stored = with_ids(asked, JOB_ID)["input"]
    assert stored[len(instructed) + 2] == who
    assert len({item["id"] for item in stored}) == len(stored) - len(instructed)
    again = ask(input="And then?", context=stored)
    assert again["input"][:-1] == stored


def test_examples_come_behind_a_context_of_instructions() -> None:
    asked = ask(context=[{"id": "msg_0", "role": "developer", "content": "Rhyme."}])
    assert [item["role"] for item in asked["input"]] == ["developer", "user", "assistant", "user"]
    assert asked[CONTEXT_ITEMS] == 1


def test_an_agent_without_a_persona_leaves_the_instructions() -> None:
    bare = {"name": "Bare", "model": "gpt-4o"}
    assert "instructions" not in ask(bare)
    assert ask(bare, instructions="Be brief.")["instructions"] == "Be brief."
    assert [item["role"] for item in ask(bare)["input"]] == ["user"]


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"temperature": 0.3, "max_completion_tokens": 300}, {"temperature": 0.3, "max_output_tokens": 300}),
        (
            {"reasoning_effort": "low", "verbosity": "low"},
            {"reasoning": {"effort": "low"}, "text": {"verbosity": "low"}},
        ),
        ({"logprobs": True, "top_logprobs": 2}, {"include": ["message.output_text.logprobs"], "top_logprobs": 2}),
        ({"logprobs": False, "top_logprobs": 2}, {}),
        ({"presence_penalty": 1, "fallbacks": ["m"]}, {"presence_penalty": 1, "fallbacks": ["m"]}),
        ({"response_format": {"type": "json_object"}}, {"text": {"format": {"type": "json_object"}}}),
    ],
)
def test_defaults_have_the_names_of_the_api(parameters: dict[str, Any], expected: dict[str, Any]) -> None:
    asked = ask(with_parameters(**parameters))
    assert {name: asked[name] for name in asked.keys() - {"model", "input", "instructions", CONTEXT_ITEMS}} == expected


def test_the_call_goes_before_the_defaults() -> None:
    agent = with_parameters(temperature=0.3, verbosity="low", reasoning_effort="low")
    asked = ask(agent, temperature=1, text={"format": {"type": "json_object"}}, reasoning={"effort": "high"})
    assert asked["temperature"] == 1
    assert asked["text"] == {"verbosity": "low", "format": {"type": "json_object"}}
    assert asked["reasoning"] == {"effort": "high"}


def test_a_call_with_tools_has_none_of_the_agents() -> None:
    function = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
    agent = with_parameters(tools=[function], tool_choice="required", parallel_tool_calls=False)
    asked = ask(agent)
    assert (asked["tools"][0]["name"], asked["tool_choice"], asked["parallel_tool_calls"]) == (
        "look",
        "required",
        False,
    )
    own = {"type": "function", "name": "own", "parameters": {"type": "object", "properties": {}}, "strict": False}
    asked = ask(agent, tools=[own])
    assert asked["tools"] == [own]
    assert not asked.keys() & {"tool_choice", "parallel_tool_calls"}


def test_a_default_that_the_api_does_not_have_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="'stop'") as refused:
        ask(with_parameters(stop=["x"]))
    assert refused.value.param == "model"


def test_a_request_that_is_not_expanded_is_resolved_too() -> None:
    resolved = resolve(AGENT, {"model": "agent_1", "input": "Hi"}, "responses")
    assert expand(resolved, ()) == ask()
