"""Requests of the Responses API: what is valid, and what clients read about what is wrong."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import InvalidRequestError
from headrace.formats.chat.base import MOST_PARTS, MOST_TOOLS
from headrace.formats.chat.request import ChatRequest, check_request
from headrace.formats.responses.items import HOSTED, LONGEST_CALL_ID
from headrace.formats.responses.request import MOST_ITEMS, ResponseRequest, check_response_request
from headrace.formats.responses.support import ROWS
from headrace.formats.responses.translate import translate
from tests.unit.formats.responses.requests import (
    CHOICES,
    FUNCTION,
    HOSTED_CHOICES,
    HOSTED_TOOLS,
    ITEMS,
    OTHERS,
    TOOLS,
    WHOLE,
    Json,
)

# OpenAI's `oneOf`s overlap: a message fits the easy form and the whole one.
_DEFINITIONS: Json = json.loads(
    (Path(__file__).parent / "openai_create_response.schema.json").read_text().replace('"oneOf"', '"anyOf"')
)["$defs"]


def check_by_schema(name: str, value: Any) -> None:
    jsonschema_rs.validator_for({"$ref": f"#/$defs/{name}", "$defs": _DEFINITIONS}).validate(value)


def properties(name: str) -> Iterator[str]:
    """Yield the properties of an object of the specification, which is made of several."""
    schema = _DEFINITIONS[name]
    yield from schema.get("properties", ())
    for part in schema.get("allOf", ()):
        yield from part.get("properties", ())
        if "$ref" in part:
            yield from properties(part["$ref"].rpartition("/")[2])


def types(name: str) -> Iterator[str]:
    """Yield the types of the objects that a union of the specification has."""
    schema = _DEFINITIONS[name]
    for part in schema.get("anyOf", ()):
        yield from types(part["$ref"].rpartition("/")[2])
    kind = schema.get("properties", {}).get("type", {})
    for alternative in (kind, *kind.get("anyOf", ())):
        yield from alternative.get("enum", ())


def refusal(document: Any) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as raised:
        check_response_request(document)
    return raised.value


# -- what is valid ----------------------------------------------------------------------------------------------------


def test_every_parameter_of_openais_is_checked_and_has_its_row() -> None:
    documented = set(properties("CreateResponse"))
    rows = {name.partition(".")[0].partition(":")[0].removesuffix("[]") for name in ROWS}
    assert len(documented) > 25
    assert documented <= set(ResponseRequest.model_fields)
    assert rows == set(ResponseRequest.model_fields)


def test_every_type_of_item_and_tool_of_openais_is_among_the_examples() -> None:
    items, tools = set(types("InputItem")), set(types("Tool"))
    assert items == {item["type"] for item in (*ITEMS, *OTHERS) if "type" in item}
    assert {item["type"] for item in OTHERS} == HOSTED | {"item_reference", "compaction"}
    assert tools - {tool["type"] for tool in (*TOOLS, *HOSTED_TOOLS)} <= {
        "web_search_2025_08_26",
        "web_search_preview_2025_03_11",
    }


@pytest.mark.parametrize("item", [*ITEMS, *OTHERS], ids=lambda item: item.get("type", item.get("role")))
def test_items(item: Json) -> None:
    check_by_schema("InputItem", item)
    check_response_request({"model": "m", "input": [item]})


@pytest.mark.parametrize("tool", [*TOOLS, *HOSTED_TOOLS], ids=lambda tool: tool["type"])
def test_tools(tool: Json) -> None:
    check_by_schema("Tool", tool)
    check_response_request({"model": "m", "input": "Hi", "tools": [tool]})


@pytest.mark.parametrize("choice", [*CHOICES, *HOSTED_CHOICES], ids=str)
def test_choices_of_tools(choice: Any) -> None:
    check_by_schema("ToolChoiceParam", choice)
    check_response_request({"model": "m", "input": "Hi", "tools": TOOLS, "tool_choice": choice})


def test_a_request_with_every_parameter() -> None:
    check_by_schema("CreateResponse", {name: value for name, value in WHOLE.items() if value is not None})
    assert set(WHOLE) | {"conversation"} == set(ResponseRequest.model_fields)
    checked = check_response_request(WHOLE)
    assert checked.fallbacks == ["other"]
    check_request(ChatRequest, translate(WHOLE).chat)


def test_null_means_not_given() -> None:
    nulls = dict.fromkeys(ResponseRequest.model_fields)
    check_response_request({**nulls, "model": "m", "input": "Hi"})
    assert translate({**nulls, "model": "m", "input": "Hi"}) == translate({"model": "m", "input": "Hi"})


def test_unknown_fields_stay() -> None:
    message = {"role": "user", "content": [{"type": "input_text", "text": "x", "new": 1}], "new": 2}
    checked = check_response_request({"model": "m", "input": [message], "client_metadata": {"a": 1}})
    assert checked.model_dump(exclude_unset=True)["input"] == [message]
    assert checked.model_extra == {"client_metadata": {"a": 1}}


@pytest.mark.parametrize(
    "said", [{"conversation": "conv_1"}, {"conversation": {"id": "conv_1"}}, {"prompt": {"id": "p"}}]
)
def test_input_may_be_left_out_where_something_else_has_it(said: Json) -> None:
    check_response_request({"model": "m", **said})
    check_response_request({"model": "m", "input": [], **said})


@pytest.mark.parametrize("fields", [{"model": "agent_1"}, {"prompt": {"id": "pmpt_1"}}])
def test_an_agent_and_a_stored_prompt_may_have_the_tools_to_choose_from(fields: Json) -> None:
    check_response_request({"model": "m", "input": "Hi", "tool_choice": "required", **fields})


# -- what is refused --------------------------------------------------------------------------------------------------


def asking(**fields: Any) -> Json:
    return {"model": "m", "input": "Hi", **fields}


def item(**fields: Any) -> Json:
    return {"model": "m", "input": [{"role": "user", "content": "Hi"}, fields]}


def part(**fields: Any) -> Json:
    return {"model": "m", "input": [{"role": "user", "content": [fields]}]}


@pytest.mark.parametrize(
    ("document", "param", "code"),
    [
        ([], None, "invalid_type"),
        ({"input": "Hi"}, "model", "missing_required_parameter"),
        ({"model": "m"}, "input", "missing_required_parameter"),
        ({"model": "m", "input": []}, "input", "empty_array"),
        ({"model": "m", "input": 5}, "input", "invalid_type"),
        ({"model": "m", "input": {}}, "input", "invalid_type"),
        ({"model": "m", "input": [5]}, "input[0]", "invalid_type"),
        ({"model": "m", "input": [{}]}, "input[0].role", "missing_required_parameter"),
        (item(type="unheard_of"), "input[1].type", "invalid_value"),
        (item(type=5), "input[1].type", "invalid_type"),
        (item(type="message", role="tool", content=""), "input[1].role", "invalid_value"),
        (item(role="user"), "input[1].content", "missing_required_parameter"),
        (item(role="user", content=5), "input[1].content", "invalid_type"),
        (item(role="user", content="", id=""), "input[1].id", "empty_string"),
        (item(role="user", content="", id="x" * 65), "input[1].id", "string_above_max_length"),
        (item(role="user", content="", id="a\0"), "input[1].id", "invalid_value"),
        (item(type="item_reference"), "input[1].id", "missing_required_parameter"),
        (item(type="function_call", name="f", arguments="{}"), "input[1].call_id", "missing_required_parameter"),
        (item(type="function_call", call_id="c", arguments="{}"), "input[1].name", "missing_required_parameter"),
        (item(type="function_call", call_id="c", name="f", arguments={}), "input[1].arguments", "invalid_type"),
        (item(type="function_call_output", call_id="c"), "input[1].output", "missing_required_parameter"),
        (item(type="function_call_output", call_id="c", output=5), "input[1].output", "invalid_type"),
        (
            item(type="function_call_output", call_id="c", output=[{"type": "input_text"}]),
            "input[1].output[0].text",
            "missing_required_parameter",
        ),
        (item(type="custom_tool_call", call_id="c", name="t"), "input[1].input", "missing_required_parameter"),
        (
            item(type="custom_tool_call_output", call_id="x" * (LONGEST_CALL_ID + 1), output=""),
            "input[1].call_id",
            "string_above_max_length",
        ),
        (item(type="reasoning", summary="Hm."), "input[1].summary", "invalid_type"),
        (item(type="compaction"), "input[1].encrypted_content", "missing_required_parameter"),
        (item(type="web_search_call", id=5), "input[1].id", "invalid_type"),
        (part(type="text", text="x"), "input[0].content[0].type", "invalid_value"),
        (part(type="output_text", text="x"), "input[0].content[0].type", "invalid_value"),
        (part(type="input_text"), "input[0].content[0].text", "missing_required_parameter"),
        (part(type="input_image"), "input[0].content[0].image_url", "missing_required_parameter"),
        (part(type="input_image", image_url={"url": "x"}), "input[0].content[0].image_url", "invalid_type"),
        (part(type="input_image", image_url="x", detail="no"), "input[0].content[0].detail", "invalid_value"),
        (part(type="input_file"), "input[0].content[0].file_data", "missing_required_parameter"),
        (
            part(type="input_audio", input_audio={}),
            "input[0].content[0].input_audio.data",
            "missing_required_parameter",
        ),
        (asking(instructions=5), "instructions", "invalid_type"),
        (asking(temperature=3), "temperature", "decimal_above_max_value"),
        (asking(top_p=-1), "top_p", "decimal_below_min_value"),
        (asking(top_logprobs=21), "top_logprobs", "integer_above_max_value"),
        (asking(max_output_tokens=15), "max_output_tokens", "integer_below_min_value"),
        (asking(max_output_tokens=2**63), "max_output_tokens", "integer_above_max_value"),
        (asking(max_tool_calls=0), "max_tool_calls", "integer_below_min_value"),
        (asking(max_tool_calls=2**63), "max_tool_calls", "integer_above_max_value"),
        (asking(tools={}), "tools", "invalid_type"),
        (asking(tools=[5]), "tools[0]", "invalid_type"),
        (asking(tools=[{}]), "tools[0].type", "missing_required_parameter"),
        (asking(tools=[{"type": "function"}]), "tools[0].name", "missing_required_parameter"),
        (asking(tools=[{"type": "function", "name": "a b"}]), "tools[0].name", "invalid_value"),
        (
            asking(tools=[{"type": "function", "function": {"name": "f"}}]),
            "tools[0].name",
            "missing_required_parameter",
        ),
        (
            asking(tools=[{"type": "custom", "name": "c", "format": {"type": "grammar", "syntax": "abnf"}}]),
            "tools[0].format.definition",
            "missing_required_parameter",
        ),
        (asking(tools=[{"type": "namespace", "name": "n", "tools": []}]), "tools[0].tools", "empty_array"),
        (
            asking(tools=[{"type": "namespace", "name": "n", "tools": [{"type": "mcp"}]}]),
            "tools[0].tools[0].type",
            "invalid_value",
        ),
        (asking(tools=[{"type": "function", "name": "f" * 129}]), "tools[0].name", "string_above_max_length"),
        (asking(tools=[{"type": "custom", "name": "f" * 129}]), "tools[0].name", "string_above_max_length"),
        (asking(tool_choice="required"), "tool_choice", "invalid_value"),
        (asking(tools=[FUNCTION], tool_choice="any"), "tool_choice", "invalid_value"),
        (asking(tools=[FUNCTION], tool_choice=5), "tool_choice", "invalid_type"),
        (asking(tools=[FUNCTION], tool_choice={}), "tool_choice.type", "missing_required_parameter"),
        (asking(tools=[FUNCTION], tool_choice={"type": "function"}), "tool_choice.name", "missing_required_parameter"),
        (
            asking(tools=[FUNCTION], tool_choice={"type": "allowed_tools", "mode": "none", "tools": []}),
            "tool_choice.mode",
            "invalid_value",
        ),
        (asking(text={"format": {"type": "yaml"}}), "text.format.type", "invalid_value"),
        (
            asking(text={"format": {"type": "json_schema", "name": "s"}}),
            "text.format.schema",
            "missing_required_parameter",
        ),
        (asking(text={"verbosity": "loud"}), "text.verbosity", "invalid_value"),
        (asking(reasoning={"effort": "most"}), "reasoning.effort", "invalid_value"),
        (asking(reasoning={"summary": "long"}), "reasoning.summary", "invalid_value"),
        (asking(include=["everything"]), "include[0]", "invalid_value"),
        (asking(include="reasoning.encrypted_content"), "include", "invalid_type"),
        (asking(truncation="some"), "truncation", "invalid_value"),
        (asking(context_management=[]), "context_management", "empty_array"),
        (
            asking(context_management=[{"type": "compaction", "compact_threshold": 1}]),
            "context_management[0].compact_threshold",
            "integer_below_min_value",
        ),
        (asking(metadata={"a": 1}), "metadata.a", "invalid_type"),
        (asking(metadata={"a": "b" * 513}), "metadata.a", "string_above_max_length"),
        (asking(service_tier="slow"), "service_tier", "invalid_value"),
        (asking(safety_identifier="x" * 129), "safety_identifier", "string_above_max_length"),
        (asking(prompt={}), "prompt.id", "missing_required_parameter"),
        (asking(conversation={}), "conversation.id", "missing_required_parameter"),
        (asking(conversation=5), "conversation", "invalid_type"),
        (asking(previous_response_id=""), "previous_response_id", "empty_string"),
        (
            asking(conversation="conv_1", previous_response_id="resp_1"),
            "previous_response_id",
            "mutually_exclusive_parameters",
        ),
        (asking(stream="yes"), "stream", "invalid_type"),
        (asking(stream_options={}), "stream_options", "invalid_value"),
        (asking(webhook="ftp://example.invalid"), "webhook", "invalid_value"),
        (asking(timeout=0), "timeout", "decimal_below_min_value"),
        (asking(context_items=1), "context_items", "unknown_parameter"),
    ],
)
def test_what_is_wrong_is_named(document: Any, param: str | None, code: str) -> None:
    error = refusal(document)
    assert (error.param, error.code) == (param, code)
    assert param is None or f"'{param}'" in error.message


@pytest.mark.parametrize(
    ("document", "param"),
    [
        ({"model": "m", "input": [ITEMS[0]] * (MOST_ITEMS + 1)}, "input"),
        (part(), "input[0].content"),
        (asking(tools=[FUNCTION] * (MOST_TOOLS + 1)), "tools"),
        (asking(fallbacks=["m"] * 9), "fallbacks"),
        (asking(include=["reasoning.encrypted_content"] * 65), "include"),
        (asking(metadata={str(number): "" for number in range(17)}), "metadata"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_there_is_a_bound_on_every_list(document: Json, param: str) -> None:
    if param == "input[0].content":
        document["input"][0]["content"] = [{"type": "input_text", "text": ""}] * (MOST_PARTS + 1)
    assert refusal(document).param == param


# -- long requests ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0, 499, 500, 2345, MOST_ITEMS - 1])
def test_items_of_a_long_request_are_all_checked(at: int) -> None:
    items: list[Any] = [ITEMS[-1]] * MOST_ITEMS
    assert check_response_request(asking(input=items, temperature=1)).temperature == 1
    items[at] = {"role": "user", "content": [{"type": "input_text", "text": 5}]}
    error = refusal(asking(input=items))
    assert error.param == f"input[{at}].content[0].text"
    assert f"'{error.param}'" in error.message


def test_parts_count_as_items_do() -> None:
    parts = [{"type": "input_text", "text": ""}] * MOST_PARTS
    items = [{"role": "user", "content": parts} for _ in range(20)]
    items.append({"role": "user", "content": [{"type": "input_text"}]})
    assert refusal(asking(input=items)).param == "input[20].content[0].text"


def test_a_body_of_bad_items_is_refused_at_its_first() -> None:
    assert refusal({"model": "m", "input": [{"type": "message"}] * MOST_ITEMS}).param == "input[0].role"


# -- any JSON ---------------------------------------------------------------------------------------------------------

KEYS = ["type", "id", "role", "content", "name"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2**63) | st.floats(0, 5) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner),
    max_leaves=5,
)


def places(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the path of every value inside a document."""
    if path:
        yield path
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, (*path, key))


BASE: Json = {
    **{name: value for name, value in WHOLE.items() if name != "previous_response_id"},
    "input": [*ITEMS, *OTHERS],
    "tools": [*TOOLS, *HOSTED_TOOLS],
    "prompt": {"id": "pmpt_1", "version": "1", "variables": {"a": "b"}},
    "conversation": {"id": "conv_1"},
}
PLACES = list(places(BASE))


def changed(path: tuple[str | int, ...], value: Any) -> Json:
    document: Json = copy.deepcopy(BASE)
    within: Any = document
    for key in path[:-1]:
        within = within[key]
    within[path[-1]] = value
    return document


OBJECTS = [path[:-1] for path in PLACES if isinstance(path[-1], str)]
NAMES = sorted({key for path in PLACES for key in path if isinstance(key, str)})


def check_all(document: Any) -> None:
    """Check and translate a document. Other errors than InvalidRequestError fail the test."""
    try:
        check_response_request(document)
        translation = translate(document)
    except InvalidRequestError:
        return
    if not translation.own:
        check_request(ChatRequest, translation.chat)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(PLACES), JSON)
def test_any_value_in_any_place_is_taken_or_named(path: tuple[str | int, ...], value: Any) -> None:
    check_all(changed(path, value))


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(OBJECTS), st.sampled_from(NAMES), JSON)
def test_any_field_of_one_object_in_another_is_taken_or_named(
    path: tuple[str | int, ...], name: str, value: Any
) -> None:
    check_all(changed((*path, name), value))


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(ResponseRequest.model_fields)), JSON, max_size=6) | JSON)
def test_any_json_is_taken_or_refused(document: Any) -> None:
    check_all(document)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([*ITEMS, *OTHERS]), max_size=12))
def test_any_items_in_any_order_are_taken_or_refused(items: list[Json]) -> None:
    check_all({"model": "m", "input": items})
