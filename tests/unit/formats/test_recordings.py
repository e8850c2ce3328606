"""The contract of every wire format, over every recording.

A recording holds what its source documents: a request and the provider's body for it, or a provider's answer, whole and
streamed, and the completion that both are, or an error.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace import errors
from headrace.errors import InvalidRequestError, UpstreamError
from headrace.formats.chat.completion import ChatCompletion, ChatCompletionChunk
from headrace.formats.chat.dropped import dropped_parameters
from headrace.formats.chat.fold import Fold
from headrace.formats.chat.request import parse_chat_request
from headrace.formats.registry import FORMATS, WireFormat
from headrace.providers.sse import Event, EventReader

RECORDINGS = Path(__file__).parents[2] / "recordings"
ENVELOPE = {"id": "chatcmpl-1", "created": 1}


def recordings(*parts: str) -> list[Any]:
    """Return the recordings that have all these parts, as parameters."""
    found = []
    for path in sorted(RECORDINGS.glob("*/*.json")):
        recording = json.loads(path.read_text())
        if all(part in recording for part in parts):
            form = FORMATS[path.parent.name]  # type: ignore[index]
            found.append(pytest.param(form, recording, id=f"{path.parent.name}/{path.stem}"))
    return found


def chunks_of(form: WireFormat, events: list[Any]) -> tuple[list[dict[str, Any]], bool]:
    parser = form.parse_stream()
    chunks: list[dict[str, Any]] = []
    for event in events:
        chunks += parser.parse(event.encode() if isinstance(event, str) else orjson.dumps(event))
    return chunks, parser.done


def read(form: WireFormat, part: str, recorded: Any) -> None:
    if part == "events":
        chunks_of(form, recorded)
    else:
        form.parse_completion(orjson.dumps(recorded))


def folded(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    fold = Fold()
    for chunk in chunks:
        fold.add(chunk)
    completion = fold.completion(id="", created=0, model=chunks[0]["model"])
    return {name: value for name, value in completion.items() if name not in ("id", "object", "created")}


def bare(completion: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in completion.items() if name not in ("id", "object", "created")}


@pytest.mark.parametrize("kind", FORMATS)
def test_there_are_recordings_of_every_format(kind: str) -> None:
    least = {"chat": 8, "responses": 30, "messages": 30, "gemini": 30}
    assert len(list((RECORDINGS / kind).glob("*.json"))) >= least[kind]


@pytest.mark.parametrize(("form", "recording"), recordings("source"))
def test_a_recording_says_where_it_is_from(form: WireFormat, recording: dict[str, Any]) -> None:
    assert form is not None
    assert recording["about"]
    assert ", read 20" in recording["source"]


@pytest.mark.parametrize(("form", "recording"), recordings("rendered"))
def test_a_request_is_rendered(form: WireFormat, recording: dict[str, Any]) -> None:
    parse_chat_request(orjson.dumps(recording["request"]))  # a client can send this request
    body = form.render_request(recording["request"], model=recording["model"], stream=False, output_limit=4096)
    assert orjson.loads(body) == recording["rendered"]


@pytest.mark.parametrize(("form", "recording"), recordings("answer", "completion"))
def test_a_whole_answer_is_parsed(form: WireFormat, recording: dict[str, Any]) -> None:
    completion = bare(form.parse_completion(orjson.dumps(recording["answer"])))
    assert completion == recording["completion"]
    ChatCompletion.model_validate({**completion, **ENVELOPE, "object": "chat.completion"})


@pytest.mark.parametrize(("form", "recording"), recordings("events", "completion"))
def test_what_is_streamed_folds_to_what_is_answered_whole(form: WireFormat, recording: dict[str, Any]) -> None:
    chunks, done = chunks_of(form, recording["events"])
    assert folded(chunks) == recording["completion"]
    assert done or form is FORMATS["gemini"]  # which ends with its last finish reason


@pytest.mark.parametrize(("form", "recording"), recordings("events", "completion"))
def test_chunks_are_openais(form: WireFormat, recording: dict[str, Any]) -> None:
    chunks, _ = chunks_of(form, recording["events"])
    seen: set[int] = set()
    calls: dict[int, int] = {}
    for chunk in chunks:
        assert form is FORMATS["chat"] or not chunk.keys() & {"id", "object", "created"}  # those are the job's
        ChatCompletionChunk.model_validate({**chunk, **ENVELOPE, "object": "chat.completion.chunk"})
        for choice in chunk["choices"]:
            index = choice["index"]
            assert ("role" in choice["delta"]) == (index not in seen)  # at first, and only then
            seen.add(index)
            for call in choice["delta"].get("tool_calls") or ():
                assert call["index"] in (calls.get(index, -1), calls.get(index, -1) + 1)
                assert ("id" in call) == (call["index"] > calls.get(index, -1))
                calls[index] = call["index"]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == recording["completion"]["usage"]


@pytest.mark.parametrize(("form", "recording"), recordings("events"))
@given(data=st.data())
def test_it_does_not_matter_how_the_bytes_arrive(
    form: WireFormat, recording: dict[str, Any], data: st.DataObject
) -> None:
    events = [event.encode() if isinstance(event, str) else orjson.dumps(event) for event in recording["events"]]
    stream = b"".join(b"event: whatever\ndata: " + event + b"\n\n" for event in events)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    reader = EventReader()
    arrived: list[Event] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        arrived += reader.feed(stream[start:end])
    assert [*arrived, *reader.close()] == [(b"whatever", event) for event in events]
    assert form is not None


@pytest.mark.parametrize(("form", "recording"), recordings("error"))
def test_an_error_is_known_for_what_it_is(form: WireFormat, recording: dict[str, Any]) -> None:
    expected = recording["error"]
    for part in {"events", "answer"} & recording.keys():
        with pytest.raises(UpstreamError) as raised:
            read(form, part, recording[part])
        assert type(raised.value) is getattr(errors, expected["class"])
        assert expected["message"] in raised.value.message
        assert raised.value.code == expected["code"]
        assert raised.value.retry_after == expected.get("retry_after")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize("kind", FORMATS)
@given(body=st.binary(max_size=64) | JSON.map(lambda value: json.dumps(value).encode()))
def test_garbage_is_an_upstreams_error_and_nothing_else(kind: Any, body: bytes) -> None:
    form = FORMATS[kind]
    for parse in (form.parse_completion, form.parse_stream().parse):
        with contextlib.suppress(UpstreamError):
            parse(body)
    form.parse_error(body)


@pytest.mark.parametrize(("form", "recording"), recordings("events", "completion"))
@given(data=st.data())
def test_a_broken_event_is_an_upstreams_error_and_nothing_else(
    form: WireFormat, recording: dict[str, Any], data: st.DataObject
) -> None:
    """Take an event of a recording and put anything in the place of one of its values."""
    events = [event for event in recording["events"] if isinstance(event, dict)]
    original = data.draw(st.sampled_from(events))
    broken = json.loads(json.dumps(original))
    holder = broken
    while True:
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        key = data.draw(st.sampled_from(keys))
        if isinstance(holder[key], dict | list) and holder[key] and data.draw(st.booleans()):
            holder = holder[key]
        else:
            holder[key] = data.draw(JSON)
            break
    parser, fold = form.parse_stream(), Fold()
    with contextlib.suppress(UpstreamError):
        for event in (*events[: events.index(original)], broken):
            for chunk in parser.parse(orjson.dumps(event)):
                fold.add(chunk)


@pytest.mark.parametrize("kind", ["messages", "gemini"])
def test_arguments_that_are_too_deep_are_an_upstreams_error(kind: Any) -> None:
    form, depth = FORMATS[kind], 100_000
    nested = "[" * depth + "]" * depth
    answers = {
        "messages": '{"model":"m","stop_reason":"tool_use","usage":{},"content":['
        '{"type":"tool_use","id":"c","name":"f","input":{"a":%s}}]}',
        "gemini": '{"candidates":[{"finishReason":"STOP","content":{"parts":['
        '{"functionCall":{"name":"f","args":{"a":%s}}}]}}]}',
    }
    with pytest.raises(UpstreamError):
        form.parse_completion((answers[kind] % nested).encode())


@pytest.mark.parametrize("kind", ["responses", "messages", "gemini"])
@given(odd=JSON)
def test_what_clients_add_breaks_no_format(kind: Any, odd: Any) -> None:
    """Fields beyond OpenAI's, of any type: rendered, or refused as the caller's error."""
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}, "extra_content": odd}
    request = {
        "model": "m",
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Hi", "cache_control": odd}], "cache_control": odd},
            {"role": "assistant", "tool_calls": [call], "reasoning_content": odd},
            {"role": "tool", "tool_call_id": "c", "content": "x"},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "cache_control": odd}, "cache_control": odd}],
        "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [{"function": odd}]}},
        "cache_control": odd,
        "safety_settings": odd,
        "top_k": 3,
    }
    with contextlib.suppress(InvalidRequestError):
        parse_chat_request(orjson.dumps(request))
        dropped_parameters(kind, "m", request)
        FORMATS[kind].render_request(request, model="m", stream=True, output_limit=None)
