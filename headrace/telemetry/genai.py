"""Attributes of a call to a model, by OpenTelemetry's conventions for generative AI.

Spans have the names that dashboards read today. The newest names, which may still change, are in
https://github.com/open-telemetry/semantic-conventions-genai, and come beside the others where they are asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from headrace.formats.chat.support import Kind
from headrace.formats.chat.usage import TokenUsage
from headrace.telemetry.tracing import Attributes, server_attributes

OPERATION = "chat"
# A provider by its kind: what it speaks, though another server may speak it too.
_SYSTEMS: Mapping[Kind, str] = {"openai": "openai", "anthropic": "anthropic", "gemini": "gcp.gemini"}
# Characters of the JSON of messages that a span may have: longer ones are left out.
_LONGEST_CONTENT = 64 * 1024


def describe_request(
    request: Mapping[str, Any], *, kind: Kind, base_url: str, model: str, streamed: bool, latest: bool
) -> Attributes:
    """Return the attributes of a chat request that goes to a provider."""
    n = _count(request, "n")
    attributes: Attributes = {
        "gen_ai.operation.name": OPERATION,
        "gen_ai.system": _SYSTEMS[kind],
        "gen_ai.request.model": model,
        "gen_ai.request.max_tokens": _count(request, "max_completion_tokens") or _count(request, "max_tokens"),
        "gen_ai.request.temperature": _number(request, "temperature"),
        "gen_ai.request.top_p": _number(request, "top_p"),
        "gen_ai.request.top_k": _number(request, "top_k"),
        "gen_ai.request.frequency_penalty": _number(request, "frequency_penalty"),
        "gen_ai.request.presence_penalty": _number(request, "presence_penalty"),
        "gen_ai.request.seed": _count(request, "seed"),
        "gen_ai.request.choice.count": n if n != 1 else None,
        **server_attributes(base_url),
    }
    if latest:
        effort = request.get("reasoning_effort")
        attributes |= {
            "gen_ai.provider.name": _SYSTEMS[kind],
            "gen_ai.request.stream": streamed,
            "gen_ai.request.reasoning.level": effort if isinstance(effort, str) else None,
        }
    return attributes


def describe_answer(
    *,
    model: str | None,
    finish_reasons: Sequence[str],
    usage: TokenUsage | None,
    seconds_to_first: float | None,
    latest: bool,
) -> Attributes:
    """Return the attributes of what came back. Usage that the provider did not report is left out."""
    attributes: Attributes = {
        "gen_ai.response.model": model,
        "gen_ai.response.finish_reasons": list(finish_reasons) or None,
    }
    if usage is not None:
        attributes["gen_ai.usage.input_tokens"] = usage.prompt_tokens
        attributes["gen_ai.usage.output_tokens"] = usage.completion_tokens
    if latest:
        attributes["gen_ai.response.time_to_first_chunk"] = seconds_to_first
        if usage is not None:
            attributes["gen_ai.usage.cache_read.input_tokens"] = usage.cached_tokens or None
            attributes["gen_ai.usage.cache_write.input_tokens"] = usage.cache_write_tokens or None
            attributes["gen_ai.usage.reasoning.output_tokens"] = usage.reasoning_tokens or None
    return attributes


def describe_input(request: Mapping[str, Any]) -> Attributes:
    """Return the messages of a chat request, for operators who want content in their traces."""
    return {"gen_ai.input.messages": _render([_message(message) for message in request.get("messages") or ()])}


def describe_output(completion: Mapping[str, Any]) -> Attributes:
    """Return the messages of a chat completion, for operators who want content in their traces."""
    choices = completion.get("choices") or ()
    messages = [
        _message(choice.get("message") or {}) | {"finish_reason": choice.get("finish_reason")} for choice in choices
    ]
    return {"gen_ai.output.messages": _render(messages)}


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a chat message in the convention's form. Images and other media have their type alone."""
    role, content = message.get("role"), message.get("content")
    parts: list[dict[str, Any]] = [{"type": "text", "content": content}] if isinstance(content, str) else []
    if isinstance(content, list):
        parts = [
            {"type": "text", "content": part.get("text")} if part.get("type") == "text" else {"type": part.get("type")}
            for part in content
            if isinstance(part, dict)
        ]
    if role == "tool":
        parts = [{"type": "tool_call_response", "id": message.get("tool_call_id"), "response": content}]
    for call in message.get("tool_calls") or ():
        called = call.get("function") or {}
        parts.append(
            {
                "type": "tool_call",
                "id": call.get("id"),
                "name": called.get("name"),
                "arguments": called.get("arguments"),
            }
        )
    return {"role": role, "parts": parts}


def _render(messages: Sequence[dict[str, Any]]) -> str | None:
    rendered = orjson.dumps(messages)
    return rendered.decode() if len(rendered) <= _LONGEST_CONTENT else None


def _number(request: Mapping[str, Any], name: str) -> float | int | None:
    value = request.get(name)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _count(request: Mapping[str, Any], name: str) -> int | None:
    value = request.get(name)
    return value if type(value) is int and abs(value) < 2**63 else None
