"""The calls of a Responses request and their outputs: each call has one, behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from headrace.errors import InvalidRequestError
from headrace.formats.responses.offered import Json

CALLS = frozenset({"function_call", "custom_tool_call"})
"""The types of items that call a tool of the client's."""
OUTPUTS = {"function_call_output": "function call", "custom_tool_call_output": "custom tool call"}
"""The types of items with what such a tool answered, and the words for their calls."""


def outputs_of_calls(
    said: Iterable[Json], *, first_own: int, path: Callable[[int], str]
) -> dict[int, tuple[int, Json]]:
    """Return the outputs in a request's items, each with its place, by the places of their calls.

    Items before `first_own` are those of the context. Its calls may share an id if the first one has its output:
    responses that a conversation got at the same time did not know each other's ids. `path` gives an item's path.

    Raises:
        InvalidRequestError: A call has no output, an output no call before it, or two calls the same id.
    """

    def invalid(index: int, reason: str, code: str = "invalid_value") -> InvalidRequestError:
        param = f"{path(index)}.call_id" if index >= first_own else "input"
        return InvalidRequestError(f"Invalid '{param}': {reason}.", param=param, code=code)

    calls: dict[str, int] = {}
    outputs: dict[int, tuple[int, Json]] = {}
    waiting: dict[int, str] = {}
    for index, item in enumerate(said):
        kind = item.get("type")
        if kind in CALLS:
            call_id = item["call_id"]
            if call_id in calls and (index >= first_own or calls[call_id] in waiting):
                raise invalid(index, f"another call has the id {call_id!r}", "duplicate_call_id")
            calls[call_id] = index
            if item.get("status") != "incomplete":
                waiting[index] = call_id
        elif kind in OUTPUTS:
            call_id = item["call_id"]
            at = calls.get(call_id)
            if at is None:
                raise invalid(index, f"no tool call found for {OUTPUTS[kind]} output {call_id!r}")
            if at in outputs:
                raise invalid(index, f"another output is for the call {call_id!r}", "duplicate_call_id")
            outputs[at] = index, item
            waiting.pop(at, None)
    for index, call_id in waiting.items():
        raise invalid(index, f"no tool output found for the call {call_id!r}")
    return outputs
