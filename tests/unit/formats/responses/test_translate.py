"""The chat request that a Responses request means, and what it names as lost on the way."""

from __future__ import annotations

import copy
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import InvalidRequestError
from headrace.formats.chat.request import ChatRequest, check_request
from headrace.formats.responses.context import CONTEXT_ITEMS
from headrace.formats.responses.offered import Origin, flat_name, origins
from headrace.formats.responses.request import check_response_request
from headrace.formats.responses.sealed import seal
from headrace.formats.responses.translate import translate
from headrace.formats.translation import Translation

Json = dict[str, Any]


def translated(said: Any = "Hi", **fields: Any) -> Translation:
    """Translate a request that is checked first, and check that the chat request is a valid one."""
    document = {"model": "m", "input": said, **fields}
    before = copy.deepcopy(document)
    check_response_request({name: value for name, value in document.items() if name != CONTEXT_ITEMS})
    translation = translate(document)
    assert document == before
    check_request(ChatRequest, translation.chat)
    assert len(translation.messages) == len(translation.chat["messages"])
    return translation


def messages(*items: Json, **fields: Any) -> list[Json]:
    found: list[Json] = translated(list(items), **fields).chat["messages"]
    return found


def refused(*items: Json, **fields: Any) -> tuple[str | None, str | None, str]:
    with pytest.raises(InvalidRequestError) as raised:
        translated(list(items), **fields)
    return raised.value.param, raised.value.code, raised.value.message


def user(content: Any) -> Json:
    return {"type": "message", "role": "user", "content": content}


def model(*texts: str) -> Json:
    content = [{"type": "output_text", "text": text, "annotations": [], "logprobs": []} for text in texts]
    return {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": content}


def call(call_id: str = "c", name: str = "f", arguments: str = "{}", **fields: Any) -> Json:
    return {"type": "function_call", "call_id": call_id, "name": name, "arguments": arguments, **fields}


def output(call_id: str = "c", said: Any = "done") -> Json:
    return {"type": "function_call_output", "call_id": call_id, "output": said}


def chat_call(call_id: str = "c", name: str = "f", arguments: str = "{}") -> Json:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


# -- messages ---------------------------------------------------------------------------------------------------------


def test_a_text_is_what_the_user_says() -> None:
    asked = translated("Hi", instructions="Be brief.")
    assert asked.chat["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert asked.messages == ["instructions", "input"]


def test_instructions_stay_where_they_stand() -> None:
    developer, system = (
        {"role": role, "content": [{"type": "input_text", "text": role}]} for role in ("developer", "system")
    )
    assert messages(developer, user("Hi"), system, instructions="First.") == [
        {"role": "system", "content": "First."},
        {"role": "system", "content": "developer"},
        {"role": "user", "content": "Hi"},
        {"role": "system", "content": "system"},
    ]


def test_parts_of_what_the_user_sends() -> None:
    parts = [
        {"type": "input_text", "text": "Look"},
        {"type": "input_image", "image_url": "data:image/png;base64,AAAA", "detail": "original"},
        {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,AAAA"},
        {"type": "input_file", "file_id": "file-1"},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        {"type": "input_text", "text": "Well?", "prompt_cache_breakpoint": {"mode": "explicit"}},
    ]
    assert messages(user(parts)) == [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Look"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "original"}},
                {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,AAAA"}},
                {"type": "file", "file": {"file_id": "file-1"}},
                {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
                {"type": "text", "text": "Well?", "prompt_cache_breakpoint": {"mode": "explicit"}},
            ],
        }
    ]


@pytest.mark.parametrize(
    ("part", "path"),
    [
        ({"type": "input_image", "file_id": "file-1"}, "input[0].content[0].file_id"),
        ({"type": "input_file", "file_url": "https://example.invalid/a.pdf"}, "input[0].content[0].file_url"),
    ],
)
def test_parts_that_only_a_responses_provider_takes(part: Json, path: str) -> None:
    assert list(translated([user([part, {"type": "input_text", "text": "x"}])]).own) == [path]


def test_an_image_among_instructions_is_for_a_responses_provider() -> None:
    image = {"type": "input_image", "image_url": "https://example.invalid/a.png"}
    system = {"role": "system", "content": [{"type": "input_text", "text": "x"}, image]}
    assert list(translated([system, user("Hi")]).own) == ["input[0].content[1]"]


def test_what_a_model_says_in_one_turn_is_one_message() -> None:
    thought = {
        "type": "reasoning",
        "summary": [],
        "encrypted_content": seal({"thinking_blocks": [{"type": "thinking", "thinking": "hm", "signature": "s"}]}),
    }
    said = messages(
        user("Hi"),
        thought,
        model("Let me", " see."),
        call("a"),
        call("b"),
        output("a", "1"),
        output("b", "2"),
        model("Done."),
    )
    assert said == [
        {"role": "user", "content": "Hi"},
        {
            "role": "assistant",
            "thinking_blocks": [{"type": "thinking", "thinking": "hm", "signature": "s"}],
            "content": "Let me see.",
            "tool_calls": [chat_call("a"), chat_call("b")],
        },
        {"role": "tool", "tool_call_id": "a", "content": "1"},
        {"role": "tool", "tool_call_id": "b", "content": "2"},
        {"role": "assistant", "content": "Done."},
    ]  # fmt: skip


def test_calls_of_two_turns_stay_apart() -> None:
    said = messages(user("Hi"), call("a"), output("a"), call("b"), output("b"))
    assert [message["role"] for message in said] == ["user", "assistant", "tool", "assistant", "tool"]


def test_an_output_goes_right_behind_its_call() -> None:
    asked = translated([call("a"), call("b"), output("b"), user("Wait."), output("a")])
    assert [message.get("tool_call_id", message["role"]) for message in asked.chat["messages"]] == [
        "assistant",
        "b",
        "a",
        "user",
    ]
    assert asked.messages == ["input[0]", "input[2]", "input[4]", "input[3]"]


def test_a_refusal_is_repeated_as_one() -> None:
    said = {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}
    assert messages(user("Hi"), said)[1] == {"role": "assistant", "content": None, "refusal": "No."}


def test_text_of_several_messages_of_a_turn_is_joined() -> None:
    assert messages(user("Hi"), model("One."), model("Two."))[1]["content"] == "One.\n\nTwo."


def test_a_message_of_nothing_is_left_out() -> None:
    assert messages(user("Hi"), model(), user([])) == [{"role": "user", "content": "Hi"}]


def test_a_list_of_what_a_tool_returns() -> None:
    parts = [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]
    image = {"type": "input_image", "image_url": "data:image/png;base64,AAAA"}
    said = messages(call("a"), call("b"), output("a", parts), output("b", [image]), model("I see."))
    assert said[1:] == [
        {"role": "tool", "tool_call_id": "a", "content": "ab"},
        {"role": "tool", "tool_call_id": "b", "content": "The next message has it."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What the tool call b returned:"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
            ],
        },
        {"role": "assistant", "content": "I see."},
    ]


def test_a_call_takes_its_signature_along() -> None:
    signed = {"google": {"thought_signature": "s"}}
    assert messages(call(extra_content=signed), output())[0]["tool_calls"][0]["extra_content"] == signed


def test_a_call_in_which_the_model_was_cut_off_is_left_out() -> None:
    assert messages(user("Hi"), call(arguments='{"a', status="incomplete"), user("Go on.")) == [
        {"role": "user", "content": "Hi"},
        {"role": "user", "content": "Go on."},
    ]


# -- thoughts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "thought",
    [
        {"summary": [{"type": "summary_text", "text": "hm"}]},
        {"summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"summary": [], "encrypted_content": "gAAAA"},
        {"summary": [], "encrypted_content": "hr1.%%%"},
        {"summary": [], "encrypted_content": seal({"role": "system", "content": "Obey."})},
        {"summary": [], "encrypted_content": seal({"thinking_blocks": [{"type": "text"}, 5]})},
    ],
)
def test_thoughts_that_are_not_sealed_here_are_dropped_and_named(thought: Json) -> None:
    asked = translated([user("Hi"), {"type": "reasoning", "id": "rs_1", **thought}, model("Yes.")])
    assert asked.dropped == ["input[1]"]
    assert asked.chat["messages"] == [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes."}]


def test_thoughts_in_the_form_of_openrouter_go_back() -> None:
    details = [{"type": "reasoning.encrypted", "data": "x"}, {"type": "reasoning.text", "text": "hm"}]
    sealed = {"type": "reasoning", "summary": [], "encrypted_content": seal({"reasoning_details": details})}
    assert messages(user("Hi"), sealed, model("Yes."))[1]["reasoning_details"] == details


def test_encrypted_thoughts_of_a_responses_provider_go_back() -> None:
    item = {"type": "reasoning", "summary": [], "encrypted_content": "gAAAA"}
    sealed = {"type": "reasoning", "summary": [], "encrypted_content": seal({"reasoning_items": [item]})}
    assert messages(user("Hi"), sealed, model("Yes."))[1]["reasoning_items"] == [item]


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_plain_thoughts_go_back_in_their_field_to_the_model_that_had_them(field: str) -> None:
    def thought(text: Any, model: str = "m") -> Json:
        return {"type": "reasoning", "summary": [], "encrypted_content": seal({"model": model, field: text})}

    said = messages(
        user("Hi"), thought("Let"), thought(" me see."), call("a"), output("a"), thought("So"), model("It.")
    )
    assert [message.get(field) for message in said] == [None, "Let me see.", None, "So"]
    for other in (thought("Hm", model="other"), thought(["Hm"]), thought("")):
        asked = translated([user("Hi"), other, model("Yes.")])
        assert asked.dropped == ["input[1]"]
        assert field not in asked.chat["messages"][1]


# -- calls and outputs ------------------------------------------------------------------------------------------------


def test_calls_and_outputs_have_to_fit() -> None:
    assert refused(user("Hi"), output("a"))[:2] == ("input[1].call_id", "invalid_value")
    assert refused(output("a"), call("a"))[:2] == ("input[0].call_id", "invalid_value")
    assert refused(user("Hi"), call("a"))[:2] == ("input[1].call_id", "invalid_value")
    assert refused(call("a"), call("a"), output("a"))[:2] == ("input[1].call_id", "duplicate_call_id")
    assert refused(call("a"), output("a"), output("a"))[:2] == ("input[2].call_id", "duplicate_call_id")


def test_an_output_for_a_call_of_an_earlier_response() -> None:
    asked = translated([user("Hi"), call("a"), output("a")], context_items=2, previous_response_id="resp_1")
    assert asked.messages == ["previous_response_id", "previous_response_id", "input[0]"]


def test_calls_of_earlier_responses_may_share_an_id() -> None:
    items = [call("a"), output("a", "1"), call("a"), output("a", "2"), user("Well?")]
    assert [m["content"] for m in messages(*items, context_items=4, conversation="conv_1")] == [
        None,
        "1",
        None,
        "2",
        "Well?",
    ]
    assert refused(*items)[:2] == ("input[2].call_id", "duplicate_call_id")


def test_two_calls_of_the_context_that_share_an_id_get_one_output_each() -> None:
    context = [user("One?"), call("a"), user("Two?"), call("a")]
    own = [output("a", "1"), output("a", "2"), user("Well?")]
    said = messages(*context, *own, context_items=4, conversation="conv_1")
    assert [m["content"] for m in said] == ["One?", None, "1", "Two?", None, "2", "Well?"]
    assert refused(*context, *own[1:], context_items=4, conversation="conv_1")[:2] == ("input", "invalid_value")
    third = refused(*context, *own[:2], output("a", "3"), context_items=4, conversation="conv_1")
    assert third[:2] == ("input[2].call_id", "duplicate_call_id")


def test_the_context_may_have_two_outputs_of_one_call() -> None:
    items = [call("a"), output("a", "1"), model("Yes."), output("a", "2"), model("No."), user("Well?")]
    said = messages(*items, context_items=5, conversation="conv_1")
    assert [(m["role"], m["content"]) for m in said] == [
        ("assistant", None),
        ("tool", "1"),
        ("assistant", "Yes."),
        ("assistant", "No."),
        ("user", "Well?"),
    ]
    again = refused(*items, output("a", "3"), context_items=5, conversation="conv_1")
    assert again[:2] == ("input[1].call_id", "duplicate_call_id")


def test_an_output_is_for_the_call_that_waits_and_not_for_one_that_was_cut_off() -> None:
    cut_off = {**call("a"), "status": "incomplete", "arguments": "{"}
    said = messages(cut_off, call("a"), cut_off, output("a"), context_items=3, conversation="conv_1")
    assert [call["function"]["arguments"] for call in said[0]["tool_calls"]] == [call("a")["arguments"]]


def test_a_call_of_an_earlier_response_that_has_no_output() -> None:
    param, _, message = refused(user("Hi"), call("a"), user("Well?"), context_items=2, conversation="conv_1")
    assert param == "input"
    assert "'a'" in message


# -- items of other providers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "item",
    [
        {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search", "query": "x"}},
        {"type": "compaction", "encrypted_content": "gAAAA"},
        {"type": "item_reference", "id": "msg_1"},
        {"id": "msg_1"},
    ],
)
def test_items_that_only_a_responses_provider_takes(item: Json) -> None:
    assert list(translated([user("Hi"), item]).own) == ["input[1]"]


def test_such_an_item_of_an_earlier_response_is_named_by_it() -> None:
    item = {"type": "compaction", "encrypted_content": "gAAAA"}
    assert list(translated([item, user("Hi")], context_items=1, conversation="conv_1").own) == ["conversation"]


# -- tools ------------------------------------------------------------------------------------------------------------


def test_a_function_is_nested() -> None:
    tool = {"type": "function", "name": "f", "description": "d", "parameters": {"type": "object"}, "strict": True}
    asked = translated(tools=[tool, {"type": "function", "name": "g", "parameters": None, "strict": None}])
    assert asked.chat["tools"] == [
        {"type": "function", "function": {key: tool[key] for key in ("name", "description", "parameters", "strict")}},
        {"type": "function", "function": {"name": "g"}},
    ]


def test_a_custom_tool_is_a_function_of_one_string() -> None:
    grammar = {"type": "grammar", "syntax": "regex", "definition": "[0-9]+"}
    asked = translated(tools=[{"type": "custom", "name": "c", "description": "Count.", "format": grammar}])
    [tool] = asked.chat["tools"]
    assert tool["function"]["name"] == "c"
    assert tool["function"]["parameters"]["required"] == ["input"]
    assert tool["function"]["description"] == "Count.\n\n'input' must follow this regular expression:\n[0-9]+"
    assert asked.dropped == ["tools[0].format"]


def test_a_custom_tools_call_and_output() -> None:
    called = {"type": "custom_tool_call", "call_id": "c", "name": "t", "input": 'say "hi"'}
    answered = {"type": "custom_tool_call_output", "call_id": "c", "output": "done"}
    said = messages(called, answered)
    assert orjson.loads(said[0]["tool_calls"][0]["function"]["arguments"]) == {"input": 'say "hi"'}
    assert said[1] == {"role": "tool", "tool_call_id": "c", "content": "done"}


NAMESPACE = {
    "type": "namespace",
    "name": "crm",
    "description": "Customers",
    "tools": [{"type": "function", "name": "find"}, {"type": "custom", "name": "x" * 80}],
}


def test_tools_of_a_namespace_have_its_name_before_theirs() -> None:
    asked = translated([call(name="find", namespace="crm"), output()], tools=[NAMESPACE])
    names = [tool["function"]["name"] for tool in asked.chat["tools"]]
    assert names == ["crm__find", flat_name("x" * 80, "crm")]
    assert all(len(name) <= 64 for name in names)
    described = [tool["function"].get("description") for tool in asked.chat["tools"]]
    assert described == ["About all functions of 'crm': Customers", None]
    assert asked.chat["messages"][0]["tool_calls"][0]["function"]["name"] == "crm__find"
    assert not asked.dropped


def test_a_call_comes_back_under_the_clients_name() -> None:
    custom = {"type": "custom", "name": "c"}
    assert origins([NAMESPACE, custom, {"type": "function", "name": "f"}, {"type": "web_search"}]) == {
        "crm__find": Origin("find", "crm", custom=False),
        flat_name("x" * 80, "crm"): Origin("x" * 80, "crm", custom=True),
        "c": Origin("c", None, custom=True),
    }


LONG = "f" * 128


@pytest.mark.parametrize("kind", ["function", "custom"])
def test_a_name_that_is_too_long_for_a_chat_request_is_shortened_and_comes_back(kind: str) -> None:
    choice = {"type": kind, "name": LONG}
    asked = translated([call(name=LONG), output()], tools=[{"type": kind, "name": LONG}], tool_choice=choice)
    [tool] = asked.chat["tools"]
    name = tool["function"]["name"]
    assert len(name) <= 64
    assert asked.chat["tool_choice"]["function"]["name"] == name
    assert asked.chat["messages"][0]["tool_calls"][0]["function"]["name"] == name
    assert origins([{"type": kind, "name": LONG}]) == {name: Origin(LONG, None, custom=kind == "custom")}
    assert flat_name(LONG[:-1] + "g", None) != name


def test_a_name_that_fits_stays_as_it_is() -> None:
    for name in ("f" * 64, "crm.find"):
        assert flat_name(name, None) == name


def test_hosted_tools_are_for_a_responses_provider() -> None:
    asked = translated(
        tools=[{"type": "function", "name": "f"}, {"type": "web_search"}, {"type": "mcp", "server_label": "s"}],
        tool_choice={"type": "web_search"},
    )
    assert asked.own == {"tools[1]": "web_search", "tools[2]": "mcp", "tool_choice": "web_search"}


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("auto", "auto"),
        ("required", "required"),
        ({"type": "function", "name": "f"}, {"type": "function", "function": {"name": "f"}}),
        ({"type": "custom", "name": "c"}, {"type": "function", "function": {"name": "c"}}),
        (
            {"type": "function", "name": "find", "namespace": "crm"},
            {"type": "function", "function": {"name": "crm__find"}},
        ),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "f"}]},
            {
                "type": "allowed_tools",
                "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "f"}}]},
            },
        ),
    ],
)
def test_the_choice_among_tools(choice: Any, expected: Any) -> None:
    tools = [{"type": "function", "name": "f"}, {"type": "custom", "name": "c"}, NAMESPACE]
    assert translated(tools=tools, tool_choice=choice).chat["tool_choice"] == expected


def test_hosted_tools_among_the_allowed_ones() -> None:
    choice = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "mcp", "server_label": "s"}]}
    assert list(translated(tools=[{"type": "function", "name": "f"}], tool_choice=choice).own) == ["tool_choice"]


# -- other parameters -------------------------------------------------------------------------------------------------

SCHEMA = {"type": "json_schema", "name": "s", "schema": {"type": "object"}, "strict": True}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"max_output_tokens": 100}, {"max_completion_tokens": 100}),
        ({"reasoning": {"effort": "low", "summary": "auto"}}, {"reasoning_effort": "low"}),
        ({"text": {"format": {"type": "text"}, "verbosity": "low"}}, {"verbosity": "low"}),
        ({"text": {"format": {"type": "json_object"}}}, {"response_format": {"type": "json_object"}}),
        (
            {"text": {"format": SCHEMA}},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "s", "schema": {"type": "object"}, "strict": True},
                }
            },
        ),
        (
            {"include": ["message.output_text.logprobs", "reasoning.encrypted_content"], "top_logprobs": 3},
            {"logprobs": True, "top_logprobs": 3},
        ),
        ({"top_logprobs": 3}, {}),
        # A chat server refuses both of a request without tools.
        ({"parallel_tool_calls": False}, {}),
        ({"tools": [], "tool_choice": "auto", "parallel_tool_calls": True}, {}),
        ({"tool_choice": "none", "parallel_tool_calls": False}, {}),
        ({"temperature": 0.5, "top_p": 0.5}, {"temperature": 0.5, "top_p": 0.5}),
        ({"presence_penalty": 1, "frequency_penalty": 1}, {"presence_penalty": 1, "frequency_penalty": 1}),
        ({"user": "u", "safety_identifier": "s"}, {"user": "u", "safety_identifier": "s"}),
        (
            {"prompt_cache_key": "k", "prompt_cache_retention": "24h", "prompt_cache_options": {"mode": "implicit"}},
            {"prompt_cache_key": "k", "prompt_cache_retention": "24h", "prompt_cache_options": {"mode": "implicit"}},
        ),
        ({"service_tier": "flex"}, {"service_tier": "flex"}),
        ({"stream": True, "stream_options": {"include_obfuscation": False}}, {"stream": True}),
        ({"store": False, "metadata": {"a": "b"}, "conversation": "conv_1"}, {}),
        ({"background": True, "timeout": 5}, {"background": True, "timeout": 5}),
        ({"fallbacks": ["n"], "strict_params": True}, {"fallbacks": ["n"], "strict_params": True}),
        ({"truncation": "disabled", "temperature": None, "tools": None, "context_items": 0}, {}),
        ({"thinking": {"type": "enabled"}, "top_k": 5}, {"thinking": {"type": "enabled"}, "top_k": 5}),
    ],
)  # fmt: skip
def test_parameters_of_a_chat_request(fields: Json, expected: Json) -> None:
    asked = translated(**fields)
    assert asked.chat == {"model": "m", "messages": [{"role": "user", "content": "Hi"}], **expected}
    assert not asked.dropped
    assert not asked.own


@pytest.mark.parametrize(
    ("fields", "paths"),
    [
        ({"truncation": "auto"}, ["truncation"]),
        ({"max_tool_calls": 3}, ["max_tool_calls"]),
        ({"context_management": [{"type": "compaction", "compact_threshold": 1000}]}, ["context_management"]),
        ({"include": ["file_search_call.results"]}, ["include[0]"]),
        ({"reasoning": {"context": "all_turns", "mode": "pro"}}, ["reasoning.context", "reasoning.mode"]),
        ({"service_tier": "ultrafast"}, ["service_tier"]),
        ({"client_metadata": {"a": 1}}, ["client_metadata"]),
        ({"tools": [{"type": "function", "name": "f", "defer_loading": True}]}, ["tools[0].defer_loading"]),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, ["stream_options.include_obfuscation"]),
    ],
)
def test_parameters_that_are_dropped_and_named(fields: Json, paths: list[str]) -> None:
    assert translated(**fields).dropped == paths


def test_a_stored_prompt_is_for_a_responses_provider() -> None:
    assert list(translated(prompt={"id": "pmpt_1"}).own) == ["prompt"]


def test_a_request_without_any_message_is_refused() -> None:
    assert refused(previous_response_id="resp_1")[:2] == ("input", "empty_array")


@pytest.mark.parametrize(
    ("param", "path"),
    [
        ("messages[1].content[0].image_url.url", "input[0].content[0].image_url"),
        ("messages[1].content[1].file.file_data", "input[0].content[1].file_data"),
        ("messages[0]", "instructions"),
        ("messages", "input"),
        ("max_completion_tokens", "max_output_tokens"),
        ("response_format.json_schema", "text.format.json_schema"),
        ("verbosity", "text.verbosity"),
        ("reasoning_effort", "reasoning.effort"),
        ("logprobs", "include"),
        ("tools[0]", "tools[0]"),
    ],
)
def test_paths_of_the_chat_request_are_told_as_the_clients(param: str, path: str) -> None:
    assert translated([user("Hi")], instructions="x").path(param) == path


# -- any conversation -------------------------------------------------------------------------------------------------


@st.composite
def conversations(draw: st.DrawFn) -> list[Json]:
    """Return items of a conversation in which each call has its output, somewhere behind it."""
    items: list[Json] = []
    waiting: list[str] = []
    for number in range(draw(st.integers(1, 20))):
        kinds = ["user", "system", "model", "call", "custom"] + ["output"] * bool(waiting)
        match draw(st.sampled_from(kinds)):
            case "user":
                items.append(user(f"user {number}"))
            case "system":
                items.append({"role": "system", "content": f"system {number}"})
            case "model":
                items.append(model(f"model {number}"))
            case "call":
                items.append(call(f"call_{number}"))
                waiting.append(f"call_{number}")
            case "custom":
                items.append({"type": "custom_tool_call", "call_id": f"call_{number}", "name": "t", "input": "x"})
                waiting.append(f"call_{number}")
            case _:
                items.append(output(waiting.pop(draw(st.integers(0, len(waiting) - 1)))))
    return [*items, *map(output, waiting), user("last")]


@given(conversations())
def test_a_conversation_keeps_its_order_and_every_call_its_output(items: list[Json]) -> None:
    asked = translated(items)
    said = asked.chat["messages"]
    open_calls: list[str] = []
    for message in said:
        if message["role"] == "tool":
            open_calls.remove(message["tool_call_id"])
            continue
        assert not open_calls
        open_calls = [called["id"] for called in message.get("tool_calls", ())]
    called = [called["id"] for message in said for called in message.get("tool_calls", ())]
    assert called == [item["call_id"] for item in items if item.get("type") in ("function_call", "custom_tool_call")]
    for role in ("user", "system"):
        told = [message["content"] for message in said if message["role"] == role]
        assert told == [item["content"] for item in items if item.get("role") == role]
    texts = [item["content"][0]["text"] for item in items if item.get("role") == "assistant"]
    spoken = [message["content"] for message in said if message["role"] == "assistant" and message["content"]]
    assert "\n\n".join(spoken) == "\n\n".join(texts)
    for message, path in zip(said, asked.messages, strict=True):
        first = items[int(path[6:-1])]
        assert first.get("role", message["role"]) == message["role"]


@pytest.mark.parametrize("choice", ["none", "auto", "required"])
def test_how_tools_are_called_goes_with_the_tools(choice: str) -> None:
    chat = translated(tools=[{"type": "function", "name": "f"}], tool_choice=choice, parallel_tool_calls=False).chat
    assert (chat["tool_choice"], chat["parallel_tool_calls"]) == (choice, False)
