"""Chat chunks as the events of a response."""

from __future__ import annotations

import re
from typing import Any

import orjson
import pytest

from headrace.errors import UpstreamTooLargeError
from headrace.formats.chat.normaliser import Normaliser
from headrace.formats.responses.output import render
from headrace.formats.responses.resume import resume
from headrace.formats.responses.sealed import open_sealed, seal
from headrace.ids import FIRST_INPUT_ITEM
from tests.unit.formats.responses.answers import REQUEST, Answer, call, chunk, folded, streamed, whole
from tests.unit.formats.responses.contract import check

DIGITS = "5" * 32
CUSTOM = {**REQUEST, "tools": [{"type": "custom", "name": "shell"}]}


def told(answer: Answer) -> list[str]:
    """Return the output index and the type of each event of the log, which has been checked."""
    check(answer)
    return [f"{event['output_index']} {event['type'].removeprefix('response.')}" for event in answer.log]


def in_item(index: int, *kinds: str) -> list[str]:
    return [f"{index} {kind}" for kind in ("output_item.added", *kinds, "output_item.done")]


def part(deltas: int, kind: str = "output_text", about: str = "content_part") -> list[str]:
    return [f"{about}.added", *[f"{kind}.delta"] * deltas, f"{kind}.done", f"{about}.done"]


def arguments(deltas: int, kind: str = "function_call_arguments") -> list[str]:
    return [*[f"{kind}.delta"] * deltas, f"{kind}.done"]


def deltas(answer: Answer) -> list[str]:
    return [event["delta"] for event in answer.log if "delta" in event]


# -- messages ---------------------------------------------------------------------------------------------------------


def test_a_text_is_a_message_of_one_part() -> None:
    answer = streamed(
        chunk({"role": "assistant", "content": ""}),
        chunk({"content": "He"}),
        chunk({"content": "y"}),
        chunk({}, "stop"),
    )

    assert told(answer) == in_item(0, *part(2))
    assert deltas(answer) == ["He", "y"]
    said = {"type": "output_text", "text": "Hey", "annotations": [], "logprobs": []}
    message = {"id": f"msg_{DIGITS}0000", "type": "message", "status": "completed", "role": "assistant"}
    assert answer.response["output"] == [{**message, "content": [said]}]


def test_a_refusal_is_a_part_of_its_own() -> None:
    answer = streamed(chunk({"content": "Well"}), chunk({"refusal": "No"}), chunk({"refusal": "."}), chunk({}, "stop"))

    assert told(answer) == in_item(0, *part(1), *part(2, "refusal"))
    [message] = answer.response["output"]
    assert message["content"][1] == {"type": "refusal", "refusal": "No."}


def test_an_answer_of_nothing_is_an_empty_message() -> None:
    answer = streamed(chunk({"role": "assistant", "content": ""}), chunk({}, "stop"))

    assert told(answer) == in_item(0, *part(0))
    assert answer.response["output"][0]["content"][0]["text"] == ""


@pytest.mark.parametrize(
    ("finish", "reason"), [("length", "max_output_tokens"), ("content_filter", "content_filter")], ids=str
)
def test_what_is_cut_off_is_incomplete(finish: str, reason: str) -> None:
    answer = streamed(chunk({"reasoning_content": "Hm"}), chunk({"content": "He"}), chunk({}, finish))

    check(answer)
    assert [item["status"] for item in answer.response["output"]] == ["completed", "incomplete"]
    assert answer.response["status"] == "incomplete"
    assert answer.response["incomplete_details"] == {"reason": reason}
    assert answer.response["completed_at"] is None
    assert answer.events[-1]["type"] == "response.incomplete"


def test_citations_are_flat_and_told_as_they_come() -> None:
    cited = {"url": "https://a.invalid/", "title": "A", "start_index": 0, "end_index": 2}
    delta = {"annotations": [{"type": "url_citation", "url_citation": cited}]}
    answer = streamed(chunk({"content": "See"}), chunk(delta), chunk({"content": "!"}), chunk(delta), chunk({}, "stop"))

    flat = {"type": "url_citation", **cited}
    annotations = [event for event in answer.log if event["type"] == "response.output_text.annotation.added"]
    assert [(event["annotation_index"], event["annotation"]) for event in annotations] == [(0, flat), (1, flat)]
    assert answer.response["output"][0]["content"][0]["annotations"] == [flat, flat]
    check(answer)


def test_citations_that_come_before_their_text_wait_for_it() -> None:
    cited = {"url": "https://a.invalid/", "title": "A", "start_index": 0, "end_index": 2}
    delta = {"annotations": [{"type": "url_citation", "url_citation": cited}]}
    answer = streamed(chunk(delta), chunk({"content": "See"}), chunk({}, "stop"))

    between = ["content_part.added", "output_text.delta", "output_text.annotation.added"]
    assert told(answer) == in_item(0, *between, "output_text.done", "content_part.done")


def test_log_probabilities_leave_only_if_they_are_asked_for() -> None:
    tokens = [{"token": "é", "logprob": -0.5, "bytes": None, "top_logprobs": [{"token": "e", "logprob": -1.0}]}]
    chunks = [chunk({"content": "é"}, logprobs={"content": tokens, "refusal": None}), chunk({}, "stop")]

    asked = streamed(*chunks, document={**REQUEST, "include": ["message.output_text.logprobs"]})
    check(asked)
    other = {"token": "e", "logprob": -1.0, "bytes": [101]}
    exact = [{"token": "é", "logprob": -0.5, "bytes": [195, 169], "top_logprobs": [other]}]
    assert [event["logprobs"] for event in asked.log if "logprobs" in event] == [exact, exact]
    assert asked.response["output"][0]["content"][0]["logprobs"] == exact

    plain = streamed(*chunks)
    check(plain)
    assert [event["logprobs"] for event in plain.log if "logprobs" in event] == [[], []]


def test_the_first_choice_is_the_answer() -> None:
    chunks = [chunk({"content": "a"}), chunk({"content": "b"}), chunk({}, "stop"), chunk({}, "length")]
    for one, index in zip(chunks, (1, 0, 1, 0), strict=True):
        one["choices"][0]["index"] = index

    answer = streamed(*chunks)

    assert deltas(answer) == ["a"]
    assert answer.response["status"] == "completed"


# -- reasoning --------------------------------------------------------------------------------------------------------

THOUGHTS = [
    chunk({"reasoning_content": "H"}),
    chunk({"reasoning_content": "m", "reasoning": "m"}),
    chunk({"content": "Hey"}),
    chunk({}, "stop"),
]


def test_reasoning_is_an_item_with_text() -> None:
    answer = streamed(*THOUGHTS)

    assert told(answer) == in_item(0, *part(2, "reasoning_text")) + in_item(1, *part(1))
    item = {"id": f"rs_{DIGITS}0000", "type": "reasoning", "status": "completed", "summary": []}
    assert answer.response["output"][0] == {**item, "content": [{"type": "reasoning_text", "text": "Hm"}]}


def test_reasoning_is_a_summary_if_one_is_asked_for() -> None:
    answer = streamed(*THOUGHTS, document={**REQUEST, "reasoning": {"effort": "low", "summary": "auto"}})

    summary = part(2, "reasoning_summary_text", "reasoning_summary_part")
    assert told(answer) == in_item(0, *summary) + in_item(1, *part(1))
    item = {"id": f"rs_{DIGITS}0000", "type": "reasoning", "status": "completed"}
    assert answer.response["output"][0] == {**item, "summary": [{"type": "summary_text", "text": "Hm"}]}


def test_signed_thoughts_are_kept_for_the_next_turn() -> None:
    first, hidden = (
        {"type": "thinking", "thinking": "Hm", "signature": "s"},
        {"type": "redacted_thinking", "data": "x"},
    )
    answer = streamed(
        chunk({"reasoning_content": "Hm"}),
        chunk({"thinking_blocks": [first]}),
        chunk({"thinking_blocks": [hidden]}),
        chunk({"content": "Hey"}),
        chunk({}, "stop"),
    )

    check(answer)
    assert open_sealed(answer.response["output"][0]["encrypted_content"]) == {"thinking_blocks": [first, hidden]}


def test_thoughts_that_grow_piece_by_piece_are_kept_as_one() -> None:
    pieces = [{"type": "reasoning.text", "text": text, "index": 0} for text in ("H", "m")]
    pieces.append({"type": "reasoning.text", "signature": "s", "index": 0})
    answer = streamed(
        *(chunk({"reasoning": piece.get("text"), "reasoning_details": [piece]}) for piece in pieces),
        chunk({"content": "Hey"}),
        chunk({}, "stop"),
    )

    assert told(answer) == in_item(0, *part(2, "reasoning_text")) + in_item(1, *part(1))
    kept = {"type": "reasoning.text", "text": "Hm", "index": 0, "signature": "s"}
    assert open_sealed(answer.response["output"][0]["encrypted_content"]) == {"reasoning_details": [kept]}
    assert whole(folded(answer_of("Hm", kept))).response["output"] == answer.response["output"]


def answer_of(thought: str, details: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the same in one piece each, with the thought in both fields that servers write it into."""
    fields = {"reasoning": thought, "reasoning_content": thought, "reasoning_details": [details]}
    return [chunk(fields), chunk({"content": "Hey"}), chunk({}, "stop")]


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
@pytest.mark.parametrize("summary", [None, "auto"])
def test_plain_thoughts_of_a_chat_model_are_kept_for_the_next_turn(field: str, summary: str | None) -> None:
    document = {**REQUEST, "reasoning": {"summary": summary}}
    chunks = [chunk({field: "H"}), chunk({field: "m"}), chunk(call(0, "{}", name="f")), chunk({}, "tool_calls")]
    answer = streamed(*chunks, document=document, from_chat=True)

    check(answer)
    [thought, _] = answer.response["output"]
    assert open_sealed(thought["encrypted_content"]) == {"model": "m", field: "Hm"}
    assert whole(folded(chunks), document, from_chat=True).response["output"] == answer.response["output"]


def test_thoughts_of_a_chat_model_that_have_a_form_of_their_own_are_kept_in_it_alone() -> None:
    kept = {"type": "reasoning.text", "text": "Hm", "index": 0, "signature": "s"}
    answer = streamed(*answer_of("Hm", kept), from_chat=True)
    assert open_sealed(answer.response["output"][0]["encrypted_content"]) == {"reasoning_details": [kept]}


@pytest.mark.parametrize("wanted", [None, "auto"])
def test_thoughts_among_the_parts_of_a_content_are_not_kept(wanted: str | None) -> None:
    """Mistral's, which refuses a field that it does not have."""
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm"}]}]
    chunks = [Normaliser().chunk(chunk({"content": parts})), chunk({"content": "Hey"}), chunk({}, "stop")]
    answer = streamed(*filter(None, chunks), document={**REQUEST, "reasoning": {"summary": wanted}}, from_chat=True)
    assert [item["type"] for item in answer.response["output"]] == ["reasoning", "message"]
    assert "encrypted_content" not in answer.response["output"][0]


@pytest.mark.parametrize("text", ["", "gAAAAABo", "hr1.", "hr1.!", "hr1." + "W10=", seal({})[:-1]], ids=str)
def test_what_another_server_has_sealed_is_not_opened(text: str) -> None:
    assert open_sealed(text) is None


# -- calls ------------------------------------------------------------------------------------------------------------


def test_calls_are_items_one_after_another() -> None:
    answer = streamed(
        chunk({"content": "So:"}),
        chunk(call(0, "", name="f")),
        chunk(call(0, '{"a":')),
        chunk(call(0, "1}")),
        chunk(call(1, "{}", name="g", extra_content={"google": {"thought_signature": "s"}})),
        chunk({}, "tool_calls"),
    )

    assert told(answer) == in_item(0, *part(1)) + in_item(1, *arguments(2)) + in_item(2, *arguments(1))
    done = [event for event in answer.log if event["type"] == "response.function_call_arguments.done"]
    assert [(event["name"], event["arguments"]) for event in done] == [("f", '{"a":1}'), ("g", "{}")]
    _, first, second = answer.response["output"]
    assert (first["id"], first["call_id"]) == (f"fc_{DIGITS}0001", "call_0")
    assert second["extra_content"] == {"google": {"thought_signature": "s"}}


def test_calls_that_come_by_turns_stay_open() -> None:
    answer = streamed(
        chunk({"tool_calls": [*call(0, "", name="f")["tool_calls"], *call(1, "", name="g")["tool_calls"]]}),
        chunk(call(0, '{"a":')),
        chunk(call(1, "{}")),
        chunk(call(0, "1}")),
        chunk({}, "tool_calls"),
    )

    check(answer)
    assert [item["arguments"] for item in answer.response["output"]] == ['{"a":1}', "{}"]


def test_text_behind_a_call_is_another_message() -> None:
    answer = streamed(
        chunk({"content": "a"}), chunk(call(0, "{}", name="f")), chunk({"content": "b"}), chunk({}, "stop")
    )

    assert told(answer) == in_item(0, *part(1)) + in_item(1, *arguments(1)) + in_item(2, *part(1))


def test_a_call_that_is_cut_off_is_incomplete() -> None:
    answer = streamed(chunk(call(0, '{"a":', name="f")), chunk({}, "length"))

    assert told(answer) == in_item(0, *arguments(1))
    [item] = answer.response["output"]
    assert (item["arguments"], item["status"]) == ('{"a":', "incomplete")


def test_a_function_of_the_older_kind_is_a_call() -> None:
    said: list[Any] = [{"name": "f", "arguments": ""}, {"arguments": "{}"}]
    answer = streamed(*(chunk({"function_call": one}) for one in said), chunk({}, "function_call"))

    assert told(answer) == in_item(0, *arguments(1))
    [item] = answer.response["output"]
    assert (item["name"], item["arguments"]) == ("f", "{}")
    assert re.fullmatch(r"call_[0-9a-f]+", item["call_id"])


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        (['{"inp', 'ut":"ls', ' -l\\n"}'], "ls -l\n"),
        (['{"command":"ls"}'], "ls"),
        (['{"input":1}'], '{"input":1}'),
        (["ls"], "ls"),
    ],
    ids=["as-offered", "another-name", "not-a-string", "not-json"],
)
def test_a_call_of_a_custom_tool_is_told_once_it_is_whole(pieces: list[str], text: str) -> None:
    answer = streamed(
        chunk(call(0, "", name="shell")), *(chunk(call(0, piece)) for piece in pieces), chunk({}, "tool_calls"),
        document=CUSTOM,
    )  # fmt: skip

    assert told(answer) == in_item(0, *arguments(1, "custom_tool_call_input"))
    [item] = answer.response["output"]
    assert item["type"] == "custom_tool_call"
    assert (item["id"], item["name"], item["input"]) == (f"ctc_{DIGITS}0000", "shell", text)


def test_a_custom_tool_that_the_provider_knows_is_told_as_it_comes() -> None:
    pieces: list[Any] = [
        {"index": 0, "id": "call_0", "type": "custom", "custom": {"name": "shell", "input": "l"}},
        {"index": 0, "custom": {"input": "s"}},
    ]
    answer = streamed(*(chunk({"tool_calls": [piece]}) for piece in pieces), chunk({}, "tool_calls"), document=CUSTOM)

    assert told(answer) == in_item(0, *arguments(2, "custom_tool_call_input"))
    assert answer.response["output"][0]["input"] == "ls"


@pytest.mark.parametrize(
    ("tool", "kind"),
    [
        ({"type": "function", "name": "find", "parameters": {}}, "function_call"),
        ({"type": "custom", "name": "find"}, "custom_tool_call"),
    ],
    ids=["function", "custom"],
)
def test_a_call_of_a_tool_in_a_namespace_has_the_clients_names(tool: dict[str, Any], kind: str) -> None:
    namespace = {"type": "namespace", "name": "crm", "description": "Customers.", "tools": [tool]}

    answer = streamed(
        chunk(call(0, '{"input":"x"}', name="crm__find")),
        chunk({}, "tool_calls"),
        document={**REQUEST, "tools": [namespace]},
    )

    check(answer)
    [item] = answer.response["output"]
    assert (item["type"], item["namespace"], item["name"]) == (kind, "crm", "find")


# -- attempts ---------------------------------------------------------------------------------------------------------


def test_a_new_attempt_closes_what_the_lost_one_left_open() -> None:
    lost = streamed(
        chunk({"reasoning_content": "Hm"}), chunk({"content": "Hal"}), chunk({"content": "f"}), chunk({}, "stop")
    )
    log = lost.lines[: [line.startswith(b'{"type":"response.output_text.done"') for line in lost.lines].index(True)]

    answer = streamed(chunk({"content": "Whole"}), chunk({}, "stop"), log=log)

    closing = [f"1 {kind}" for kind in ("output_text.done", "content_part.done", "output_item.done")]
    check(answer, lost=2)
    types = [f"{event['output_index']} {event['type'].removeprefix('response.')}" for event in answer.log[len(log) :]]
    assert types == closing + in_item(2, *part(1))
    half = answer.log[len(log) + 2]["item"]
    assert (half["status"], half["content"][0]["text"]) == ("incomplete", "Half")
    [item] = answer.response["output"]
    assert (item["id"], item["content"][0]["text"]) == (f"msg_{DIGITS}0002", "Whole")


def test_a_log_that_ends_anywhere_goes_on_as_a_valid_one() -> None:
    thought, text = chunk({"reasoning_content": "Hm"}), chunk({"content": "Half"})
    lost = streamed(thought, text, chunk(call(0, "{}", name="f")), chunk({}, "tool_calls"))
    for cut in range(len(lost.lines)):
        log = lost.lines[:cut]
        added = sum(b'"type":"response.output_item.added"' in line for line in log)

        answer = streamed(text, chunk({}, "stop"), log=log)

        check(answer, lost=added)


def test_a_call_of_a_new_attempt_has_an_id_of_its_own() -> None:
    log = streamed(chunk(call(0, '{"a":', name="f")), chunk({}, "stop")).lines[:2]

    answer = streamed(chunk(call(0, "{}", name="f")), chunk({}, "tool_calls"), log=log)

    check(answer, lost=1)
    first, second = (event["item"] for event in answer.log if event["type"] == "response.output_item.done")
    assert (first["status"], first["arguments"], first["call_id"]) == ("incomplete", '{"a":', "call_0")
    assert (second["status"], second["arguments"]) == ("completed", "{}")
    assert second["call_id"] != "call_0"


def test_an_attempt_that_answers_whole_closes_what_is_open_too() -> None:
    log = streamed(chunk({"content": "Half"}), chunk({}, "stop")).lines[:3]
    completion = {"model": "m", "choices": [{"index": 0, "message": {"content": "Whole"}, "finish_reason": "stop"}]}

    answer = whole(completion, log=log)

    check(answer, lost=1)
    assert answer.response["output"][0]["content"][0]["text"] == "Whole"


def test_an_answer_has_no_more_items_than_there_are_ids() -> None:
    last = render("response.output_item.added", output_index=FIRST_INPUT_ITEM - 1, item={"id": "x", "type": "novel"})
    with pytest.raises(UpstreamTooLargeError, match="too many items"):
        streamed(chunk({"content": "Hi"}), chunk({}, "stop"), log=[last])


def test_what_is_odd_in_a_providers_own_stream_does_not_keep_a_new_attempt_back() -> None:
    call_item = {"id": "fc_1", "type": "function_call", "call_id": "c", "arguments": ""}
    message = {"id": "msg_1", "type": "message", "content": None}
    log = [
        render("response.output_item.added", output_index=0, item=call_item),
        render("response.output_item.added", output_index=1, item=message),
        render("response.output_item.added", item=message),
        render("response.output_item.added", output_index=2, item=None),
        render("response.content_part.added", output_index=1, part=None),
        render("response.output_text.delta", output_index=1),
        render("response.function_call_arguments.delta", output_index=0),
        render("response.function_call_arguments.delta", output_index=0, delta="{}"),
        render("response.novel", output_index="0"),
        render("novel"),
    ]

    lines, following, call_ids = resume(log)

    done = [event["item"] for event in map(orjson.loads, lines) if event["type"] == "response.output_item.done"]
    closed = {**call_item, "arguments": "{}", "status": "incomplete"}
    assert done == [closed, {**message, "status": "incomplete"}]
    assert (following, "c" in call_ids) == (2, True)
