"""What each wire format makes of each of OpenAI's parameters: passed, translated, dropped or refused.

A parameter that a format cannot express is dropped where the answer is as good without it, and the client is told its
name; where the client would get something else than it asked for, the request is refused. A value that asks for what
happens anyway (`n` of 1, `logprobs` of false) counts as not given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any, Literal

from headrace.chat.request import EXTENSIONS, ChatRequest
from headrace.errors import InvalidRequestError

Kind = Literal["openai", "anthropic", "gemini"]
"""A wire format."""


class Treatment(StrEnum):
    """What becomes of a parameter."""

    PASSED = "passed"
    """Under the name that the format has for it, with the same value."""
    TRANSLATED = "translated"
    DROPPED = "dropped"
    REFUSED = "refused"
    OURS = "ours"
    """Headrace acts on it; the provider sees it only in OpenAI's format."""


_OURS = dict.fromkeys(("model", "stream", "stream_options", "store", "metadata", "service_tier"), Treatment.OURS)
_OPENAI = {name: Treatment.PASSED for name in ChatRequest.model_fields if name not in EXTENSIONS}

_ANTHROPIC = _OURS | {
    "messages": Treatment.TRANSLATED,
    "temperature": Treatment.TRANSLATED,
    "top_p": Treatment.PASSED,
    "n": Treatment.TRANSLATED,
    "stop": Treatment.TRANSLATED,
    "max_tokens": Treatment.TRANSLATED,
    "max_completion_tokens": Treatment.TRANSLATED,
    "presence_penalty": Treatment.DROPPED,
    "frequency_penalty": Treatment.DROPPED,
    "logit_bias": Treatment.REFUSED,
    "logprobs": Treatment.REFUSED,
    "top_logprobs": Treatment.REFUSED,
    "seed": Treatment.DROPPED,
    "tools": Treatment.TRANSLATED,
    "tool_choice": Treatment.TRANSLATED,
    "parallel_tool_calls": Treatment.TRANSLATED,
    "functions": Treatment.REFUSED,
    "function_call": Treatment.REFUSED,
    "response_format": Treatment.TRANSLATED,
    "reasoning_effort": Treatment.TRANSLATED,
    "verbosity": Treatment.DROPPED,
    "modalities": Treatment.REFUSED,
    "audio": Treatment.REFUSED,
    "prediction": Treatment.DROPPED,
    "web_search_options": Treatment.REFUSED,
    "moderation": Treatment.REFUSED,
    "user": Treatment.TRANSLATED,
    "safety_identifier": Treatment.TRANSLATED,
    "prompt_cache_key": Treatment.DROPPED,
    "prompt_cache_retention": Treatment.DROPPED,
    "prompt_cache_options": Treatment.DROPPED,
    # Not OpenAI's, but Anthropic's own: clients send them through OpenAI's libraries as extra parameters.
    "top_k": Treatment.PASSED,
    "thinking": Treatment.PASSED,
    "cache_control": Treatment.PASSED,
}

_GEMINI = _OURS | {
    "messages": Treatment.TRANSLATED,
    "temperature": Treatment.PASSED,
    "top_p": Treatment.PASSED,
    "n": Treatment.PASSED,
    "stop": Treatment.TRANSLATED,
    "max_tokens": Treatment.PASSED,
    "max_completion_tokens": Treatment.PASSED,
    "presence_penalty": Treatment.PASSED,
    "frequency_penalty": Treatment.PASSED,
    "logit_bias": Treatment.REFUSED,
    "logprobs": Treatment.PASSED,
    "top_logprobs": Treatment.PASSED,
    "seed": Treatment.PASSED,
    "tools": Treatment.TRANSLATED,
    "tool_choice": Treatment.TRANSLATED,
    "parallel_tool_calls": Treatment.REFUSED,
    "functions": Treatment.REFUSED,
    "function_call": Treatment.REFUSED,
    "response_format": Treatment.TRANSLATED,
    "reasoning_effort": Treatment.TRANSLATED,
    "verbosity": Treatment.DROPPED,
    "modalities": Treatment.REFUSED,
    "audio": Treatment.REFUSED,
    "prediction": Treatment.DROPPED,
    "web_search_options": Treatment.REFUSED,
    "moderation": Treatment.REFUSED,
    "user": Treatment.DROPPED,
    "safety_identifier": Treatment.DROPPED,
    "prompt_cache_key": Treatment.DROPPED,
    "prompt_cache_retention": Treatment.DROPPED,
    "prompt_cache_options": Treatment.DROPPED,
    "top_k": Treatment.PASSED,
    "safety_settings": Treatment.PASSED,
}

TREATMENTS: Mapping[Kind, Mapping[str, Treatment]] = {"openai": _OPENAI, "anthropic": _ANTHROPIC, "gemini": _GEMINI}
"""Every parameter of the request. One that is not here is newer than us: OpenAI's format passes it, others drop it."""

# Values that ask for what happens anyway.
_NOTHING: Mapping[str, Sequence[Any]] = {
    "n": (1,),
    "logprobs": (False,),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "modalities": (["text"], []),
    "parallel_tool_calls": (True,),
}


def dropped_parameters(kind: Kind, request: Mapping[str, Any]) -> list[str]:
    """Return the names of what a format drops of a request, which is one that `parse_chat_request` took.

    Raises:
        InvalidRequestError: It asks for something that the format cannot give; the error names the parameter.
    """
    if kind == "openai":
        return []
    dropped = []
    treatments = TREATMENTS[kind]
    for name, value in request.items():
        if value is None or name in EXTENSIONS or value in _NOTHING.get(name, ()):
            continue
        treatment = treatments.get(name, Treatment.DROPPED)
        if treatment is Treatment.REFUSED:
            raise unsupported_parameter(name, kind)
        if treatment is Treatment.DROPPED:
            dropped.append(name)
    if kind == "anthropic" and (request.get("temperature") or 0) > 1:
        dropped.append("temperature")  # cut to 1, the most there is
    for name in _unsupported_tools(request):
        raise unsupported_parameter(name, kind)
    for index, message in enumerate(request["messages"]):
        for name in _unsupported_content(kind, message):
            raise unsupported_parameter(f"messages[{index}].{name}", kind)
        if message.get("name") is not None:
            dropped.append(f"messages[{index}].name")
    return dropped


def unsupported_parameter(param: str, kind: Kind) -> InvalidRequestError:
    """Return the error for a parameter that a format has nothing for."""
    return InvalidRequestError(
        f"'{param}' cannot be honoured by this model: its provider's {kind} format has nothing for it.",
        param=param,
        code="unsupported_parameter",
    )


def _unsupported_tools(request: Mapping[str, Any]) -> Iterator[str]:
    for index, tool in enumerate(request.get("tools") or ()):
        if tool["type"] != "function":
            yield f"tools[{index}]"


def _unsupported_content(kind: Kind, message: Mapping[str, Any]) -> Iterator[str]:
    """Yield the paths, within a message, of what a format has nothing for."""
    if message["role"] == "function":
        yield "role"
    for name in ("audio", "function_call"):
        if message.get(name) is not None:
            yield name
    for index, call in enumerate(message.get("tool_calls") or ()):
        if call["type"] != "function":
            yield f"tool_calls[{index}]"
    parts = message.get("content")
    for index, part in enumerate(parts if isinstance(parts, list) else ()):
        if part["type"] == "input_audio" and kind == "anthropic":
            yield f"content[{index}]"
        if part["type"] == "file" and not part["file"].get("file_data"):
            yield f"content[{index}].file.file_id"
