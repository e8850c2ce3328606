"""Requests and answers as blocks, for both formats."""

from __future__ import annotations

from typing import Any

import pytest

from console.transcript import Block, Turn, indented, turns_of_answer, turns_of_items, turns_of_messages


def kinds(turns: list[Turn]) -> list[tuple[str, list[tuple[str, str]]]]:
    return [(turn.role, [(block.kind, block.text) for block in turn.blocks]) for turn in turns]


def test_a_chat_with_calls_and_parts() -> None:
    turns = turns_of_messages(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": None, "content_parts": [{"type": "text", "text": "Here"}]},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "c1", "function": {"name": "weather", "arguments": '{"city":"Oslo"}'}}],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
        ]
    )
    assert kinds(turns) == [
        ("system", [("text", "Be brief.")]),
        ("user", [("text", "Here")]),
        ("assistant", [("call", '{\n  "city": "Oslo"\n}')]),
        ("tool", [("result", "sunny")]),
    ]
    assert turns[2].blocks[0].title == "calls weather"


def test_items_of_one_side_are_one_turn() -> None:
    turns = turns_of_items(
        [
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "I must look."}]},
            {"type": "function_call", "name": "weather", "arguments": "not JSON"},
            {"type": "function_call_output", "call_id": "c1", "output": "rain"},
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
            {"type": "web_search_call", "status": "completed"},
        ]
    )
    assert kinds(turns) == [
        ("user", [("text", "Weather?")]),
        ("assistant", [("reasoning", "I must look."), ("call", "not JSON")]),
        ("tool", [("result", "rain")]),
        ("assistant", [("refusal", "No."), ("other", '{\n  "type": "web_search_call",\n  "status": "completed"\n}')]),
    ]


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("data:image/png;base64,AAAA", True),
        ("data:image/svg+xml;base64,AAAA", False),
        ("https://images.invalid/a.png", False),
        ("javascript:alert(1)", False),
    ],
)
def test_only_an_image_that_came_with_the_request_is_shown(url: str, shown: bool) -> None:
    for part in ({"type": "image_url", "image_url": {"url": url}}, {"type": "input_image", "image_url": url}):
        (turn,) = turns_of_messages([{"role": "user", "content": [part]}])
        assert turn.blocks == [Block("image", url, "image", url if shown else "")]


def test_encoded_files_are_shortened() -> None:
    (turn,) = turns_of_messages([{"role": "user", "content": [{"type": "file", "file": {"file_data": "A" * 100_000}}]}])
    assert "100,000 characters" in turn.blocks[0].text
    assert len(turn.blocks[0].text) < 300


def answer(result: Any, form: str = "chat") -> list[Turn]:
    return turns_of_answer({"format": form, "result": result})


def test_an_answer_says_why_it_was_cut_off() -> None:
    choices = [
        {"index": 0, "finish_reason": "length", "message": {"role": "assistant", "content": "Half"}},
        {"index": 1, "finish_reason": "stop", "message": {"role": "assistant", "content": "Whole"}},
    ]
    first, second = answer({"choices": choices})
    assert (first.role, "limit" in first.note) == ("assistant, choice 1", True)
    assert (second.role, second.note) == ("assistant, choice 2", "")
    assert answer({"choices": choices[1:]})[0].role == "assistant"
    output = [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Half"}]}]
    turns = answer({"output": output, "incomplete_details": {"reason": "max_output_tokens"}}, "responses")
    assert "max_output_tokens" in turns[-1].note
    assert answer(None) == []


@pytest.mark.parametrize(
    "arguments", ['{"x": "\\ud83d"}', "[" * 200_000, "[" * 900 + "]" * 900, "no JSON", '{"n": ' + "9" * 5000 + "}"]
)
def test_arguments_that_cannot_be_shown_with_indents_are_shown_as_they_are(arguments: str) -> None:
    assert indented(arguments).replace("\n", "").replace("  ", "").encode() == arguments.encode()
