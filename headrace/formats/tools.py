"""The tools of a chat request, prepared for the formats of other providers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from headrace.formats.lenient import parse_lenient_json

Choice = str | Mapping[str, Any]
"""`none`, `auto`, `required`, or the one function to be called."""

CHOICES: Mapping[str, str] = {"none": "none", "auto": "auto", "required": "required", "any": "required"}
"""The words for a choice that formats other than chat know, with OpenAI's: `any` is Mistral's."""


def offered_tools(request: Mapping[str, Any]) -> tuple[Sequence[Mapping[str, Any]], Choice]:
    """Return the tools that the model may call, and the choice among them. `allowed_tools` leaves only some tools."""
    tools: Sequence[Mapping[str, Any]] = request.get("tools") or ()
    choice: Choice = request.get("tool_choice") or "auto"
    if isinstance(choice, str):
        return tools, CHOICES.get(choice, choice)
    if choice["type"] != "allowed_tools":
        return tools, choice
    functions = (tool.get("function") for tool in choice["allowed_tools"]["tools"])
    allowed = [function.get("name") for function in functions if isinstance(function, Mapping)]
    return [tool for tool in tools if tool["function"]["name"] in allowed], choice["allowed_tools"]["mode"]


def parse_arguments(text: str) -> dict[str, Any]:
    """Return the object of a call's arguments. Models err: other JSON, or text, becomes its field `arguments`."""
    try:
        arguments = parse_lenient_json(text.encode("utf-8", "replace") or b"{}")
    except ValueError:
        arguments = text
    return arguments if isinstance(arguments, dict) else {"arguments": arguments}
