"""What the fake provider answers an agent with: calls of tools, in the format of chat completions."""

from __future__ import annotations

import json
from typing import Any

from tests.fakes.provider import Behaviour, Call, answer


def calling(*calls: tuple[str, dict[str, Any]], text: str = "", **options: Any) -> Behaviour:
    """Answer with calls of tools by name and arguments, with the ids `call_0`, `call_1` and so on."""
    tool_calls = [
        {
            "index": index,
            "id": f"call_{index}",
            "type": "function",
            "function": {"name": name, "arguments": json.dumps(arguments)},
        }
        for index, (name, arguments) in enumerate(calls)
    ]
    return answer(text, message={"tool_calls": tool_calls}, finish="tool_calls", **options)


def asked(call: Call) -> list[tuple[str, Any]]:
    """Return role and content of each message that a call had; of one with tool calls, role and their ids."""
    return [
        (message["role"], [tool_call["id"] for tool_call in message.get("tool_calls") or ()] or message["content"])
        for message in call.body["messages"]
    ]
