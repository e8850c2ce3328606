"""The fake provider's answers to an agent, and the agent's requests to the provider."""

from __future__ import annotations

import json
from typing import Any

from tests.fakes.provider import Behaviour, Call, answer


def calling(*calls: tuple[str, dict[str, Any]], text: str = "", **options: Any) -> Behaviour:
    """Answer with calls of tools by name and arguments, with the ids `call_0`, `call_1` and so on, in any format."""
    ids = [f"call_{index}" for index in range(len(calls))]
    tool_calls = [
        {"index": index, "id": id_, "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
        for index, (id_, (name, arguments)) in enumerate(zip(ids, calls, strict=True))
    ]
    others = [(id_, name, arguments) for id_, (name, arguments) in zip(ids, calls, strict=True)]
    return answer(text, message={"tool_calls": tool_calls}, calls=others, finish="tool_calls", **options)


def asked(call: Call) -> list[tuple[str, Any]]:
    """Return role and content of each message that a call had; of one with tool calls, role and their ids."""
    return [
        (message["role"], [tool_call["id"] for tool_call in message.get("tool_calls") or ()] or message["content"])
        for message in call.body["messages"]
    ]
