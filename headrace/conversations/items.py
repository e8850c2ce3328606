"""The items that a client gives to a conversation, in the form in which OpenAI's API returns them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from headrace.conversations.appending import Item
from headrace.errors import invalid_parameter
from headrace.ids import item_id

MOST_ADDED = 20
"""Items that a client may add at a time: OpenAI's limit."""

# What an item's id begins with, by its type; types that are not here have `item`.
_PREFIXES = {
    "message": "msg",
    "reasoning": "rs",
    "function_call": "fc",
    "function_call_output": "fco",
    "custom_tool_call": "ctc",
    "custom_tool_call_output": "ctco",
    "file_search_call": "fs",
    "web_search_call": "ws",
    "computer_call": "cu",
    "computer_call_output": "cuo",
    "code_interpreter_call": "ci",
    "image_generation_call": "ig",
    "mcp_call": "mcp",
    "mcp_list_tools": "mcpl",
    "mcp_approval_request": "mcpr",
    "mcp_approval_response": "mcpa",
    "compaction": "cmp",
}
_ROLES = ("user", "assistant", "system", "developer")
# What only a request can say: refer to an item, and ask for a compaction.
_NOT_KEPT = frozenset({"item_reference", "compaction_trigger"})
# Types whose `status` OpenAI requires in what it returns, and does not in what it is given.
_WITH_STATUS = frozenset({
    "message", "function_call", "function_call_output", "computer_call_output", "shell_call", "shell_call_output",
    "tool_search_call", "tool_search_output",
})  # fmt: skip


def check_items(given: Sequence[Mapping[str, Any]]) -> None:
    """Check items that a client gives to a conversation.

    Raises:
        InvalidRequestError: An item is not valid, or refers to another; the error names its path.
    """
    for index, item in enumerate(given):
        kind = item.get("type", "message")
        if not isinstance(kind, str) or kind in _NOT_KEPT:
            raise invalid_parameter(f"items[{index}].type", "a conversation cannot keep such an item")
        if kind == "message":
            if item.get("role") not in _ROLES:
                raise invalid_parameter(f"items[{index}].role", f"there are: {', '.join(_ROLES)}")
            if not isinstance(item.get("content"), str | list):
                raise invalid_parameter(f"items[{index}].content", "it is a text, or a list of parts")


def drawn(given: Sequence[Mapping[str, Any]], digits: str) -> list[Item]:
    """Return items with ids of ours, made of 32 hexadecimal `digits` and the items' numbers from 0 on."""
    return [_drawn(item, digits, number) for number, item in enumerate(given)]


def _drawn(given: Mapping[str, Any], digits: str, number: int) -> Item:
    kind = given.get("type") or "message"
    its_id = item_id(_PREFIXES.get(kind, "item"), digits, number)
    document = {**given, "type": kind, "id": its_id}
    if kind in _WITH_STATUS:
        document["status"] = given.get("status") or "completed"
    if kind == "message" and isinstance(given["content"], str):
        document["content"] = [_text_part(given["role"], given["content"])]
    return Item(its_id, orjson.dumps(document).decode())


def _text_part(role: str, text: str) -> dict[str, Any]:
    if role == "assistant":
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {"type": "input_text", "text": text}
