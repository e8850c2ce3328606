"""The calls of a Responses request and their outputs: each call has one, behind it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Sequence

from headrace.errors import InvalidRequestError
from headrace.formats.responses.context import kind_of
from headrace.formats.responses.offered import Json

CALLS = frozenset({"function_call", "custom_tool_call"})
"""The types of items that call a tool of the client's."""
OUTPUTS = {"function_call_output": "function call", "custom_tool_call_output": "custom tool call"}
"""The types of items with what such a tool answered, and the words for their calls."""

TOOL_ITEMS = frozenset({*CALLS, *OUTPUTS})
"""The types of both."""


def outputs_of_calls(
    said: Sequence[Json], *, first_own: int, path: Callable[[int], str]
) -> dict[int, tuple[int, Json]]:
    """Return the outputs in a request's items, each with its place, by the places of their calls.

    Items before `first_own` are those of the context. Responses that a conversation got at the same time did not know
    each other's items, so there calls may share an id, and a second output of a call is ignored. An output is for the
    oldest call of its id that waits for one. `path` gives an item's path.

    Raises:
        InvalidRequestError: A call has no output, an output no call before it, or two calls or outputs the same id.
    """

    def invalid(index: int, reason: str, code: str = "invalid_value") -> InvalidRequestError:
        param = f"{path(index)}.call_id" if index >= first_own else "input"
        return InvalidRequestError(f"Invalid '{param}': {reason}.", param=param, code=code)

    outputs: dict[int, tuple[int, Json]] = {}
    # The calls without an output, by their ids: all of those that wait for one, and the last one that was cut off.
    waiting: dict[str, deque[int]] = {}
    cut_off: dict[str, int] = {}
    for index, item in enumerate(said):
        kind = item.get("type")
        if kind in CALLS:
            call_id = item["call_id"]
            if call_id in waiting and index >= first_own:
                raise invalid(index, f"another call has the id {call_id!r}", "duplicate_call_id")
            places = waiting.setdefault(call_id, deque())
            if item.get("status") == "incomplete":
                cut_off[call_id] = index
            else:
                places.append(index)
        elif kind in OUTPUTS:
            call_id = item["call_id"]
            if call_id not in waiting:
                raise invalid(index, f"no tool call found for {OUTPUTS[kind]} output {call_id!r}")
            at = waiting[call_id].popleft() if waiting[call_id] else cut_off.pop(call_id, None)
            if at is not None:
                outputs[at] = index, item
            elif index >= first_own:
                raise invalid(index, f"another output is for the call {call_id!r}", "duplicate_call_id")
    if left := [(at, call_id) for call_id, places in waiting.items() for at in places]:
        at, call_id = min(left)
        raise invalid(at, f"no tool output found for the call {call_id!r}")
    return outputs


def unpaired(said: Sequence[Json], *, first_own: int) -> set[int]:
    """Return the places of items that no model reads: calls that were cut off, their thoughts, and second outputs.

    Raises as `outputs_of_calls` does, which has taken the items before.
    """
    places = {at for at, item in enumerate(said) if item.get("type") in TOOL_ITEMS}
    if places:
        outputs = outputs_of_calls(said, first_own=first_own, path=lambda _: "input")
        places.difference_update(outputs, (at for at, _ in outputs.values()))
    return places | _thoughts_alone(said, places) if places else places


def _thoughts_alone(said: Sequence[Json], unread: Container[int]) -> set[int]:
    """Return the places of thoughts right before unread calls, if the model's answer ends there.

    OpenAI refuses thoughts without what the model made of them.
    """
    alone = set()
    goes_on = called = False
    for at in range(len(said) - 1, -1, -1):
        kind = said[at].get("type")
        if at in unread:
            called = called or kind in CALLS
        elif kind != "reasoning":
            goes_on, called = _is_said_by_model(said[at]), False
        elif called and not goes_on:
            alone.add(at)
    return alone


def _is_said_by_model(item: Json) -> bool:
    kind = kind_of(item)
    if kind == "message":
        return bool(item["role"] == "assistant")
    return not kind.endswith(("_output", "_response"))
