"""The response object in every state, and the events that open and end its stream."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from headrace.formats.registry import FORMATS
from headrace.formats.responses import events
from headrace.formats.responses.response import render_stored, skeleton
from tests.unit.formats.responses.answers import REQUEST, Job, chunk, data_of, streamed
from tests.unit.formats.responses.contract import check_response

FACTS: dict[str, Any] = {"job_id": Job.id, "created": Job.created, "background": True}

FULL: dict[str, Any] = {
    "model": "m",
    "input": [{"type": "message", "role": "user", "content": "Hi"}],
    "context_items": 1,
    "webhook": "https://a.invalid/",
    "timeout": 5,
    "fallbacks": ["n"],
    "instructions": "Be brief.",
    "max_output_tokens": 100,
    "max_tool_calls": 3,
    "parallel_tool_calls": False,
    "previous_response_id": "resp_" + "4" * 32,
    "prompt_cache_key": "k",
    "prompt_cache_retention": "24h",
    "reasoning": {"effort": "low", "summary": "auto"},
    "safety_identifier": "s",
    "service_tier": "flex",
    "store": False,
    "temperature": 0.5,
    "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}, "verbosity": "low"},
    "tool_choice": {"type": "function", "name": "f"},
    "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}}],
    "top_logprobs": 2,
    "top_p": 0.9,
    "truncation": "auto",
    "user": "u",
    "metadata": {"a": "b"},
}


def test_a_response_repeats_its_request_and_nothing_of_ours() -> None:
    response = skeleton(FULL, **FACTS, status="in_progress")

    check_response(response)
    form = {"type": "json_schema", "name": "n", "description": None, "strict": True, "schema": {"type": "object"}}
    function = {"type": "function", "name": "f", "description": None, "parameters": {"type": "object"}, "strict": True}
    assert response["text"] == {"format": form, "verbosity": "low"}
    assert response["tools"] == [function]
    ours = {"input", "context_items", "webhook", "timeout", "fallbacks"}
    assert not ours & response.keys()
    same = FULL.keys() - ours - {"text", "tools"}
    assert {name: response[name] for name in same} == {name: FULL[name] for name in same}


def test_a_response_has_the_defaults_of_what_is_left_out() -> None:
    nulls = {name: None for name in FULL if name not in ("model", "input", "context_items")}
    response = skeleton({**REQUEST, **nulls}, **FACTS, status="queued")

    check_response(response)
    assert response == skeleton(REQUEST, **FACTS, status="queued")
    said = {name: response[name] for name in ("temperature", "top_p", "tool_choice", "truncation", "store", "metadata")}
    assert said == {
        "temperature": 1.0,
        "top_p": 1.0,
        "tool_choice": "auto",
        "truncation": "disabled",
        "store": True,
        "metadata": {},
    }


@pytest.mark.parametrize("conversation", ["conv_1", {"id": "conv_1"}], ids=["id", "object"])
def test_a_conversation_is_an_object(conversation: Any) -> None:
    response = skeleton({**REQUEST, "conversation": conversation}, **FACTS, status="queued")
    check_response(response)
    assert response["conversation"] == {"id": "conv_1"}


def test_usage_has_every_count() -> None:
    response = streamed(chunk({"content": "Hi"}), chunk({}, "stop")).response
    assert response["usage"] == {
        "input_tokens": 5,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 3,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 8,
    }


def test_the_service_tier_is_that_of_the_answer() -> None:
    said = {**chunk({"content": "Hi"}, "stop"), "service_tier": "priority"}
    assert streamed(said, document={**REQUEST, "service_tier": "auto"}).response["service_tier"] == "priority"
    assert streamed(chunk({"content": "Hi"}, "stop")).response["service_tier"] == "default"


RESULT = {"type": "moderation_result", "model": "omni", "flagged": True, "categories": {"violence": True}}
FAILED = {"type": "error", "code": "unavailable", "message": "It did not answer."}


def test_what_moderation_found_comes_in_the_form_of_a_response_and_goes_back() -> None:
    harmless = {**RESULT, "flagged": False}
    results = {"type": "moderation_results", "model": "omni", "results": [harmless, RESULT]}
    last = {**chunk({}, "stop"), "moderation": {"input": results, "output": FAILED}}
    response = streamed(chunk({"content": "Hi"}), last).response
    assert response["moderation"] == {"input": RESULT, "output": FAILED}
    assert "moderation" not in streamed(chunk({"content": "Hi"}), chunk({}, "stop")).response

    completion = FORMATS["responses"].parse_completion(orjson.dumps(response))
    results = {**results, "results": [RESULT]}
    assert completion["moderation"] == {"input": results, "output": FAILED}
    for odd in (None, 5, {"input": None}, {"input": {"type": "moderation_results", "results": 5}}):
        answer = streamed(chunk({"content": "Hi"}), {**chunk({}, "stop"), "moderation": odd})
        assert answer.response.get("moderation") == odd


# -- states -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ({"message": "Slow.", "code": "rate_limit_exceeded", "status": 429}, "rate_limit_exceeded"),
        ({"message": "Busy.", "code": None, "status": 429}, "rate_limit_exceeded"),
        ({"message": "Long.", "code": "context_length_exceeded", "status": 400}, "invalid_prompt"),
        ({"message": "Dots.", "code": "image_too_small", "status": 400}, "image_too_small"),
        ({"message": "Bytes.", "code": "invalid_base64_image", "status": 400}, "invalid_base64_image"),
        ({"message": "Down.", "code": "upstream_error", "status": 502}, "server_error"),
        ({"message": "Late.", "code": "timeout", "status": 504}, "server_error"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
@pytest.mark.parametrize("state", ["failed", "expired"])
def test_a_failed_response_says_why_in_openais_words(state: str, error: dict[str, Any], code: str) -> None:
    response = render_stored(REQUEST, **FACTS, state=state, error=orjson.dumps(error))

    assert isinstance(response, dict)
    check_response(response)
    assert response["status"] == "failed"
    assert response["error"] == {"code": code, "message": error["message"]}
    assert events.terminal(response).startswith(b'{"type":"response.failed","response":{"id":"resp_')


@pytest.mark.parametrize(
    ("state", "status"), [("queued", "queued"), ("running", "in_progress"), ("cancelled", "cancelled")], ids=str
)
def test_a_response_without_an_answer_is_made_of_its_request(state: str, status: str) -> None:
    error = orjson.dumps({"message": "Cancelled.", "code": "cancelled", "status": 499})
    response = render_stored(REQUEST, **FACTS, state=state, error=error)

    assert isinstance(response, dict)
    check_response(response)
    assert (response["status"], response["error"], response["output"]) == (status, None, [])


def test_a_stored_response_is_what_was_stored() -> None:
    stored = orjson.dumps(streamed(chunk({"content": '"status":"failed"'}), chunk({}, "length")).response)
    assert render_stored(REQUEST, **FACTS, state="completed", response=stored) is stored
    assert events.terminal(stored) == b'{"type":"response.incomplete","response":' + stored + b"}"


# -- events -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("background", [True, False])
def test_a_stream_opens_with_the_state_of_the_job(*, background: bool) -> None:
    lines = events.opening(REQUEST, **{**FACTS, "background": background})

    opened = [data_of(events.render_line(line, number)) for number, line in enumerate(lines)]
    assert len(opened) == events.base(background)
    told = [(event["type"].removeprefix("response."), event["response"]["status"]) for event in opened]
    queued = [("created", "queued"), ("queued", "queued")]
    assert told == [*(queued if background else [("created", "in_progress")]), ("in_progress", "in_progress")]


def test_parts_and_items_of_other_types_are_told_whole() -> None:
    search = {"id": "ws_1", "type": "web_search_call", "status": "completed", "action": {"type": "search"}}
    message = {"id": "msg_1", "type": "message", "role": "assistant", "content": [{"type": "novel", "x": 1}]}

    lines = [orjson.loads(line) for line in events.lines_of({"output": [search, message]})]

    assert [line["type"].removeprefix("response.") for line in lines] == [
        "output_item.added",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "content_part.done",
        "output_item.done",
    ]
    assert (lines[1]["item"], lines[-1]["item"]) == (search, message)
