"""A provider's own events and response, passed on: the job's ids and times, and all else as it came."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from typing import Any

import orjson
import pytest

from headrace.errors import UpstreamError, UpstreamTooLargeError
from headrace.formats.registry import FORMATS
from headrace.formats.responses import client
from tests.unit.formats.responses.answers import Answer, Job
from tests.unit.formats.responses.contract import check
from tests.unit.formats.test_recordings import RECORDINGS

DIGITS = "5" * 32
DOCUMENT = {"model": "m", "input": "Hi", "metadata": {"a": "b"}, "previous_response_id": "resp_" + "4" * 32}
EXACT = ["text", "several-messages", "refusal", "tools", "logprobs", "cut-off"]
# Items of reasoning without a status, and what a chat completion cannot say.
LOOSE = ["reasoning", "reasoning-text", "search", "filtered"]


def recorded(name: str) -> dict[str, Any]:
    recording: dict[str, Any] = json.loads((RECORDINGS / f"responses/answer-{name}.json").read_text())
    return recording


def relayed(events: Sequence[Any], document: dict[str, Any] = DOCUMENT, *, log: Sequence[bytes] = ()) -> Answer:
    relay = client.relay(Job(), document, log=log)
    parser, lines = relay.parse_stream(), list(log)
    for event in events:
        parser.parse(event if isinstance(event, bytes) else orjson.dumps(event))
        lines += relay.render(())
    last, response = relay.end({"model": "m"})
    return Answer([*lines, *last], response, document)


def whole(body: dict[str, Any], *, log: Sequence[bytes] = ()) -> Answer:
    relay = client.relay(Job(), DOCUMENT, log=log)
    relay.parse_completion(orjson.dumps(body))
    lines, response = relay.end({"model": "m"})
    return Answer([*log, *lines], response, DOCUMENT)


def without_ids(value: Any) -> Any:
    match value:
        case dict():
            return {key: without_ids(inner) for key, inner in value.items() if key not in ("id", "item_id")}
        case list():
            return [without_ids(inner) for inner in value]
    return value


@pytest.mark.parametrize("name", EXACT + LOOSE)
def test_a_stream_is_passed_on_whole(name: str) -> None:
    recording = recorded(name)
    answer = relayed(recording["events"])
    if name in EXACT:
        check(answer)
    said = [without_ids(event) for event in recording["events"][2:-1]]
    assert [{"sequence_number": number, **without_ids(event)} for number, event in enumerate(answer.log, 2)] == said
    assert without_ids(answer.response["output"]) == without_ids(recording["answer"]["output"])
    assert answer.response["usage"] == recording["answer"]["usage"]


@pytest.mark.parametrize("name", EXACT)
def test_a_whole_answer_has_the_lines_of_a_stream(name: str) -> None:
    answer = whole(recorded(name)["answer"])
    check(answer)
    assert answer.response == relayed(recorded(name)["events"]).response | {
        "completed_at": answer.response["completed_at"]
    }


def test_ids_times_and_what_the_provider_was_not_told_are_the_jobs() -> None:
    answer = relayed(recorded("tools")["events"])
    assert answer.response["id"] == f"resp_{DIGITS}"
    assert answer.response["created_at"] == Job.created
    assert answer.response["metadata"] == {"a": "b"}
    assert answer.response["previous_response_id"] == DOCUMENT["previous_response_id"]
    assert answer.response["store"] is True
    ids = [item["id"] for item in answer.response["output"]]
    assert ids == [f"msg_{DIGITS}0000", f"fc_{DIGITS}0001", f"fc_{DIGITS}0002"]
    assert [item.get("call_id") for item in answer.response["output"]] == [None, "call_a", "call_b"]


def test_what_is_newer_than_headrace_survives() -> None:
    tool = {"id": "qz_1", "type": "quantum_call", "status": "completed", "spin": [1, 1.5, None]}
    events = [
        {"type": "response.created", "response": {"id": "resp_x"}},
        {"type": "response.output_item.added", "output_index": 0, "item": {**tool, "status": "in_progress"}},
        {"type": "response.quantum_call.spun", "item_id": "qz_1", "output_index": 0, "big": 2**70, "kind": "up"},
        {"type": "response.output_item.done", "output_index": 0, "item": tool},
        {"type": "response.noticed", "response": {"id": "resp_x", "created_at": 1}, "obfuscation": "xx"},
        {"type": "keepalive"},
    ]
    ended = {"id": "resp_x", "status": "completed", "output": [tool], "model": "m", "mood": "calm"}
    raw = [json.dumps(event).encode() for event in [*events, {"type": "response.completed", "response": ended}]]
    answer = relayed(raw)
    named = {**tool, "id": f"qz_{DIGITS}0000"}
    assert [line[: line.index(b",")] for line in answer.lines] == [
        b'{"type":"response.output_item.added"',
        b'{"type":"response.quantum_call.spun"',
        b'{"type":"response.output_item.done"',
        b'{"type":"response.noticed"',
    ]
    assert b'"item_id":"qz_%s0000","output_index":0,"big":%d,"kind":"up"}' % (DIGITS.encode(), 2**70) in answer.lines[1]
    assert answer.log[2]["item"] == named
    assert answer.log[3]["response"] == {"id": f"resp_{DIGITS}", "created_at": Job.created}
    assert answer.response["output"] == [named]
    assert answer.response["mood"] == "calm"


def test_a_tool_of_the_providers_is_shown_before_the_model_speaks() -> None:
    relay = client.relay(Job(), DOCUMENT)
    parser = relay.parse_stream()
    for kind, begun in (("reasoning", False), ("function_call", False), ("web_search_call", True)):
        added = {"type": "response.output_item.added", "output_index": 0, "item": {"id": "x", "type": kind}}
        parser.parse(orjson.dumps(added))
        assert relay.begun is begun


def test_an_answer_goes_on_behind_a_lost_attempt() -> None:
    recording = recorded("text")
    cut_off = client.relay(Job(), DOCUMENT)
    parser = cut_off.parse_stream()
    for event in recording["events"][:5]:
        parser.parse(orjson.dumps(event))
    lost = cut_off.render(())
    assert [orjson.loads(line)["type"] for line in lost][-1] == "response.output_text.delta"
    for answer in (relayed(recording["events"], log=lost), whole(recording["answer"], log=lost)):
        check(answer, lost=1)
        assert answer.log[len(lost) + 2]["item"]["status"] == "incomplete"
        assert [item["id"] for item in answer.response["output"]] == [f"msg_{DIGITS}0001"]


def test_ids_are_the_same_where_a_server_gives_others_at_the_end() -> None:
    events = copy.deepcopy(recorded("tools")["events"])
    for item in events[-1]["response"]["output"]:
        item["id"] = "other_" + item["id"]
    check(relayed(events))


def test_items_that_a_server_gives_the_same_id_stay_apart() -> None:
    events = json.loads(json.dumps(recorded("tools")["events"]).replace('"fc_2"', '"fc_1"'))
    check(relayed(events))


def test_an_item_keeps_its_id_where_a_server_leaves_out_one_before_it_at_the_end() -> None:
    events = copy.deepcopy(recorded("reasoning-text")["events"])
    del events[-1]["response"]["output"][0]
    answer = relayed(events)
    assert [item["id"] for item in answer.response["output"]] == [f"msg_{DIGITS}0001"]
    assert sum(event["type"] == "response.output_item.done" for event in answer.log) == 2


def test_an_output_that_a_server_leaves_out_at_the_end_is_that_of_the_stream() -> None:
    events = copy.deepcopy(recorded("tools")["events"])
    events[-1]["response"]["output"] = []
    check(relayed(events))


@pytest.mark.parametrize("name", ["text", "refusal", "tools"])
@pytest.mark.parametrize(
    "lost",
    [
        ("output_item.added",),
        ("content_part.added",),
        ("output_item.added", "content_part.added"),
        ("delta",),
        ("output_text.done", "refusal.done", "arguments.done"),
        ("content_part.done",),
        ("output_item.done",),
        ("output_item.done", "content_part.done", "output_text.done", "refusal.done", "arguments.done"),
        ("output_item.added", "output_item.done", "content_part.added", "content_part.done"),
    ],
)
def test_events_that_a_server_leaves_out_are_added(name: str, lost: tuple[str, ...]) -> None:
    recording = recorded(name)
    answer = relayed([event for event in recording["events"] if not event["type"].endswith(lost)])
    check(answer)
    assert without_ids(answer.response["output"]) == without_ids(recording["answer"]["output"])


def test_what_a_bare_server_leaves_out_is_added() -> None:
    answer = whole({"status": "completed", "output": [{"type": "function_call", "name": "f", "arguments": "{}"}]})
    (item,) = answer.response["output"]
    assert (item["id"], item["call_id"]) == (f"fc_{DIGITS}0000", f"call_{DIGITS}0000")
    assert answer.response["model"] == "m"
    assert answer.response["tools"] == []


@pytest.mark.parametrize("event", [{"type": "response.completed"}, {"type": "x", "item": 1, "output_index": "0"}, [1]])
def test_nonsense_is_an_upstreams_error_and_nothing_else(event: Any) -> None:
    with pytest.raises(UpstreamError):
        relayed([event])


@pytest.mark.parametrize("index", [-1, 0x8000])
def test_an_item_for_which_there_is_no_id_is_refused(index: int) -> None:
    added = {"type": "response.output_item.added", "output_index": index, "item": {"id": "x", "type": "message"}}
    with pytest.raises(UpstreamTooLargeError):
        relayed([added])


# -- the request ------------------------------------------------------------------------------------------------------


def sent(document: dict[str, Any], *, model: str = "gpt-4o", stream: bool = True) -> dict[str, Any]:
    body: dict[str, Any] = orjson.loads(client.relay(Job(), document).render_request(model=model, stream=stream))
    return body


def test_a_request_goes_through_but_for_what_headrace_does_itself() -> None:
    tools = [{"type": "web_search", "filters": {"allowed_domains": ["example.com"]}}]
    kept = {"input": "Hi", "tools": tools, "prompt": {"id": "pmpt_1"}, "newer": [1], "metadata": {"a": "b"}}
    ours = {"background": True, "webhook": "https://example.com", "timeout": 5, "fallbacks": [], "strict_params": True}
    chain = {"previous_response_id": "resp_1", "conversation": None, "context_items": 3, "store": True}
    document = {**kept, **ours, **chain, "model": "mine", "stream_options": {"include_obfuscation": False}}
    body = {**kept, "model": "gpt-4o", "store": False}
    assert sent(document, stream=False) == {**body, "stream": False}
    assert sent(document) == {**body, "stream": True, "stream_options": {"include_obfuscation": False}}


def test_a_reasoning_model_is_asked_for_its_encrypted_thoughts() -> None:
    asked = {"model": "m", "input": "Hi", "include": ["message.output_text.logprobs"]}
    assert sent(asked)["include"] == asked["include"]
    assert sent(asked, model="gpt-5.1")["include"] == [*asked["include"], "reasoning.encrypted_content"]
    assert sent({**asked, "include": None, "reasoning": {"effort": "low"}})["include"] == [
        "reasoning.encrypted_content"
    ]


def test_items_of_the_context_are_sent_as_the_provider_can_read_them() -> None:
    sealed = client.renderer(Job(), {"model": "m", "input": "Hi"})
    thinking = {"thinking_blocks": [{"type": "thinking", "thinking": "Hm", "signature": "s"}]}
    choice = {"index": 0, "message": {"content": "Yes", **thinking}, "finish_reason": "stop"}
    _, other = sealed.end({"model": "m", "choices": [choice], "usage": None})
    thought = {"type": "reasoning", "id": f"rs_{DIGITS}0000", "summary": []}
    user = {"type": "message", "role": "user", "content": "Hi"}
    called = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    items = [
        {**user, "id": f"msg_{DIGITS}8000"},
        *other["output"],
        {**thought, "encrypted_content": "theirs"},
        {**thought, "id": "rs_theirs", "encrypted_content": "theirs"},
        {**thought, "summary": [{"type": "summary_text", "text": "Hm"}]},
        {**thought, "content": [{"type": "reasoning_text", "text": "Hm"}]},
        {**called, "id": f"fc_{DIGITS}0001", "extra_content": {}},
        {"type": "web_search_call", "id": f"ws_{DIGITS}0002", "status": "completed"},
    ]
    output = {"type": "function_call_output", "call_id": "c", "output": "x"}
    assert sent({"model": "m", "input": [*items, output]})["input"] == [
        user,
        other["output"][-1],
        {"type": "reasoning", "summary": [], "encrypted_content": "theirs"},
        items[-5],
        items[-3],
        called,
        items[-1],
        output,
    ]


def test_a_request_of_the_hub_and_the_clients_own_go_to_the_same_place() -> None:
    assert FORMATS["responses"].render_url("http://x/v1/", model="m", stream=True) == "http://x/v1/responses"


def test_the_provider_gets_no_call_that_was_cut_off_and_one_output_of_each_other() -> None:
    def call(name: str, status: str = "completed") -> dict[str, Any]:
        return {"type": "function_call", "call_id": name, "name": "f", "arguments": "{}", "status": status}

    def output(name: str) -> dict[str, Any]:
        return {"type": "function_call_output", "call_id": name, "output": "x"}

    items = [call("a"), output("a"), output("a"), call("b", "incomplete"), call("c", "incomplete"), output("c")]
    document = {"model": "m", "input": [*items, {"role": "user", "content": "Go on."}], "context_items": len(items)}
    assert [item.get("call_id") for item in sent(document)["input"]] == ["a", "a", "c", "c", None]


THOUGHT = {"type": "reasoning", "summary": [], "encrypted_content": "theirs"}
CUT_OFF = {"type": "function_call", "call_id": "b", "name": "f", "arguments": "{", "status": "incomplete"}
CUT_OFF_TOO = {**CUT_OFF, "call_id": "a"}
CALLED = [
    {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "c", "output": "x"},
]
SAID = {"type": "message", "role": "assistant", "content": "Yes."}
HEARD = {"role": "user", "content": "Go on."}


@pytest.mark.parametrize(
    ("items", "kept"),
    [
        pytest.param([THOUGHT, CUT_OFF, HEARD], [HEARD], id="a call that was cut off"),
        pytest.param([THOUGHT, THOUGHT, CUT_OFF, CUT_OFF_TOO, HEARD], [HEARD], id="several"),
        pytest.param([THOUGHT, CUT_OFF, THOUGHT, CUT_OFF_TOO], [], id="each with its thoughts"),
        pytest.param([*CALLED, THOUGHT, CUT_OFF, HEARD], [*CALLED, HEARD], id="behind another call"),
        pytest.param([THOUGHT, SAID, CUT_OFF, HEARD], [THOUGHT, SAID, HEARD], id="a text before it"),
        pytest.param([THOUGHT, CUT_OFF, SAID, HEARD], [THOUGHT, SAID, HEARD], id="a text behind it"),
        pytest.param([THOUGHT, CUT_OFF, *CALLED], [THOUGHT, *CALLED], id="a call behind it"),
        pytest.param([THOUGHT, CUT_OFF, THOUGHT, SAID], [THOUGHT, THOUGHT, SAID], id="a thought and a text behind it"),
        pytest.param([THOUGHT, CALLED[0], CUT_OFF, CALLED[1]], [THOUGHT, *CALLED], id="a call before it"),
    ],
)
def test_the_provider_gets_no_thoughts_that_led_to_a_call_that_was_cut_off_alone(
    items: list[dict[str, Any]], kept: list[dict[str, Any]]
) -> None:
    assert sent({"model": "m", "input": [HEARD, *items]})["input"] == [HEARD, *kept]
