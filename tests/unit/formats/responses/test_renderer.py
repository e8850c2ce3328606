"""Chat chunks as the events of a response."""

from __future__ import annotations

from tests.unit.formats.responses.answers import Answer, call, chunk, streamed

MESSAGE = "msg_" + "5" * 32


def told(answer: Answer) -> list[str]:
    """Return the types of the log's events, without their common beginning, and their output index."""
    return [f"{event['output_index']} {event['type'].removeprefix('response.')}" for event in answer.log]


def text_events(index: int, deltas: int) -> list[str]:
    between = ["content_part.added", *["output_text.delta"] * deltas, "output_text.done", "content_part.done"]
    return [f"{index} {kind}" for kind in ("output_item.added", *between, "output_item.done")]


def call_events(index: int, deltas: int, kind: str = "function_call_arguments") -> list[str]:
    between = [*[f"{kind}.delta"] * deltas, f"{kind}.done"]
    return [f"{index} {kind}" for kind in ("output_item.added", *between, "output_item.done")]


def test_a_text_is_a_message_of_one_part() -> None:
    answer = streamed(
        chunk({"role": "assistant", "content": ""}),
        chunk({"content": "He"}),
        chunk({"content": "y"}),
        chunk({}, "stop"),
    )

    assert told(answer) == text_events(0, 2)
    part = {"type": "output_text", "text": "Hey", "annotations": [], "logprobs": []}
    message = {"id": MESSAGE + "0000", "type": "message", "status": "completed", "role": "assistant", "content": [part]}
    assert answer.response["output"] == [message]
    assert answer.log[-1]["item"] == message
    assert [event["delta"] for event in answer.log if "delta" in event] == ["He", "y"]


def test_calls_are_items_one_after_another() -> None:
    answer = streamed(
        chunk({"content": "So:"}),
        chunk(call(0, "", name="f")),
        chunk(call(0, '{"a":')),
        chunk(call(0, "1}")),
        chunk(call(1, "{}", name="g")),
        chunk({}, "tool_calls"),
    )

    assert told(answer) == text_events(0, 1) + call_events(1, 2) + call_events(2, 1)
    done = [event for event in answer.log if event["type"] == "response.function_call_arguments.done"]
    assert [(event["name"], event["arguments"]) for event in done] == [("f", '{"a":1}'), ("g", "{}")]
    assert [item.get("call_id") for item in answer.response["output"]] == [None, "call_0", "call_1"]
