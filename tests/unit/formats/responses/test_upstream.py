"""Chat requests and answers on their way through the Responses API: what goes in comes out."""

from __future__ import annotations

import copy
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import UpstreamError
from headrace.formats.chat.fold import Fold
from headrace.formats.chat.request import parse_chat_request
from headrace.formats.chat.usage import parse_usage
from headrace.formats.registry import FORMATS
from headrace.formats.responses.output import whole
from headrace.formats.responses.request import check_response_request
from headrace.formats.responses.translate import translate
from headrace.formats.skipped import SKIPPED
from tests.unit.formats.responses.answers import chunk, streamed

Json = dict[str, Any]

FORM = FORMATS["responses"]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
NAME = st.from_regex(r"[a-z_]{1,12}", fullmatch=True)
USAGE = {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5}


def read(events: list[Json]) -> Json:
    """Return the message, the finish reason and the usage of a stream."""
    parser, fold = FORM.parse_stream(), Fold()
    for event in events:
        assert not parser.done
        for one in parser.parse(orjson.dumps(event)):
            fold.add(one)
    assert parser.done
    return fold.completion(id="", created=0, model="m")


def message_of(completion: Json) -> Json:
    message: Json = completion["choices"][0]["message"]
    return message | {"tool_calls": sorted(message.get("tool_calls") or (), key=lambda call: call["id"])}


# -- requests ---------------------------------------------------------------------------------------------------------

CALL = st.fixed_dictionaries({"name": NAME, "arguments": st.sampled_from(["{}", '{"a": 1}', "not JSON", ""])})


@st.composite
def conversations(draw: st.DrawFn) -> list[Json]:
    messages: list[Json] = [{"role": "system", "content": draw(TEXT)}]
    for turn in range(draw(st.integers(1, 3))):
        image = {"type": "image_url", "image_url": {"url": "https://example.com/a.png", "detail": "low"}}
        parts = [{"type": "text", "text": draw(TEXT)}, image]
        messages.append({"role": "user", "content": draw(st.one_of(TEXT, st.just(parts)))})
        calls = [
            {"id": f"call_{turn}_{number}", "type": "function", "function": function}
            for number, function in enumerate(draw(st.lists(CALL, max_size=3)))
        ]
        said: Json = {"role": "assistant", "content": draw(st.none() | TEXT) if calls else draw(TEXT)}
        messages.append(said | ({"tool_calls": calls} if calls else {}))
        messages += [{"role": "tool", "tool_call_id": call["id"], "content": draw(TEXT)} for call in calls]
    return messages


def flat(messages: list[Json]) -> list[Any]:
    """Return what a conversation says, whether a text is one string or a list of parts."""
    told: list[Any] = []
    for message in messages:
        content = message.get("content") or ()
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        told += [(message["role"], part.get("text") or part) for part in parts]
        told += [(call["id"], call["function"]) for call in message.get("tool_calls") or ()]
    return told


@given(messages=conversations(), stream=st.booleans(), most=st.integers(16, 100))
def test_a_rendered_request_is_valid_and_means_the_same(messages: list[Json], stream: bool, most: int) -> None:
    parameters = {"type": "object", "properties": {"a": {"type": "integer"}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters, "strict": True}}
    choice = {"type": "function", "function": {"name": "f"}}
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": parameters, "strict": True}}
    options = {"max_completion_tokens": most, "reasoning_effort": "low", "verbosity": "low", "temperature": 0.5}
    request = {"messages": messages, "tools": [tool], "tool_choice": choice, "response_format": form, **options}
    parse_chat_request(orjson.dumps({"model": "m", **request}))
    body = orjson.loads(FORM.render_request(request, model="m", stream=stream, output_limit=None))
    check_response_request(body)
    chat = translate(body).chat
    assert flat(chat["messages"]) == flat(messages)
    assert (chat["tools"], chat["tool_choice"]) == ([tool], choice)
    assert chat["response_format"] == form
    assert {name: chat[name] for name in options} == options


# -- answers ----------------------------------------------------------------------------------------------------------

DETAILS = st.sampled_from(
    ["output_item.added", "content_part.added", "_text.done", "content_part.done", "arguments.done", "output_item.done"]
)


@st.composite
def outputs(draw: st.DrawFn) -> list[Json]:
    output: list[Json] = []
    for number in range(draw(st.integers(1, 4))):
        match draw(st.sampled_from(["message", "refusal", "reasoning", "function_call"])):
            case "message":
                text = {"type": "output_text", "text": draw(TEXT), "annotations": [], "logprobs": []}
                item: Json = {"id": f"msg_{number}", "type": "message", "role": "assistant", "content": [text]}
            case "refusal":
                refusal = {"type": "refusal", "refusal": draw(TEXT)}
                item = {"id": f"msg_{number}", "type": "message", "role": "assistant", "content": [refusal]}
            case "reasoning":
                summary = [{"type": "summary_text", "text": draw(TEXT)}]
                item = {"id": f"rs_{number}", "type": "reasoning", "summary": summary, "encrypted_content": "x"}
            case _:
                call = {"call_id": f"call_{number}", "name": "f", "arguments": draw(TEXT)}
                item = {"id": f"fc_{number}", "type": "function_call", **call}
        output.append({**item, "status": "completed"})
    return output


@given(output=outputs(), lost=st.sets(DETAILS), other_ids=st.booleans())
def test_a_stream_says_what_the_whole_answer_says_whichever_events_a_server_leaves_out(
    output: list[Json], lost: set[str], other_ids: bool
) -> None:
    events = [orjson.loads(line) for index, item in enumerate(output) for line in whole(copy.deepcopy(item), index)]
    kept = [event for event in events if not any(event["type"].endswith(kind) for kind in lost)]
    at_end = copy.deepcopy(output)
    if other_ids:
        for item in at_end:
            item["id"] += "_other"
    ended = {"id": "resp_1", "model": "m", "status": "completed", "usage": USAGE}
    completion = read([*kept, {"type": "response.completed", "response": {**ended, "output": at_end}}])
    expected = FORM.parse_completion(orjson.dumps({**ended, "output": output}))
    ours, theirs = message_of(completion), message_of(expected)
    for message in (ours, theirs):  # those of a stream may have the id and the place of the end
        message["reasoning_items"] = len(message.get("reasoning_items") or ())
    assert ours == theirs
    assert completion["usage"] == expected["usage"]
    assert completion["choices"][0]["finish_reason"] == expected["choices"][0]["finish_reason"]


@given(texts=st.lists(TEXT, min_size=1, max_size=4), calls=st.lists(TEXT, max_size=3), thought=st.none() | TEXT)
def test_chat_to_responses_to_chat_keeps_text_calls_and_ids(
    texts: list[str], calls: list[str], thought: str | None
) -> None:
    chunks = [chunk({"reasoning_content": thought})] if thought else []
    chunks += [chunk({"content": text}) for text in texts]
    for index, arguments in enumerate(calls):
        head = {"index": index, "id": f"call_{index}", "type": "function"}
        chunks.append(chunk({"tool_calls": [{**head, "function": {"name": "f", "arguments": ""}}]}))
        chunks.append(chunk({"tool_calls": [{"index": index, "function": {"arguments": arguments}}]}))
    answer = streamed(*chunks, chunk({}, "tool_calls" if calls else "stop"))
    for completion in (read(answer.events), FORM.parse_completion(orjson.dumps(answer.response))):
        message = completion["choices"][0]["message"]
        assert message["content"] == "".join(texts)
        assert message.get("reasoning_content") == thought
        assert [
            (call["id"], call["function"]["name"], call["function"]["arguments"])
            for call in message.get("tool_calls") or ()
        ] == [(f"call_{index}", "f", arguments) for index, arguments in enumerate(calls)]
        assert completion["choices"][0]["finish_reason"] == ("tool_calls" if calls else "stop")
        counts = parse_usage(completion["usage"])
        assert counts is not None
        assert (counts.prompt_tokens, counts.completion_tokens) == (5, 3)


def test_calls_that_are_streamed_by_turns_stay_apart() -> None:
    events: list[Json] = [
        {"type": "response.output_item.added", "output_index": index, "item": call}
        for index, call in enumerate(
            {"type": "function_call", "id": f"fc_{name}", "call_id": name, "name": name, "arguments": ""}
            for name in ("a", "b")
        )
    ]
    for piece in ("[1", ",2]"):
        for index in (0, 1):
            about = {"type": "response.function_call_arguments.delta", "output_index": index}
            events.append({**about, "item_id": "?", "delta": piece})
    events.append({"type": "response.completed", "response": {"status": "completed", "output": []}})
    calls = read(events)["choices"][0]["message"]["tool_calls"]
    assert [(call["id"], call["function"]["arguments"]) for call in calls] == [("a", "[1,2]"), ("b", "[1,2]")]


def test_a_custom_tool_is_called_piece_by_piece() -> None:
    item = {"type": "custom_tool_call", "id": "ctc_1", "call_id": "c", "name": "sql", "input": "SELECT 1"}
    events = [orjson.loads(line) for line in whole(copy.deepcopy(item), 0)]
    end = {"type": "response.completed", "response": {"status": "completed", "output": [item]}}
    (call,) = read([*events, end])["choices"][0]["message"]["tool_calls"]
    assert call == {"id": "c", "type": "custom", "custom": {"name": "sql", "input": "SELECT 1"}}


@pytest.mark.parametrize("data", [b"[DONE]", b"", b'{"type":"keepalive"}', b'{"type":"response.web_search_call.done"}'])
def test_what_says_nothing_is_nothing(data: bytes) -> None:
    parser = FORM.parse_stream()
    known = dict(SKIPPED)
    assert not parser.parse(data)
    assert not parser.done
    assert known == dict(SKIPPED)


def test_an_event_that_is_newer_than_headrace_is_skipped_and_counted() -> None:
    assert FORM.parse_stream().parse(b'{"type":"response.quantum.spun"}') == []
    assert SKIPPED["responses", "event response.quantum.spun"]


def test_the_type_of_an_event_may_be_its_name_alone() -> None:
    (said,) = FORM.parse_stream().parse(b'{"delta":"Hi","output_index":0}', b"response.output_text.delta")
    assert said["choices"][0]["delta"]["content"] == "Hi"


@pytest.mark.parametrize(
    "body", [b'{"choices": []}', b'{"output": {}}', b"[]", b"<html>", b'{"output": [], "status": 1}']
)
def test_another_document_than_a_response_is_an_upstreams_error(body: bytes) -> None:
    with pytest.raises(UpstreamError):
        FORM.parse_completion(body)


@pytest.mark.parametrize(
    ("reason", "finish", "native"),
    [
        ("max_output_tokens", "length", "max_output_tokens"),
        ("content_filter", "content_filter", None),
        ("max_messages", "length", "max_messages"),
        ("steered", "length", "steered"),
        ({"a": "b"}, "length", None),
        (None, "length", "incomplete"),
    ],
)
def test_an_incomplete_response_is_kept_whatever_cut_it_off(reason: Any, finish: str, native: str | None) -> None:
    said = {"type": "message", "id": "msg_1", "content": [{"type": "output_text", "text": "Half"}]}
    response = {"model": "m", "status": "incomplete", "incomplete_details": {"reason": reason}, "output": [said]}
    streamed_end = {"type": "response.incomplete", "response": response}
    for completion in (FORM.parse_completion(orjson.dumps(response)), read([copy.deepcopy(streamed_end)])):
        [choice] = completion["choices"]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("Half", finish)
        assert choice.get("native_finish_reason") == native
