"""What a request loses on a route: parameters that are dropped or changed, and refusals.

The rules of `support` are those of formats; these are also of models' generations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from headrace.errors import InvalidRequestError, shorten
from headrace.formats.chat.generations import (
    DEFAULTS,
    EFFORTS,
    GEMINI_THINKS_SINCE,
    claude_always_thinks,
    claude_forces_tools,
    claude_sampling,
    claude_thinking,
    forces_tool,
    gemini_always_thinks,
    gemini_mixes,
    gemini_penalises,
    gemini_version,
)
from headrace.formats.chat.request import EXTENSIONS
from headrace.formats.chat.support import HANDLINGS, LEAST_OUTPUT, Format, Treatment
from headrace.formats.closed_schema import holds_map
from headrace.formats.tools import CHOICES, offered_tools

# Strict tools that Anthropic takes in a request.
_MOST_STRICT = 20
# The formats that have tools which take text, and those that have files which were uploaded before.
_CUSTOM_TOOLS = _FILE_IDS = frozenset[Format]({"chat", "responses"})
# The types of tools, and of parts of what a user says, that are OpenAI's. Others are a chat server's own.
_TOOLS = frozenset({"function", "custom"})
_SHOWN = frozenset({"text", "image_url", "input_audio", "file"})

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


def dropped_parameters(form: Format, model: str, request: Mapping[str, Any]) -> list[str]:
    """Return the names of what a format drops of a request, which is one that `parse_chat_request` took.

    `model` is the provider's name for it: what is dropped depends on its generation.

    Raises:
        InvalidRequestError: It asks for something that the format cannot give; the error names the parameter.
    """
    if form == "chat":
        return []
    dropped = []
    handlings = HANDLINGS[form]
    for name, value in request.items():
        if value is None or name in EXTENSIONS or value in _NOTHING.get(name, ()):
            continue
        if name == "parallel_tool_calls" and not request.get("tools"):
            continue
        treatment = handlings[name].treatment if name in handlings else Treatment.DROPPED
        if treatment is Treatment.REFUSED:
            raise unsupported_parameter(name, form)
        if treatment is Treatment.DROPPED:
            dropped.append(name)
    choice = request.get("tool_choice")
    if isinstance(choice, str) and choice not in CHOICES:
        raise unsupported_parameter("tool_choice", form)
    tools = _TOOLS if form in _CUSTOM_TOOLS else {"function"}
    for index, tool in enumerate(request.get("tools") or ()):
        if tool["type"] not in tools:
            raise unsupported_parameter(f"tools[{index}]", form)
    if isinstance(choice, Mapping) and choice["type"] == "custom" and form not in _CUSTOM_TOOLS:
        raise unsupported_parameter("tool_choice", form)
    if (refused := _REFUSED_BY.get(form)) is not None:
        refused(model, request)
    dropped += _DROPPED_BY[form](model, request)
    for index, message in enumerate(request["messages"]):
        for name in _unsupported_content(form, message):
            raise unsupported_parameter(f"messages[{index}].{name}", form)
        if message.get("name") is not None:
            dropped.append(f"messages[{index}].name")
    return dropped


def unsupported_parameter(
    param: str, form: Format, *, kind: str | None = None, reason: str | None = None
) -> InvalidRequestError:
    """Return the error for a parameter that a format has nothing for, or that a model cannot honour.

    `kind` is the type of what is there, `reason` why the model cannot.
    """
    named = f"'{param}'" if kind is None else f"'{param}' ({shorten(kind)})"
    reason = reason or f"its provider's format, {form}, has no counterpart"
    return InvalidRequestError(
        f"{named} is not supported by this model: {reason}.",
        param=param,
        code="unsupported_parameter",
    )


def asks_for_json(request: Mapping[str, Any]) -> bool:
    """Return whether a request asks for JSON in place of text."""
    return (request.get("response_format") or {}).get("type") in ("json_object", "json_schema")


def loose_tools(request: Mapping[str, Any]) -> Sequence[str]:
    """Return the names of the strict tools that Anthropic does not take as such: those with maps, and too many."""
    tools, _ = offered_tools(request)
    strict = [tool["function"] for tool in tools if tool["function"].get("strict")]
    maps = [function["name"] for function in strict if holds_map(function.get("parameters"))]
    return [*maps, *[function["name"] for function in strict if function["name"] not in maps][_MOST_STRICT:]]


def _unsupported_content(form: Format, message: Mapping[str, Any]) -> Iterator[str]:
    """Yield the paths, within a message, of what a format has nothing for."""
    if message["role"] == "function":
        yield "role"
    for name in ("audio", "function_call"):
        if message.get(name) is not None:
            yield name
    for index, call in enumerate(message.get("tool_calls") or ()):
        if call["type"] != "function" and form not in _CUSTOM_TOOLS:
            yield f"tool_calls[{index}]"
    parts = message.get("content")
    for index, part in enumerate(parts if isinstance(parts, list) else ()):
        unknown = message["role"] == "user" and part["type"] not in _SHOWN
        if unknown or (part["type"] == "input_audio" and form == "messages"):
            yield f"content[{index}]"
        if part["type"] == "file" and not part["file"].get("file_data") and form not in _FILE_IDS:
            yield f"content[{index}].file.file_id"


def _dropped_by_messages(model: str, request: Mapping[str, Any]) -> Iterator[str]:
    sampling = claude_sampling(model, request)
    for name in ("temperature", "top_p", "top_k"):
        if request.get(name) not in (None, sampling.get(name, DEFAULTS.get(name))):
            yield name
    if _loses_its_effort(model, request):
        yield "reasoning_effort"
    loose = loose_tools(request)
    for index, tool in enumerate(request.get("tools") or ()):
        if tool["function"]["name"] in loose:
            yield f"tools[{index}].function.strict"
    stop = request.get("stop") or []
    if any(not text.strip() for text in ([stop] if isinstance(stop, str) else stop)):
        yield "stop"


def _loses_its_effort(model: str, request: Mapping[str, Any]) -> bool:
    """Return whether a model of Anthropic's thinks otherwise than the request's effort says."""
    effort, own = request.get("reasoning_effort"), request.get("thinking") is not None
    if effort == "none":
        return claude_always_thinks(model) and not own
    return effort is not None and (own or claude_thinking(model, request) is None)


def _dropped_by_gemini(model: str, request: Mapping[str, Any]) -> Iterator[str]:
    effort = request.get("reasoning_effort")
    too_old = effort not in (None, "none") and gemini_version(model) < GEMINI_THINKS_SINCE
    unknown = effort is not None and effort not in EFFORTS
    if unknown or too_old or (effort == "none" and gemini_always_thinks(model)):
        yield "reasoning_effort"
    for name in () if gemini_penalises(model) else ("presence_penalty", "frequency_penalty"):
        if request.get(name):
            yield name


def _dropped_by_responses(_: str, request: Mapping[str, Any]) -> Iterator[str]:
    name = "max_completion_tokens" if request.get("max_completion_tokens") is not None else "max_tokens"
    most = request.get(name)
    if most is not None and most < LEAST_OUTPUT:
        yield name


_DROPPED_BY: Mapping[Format, Callable[[str, Mapping[str, Any]], Iterator[str]]] = {
    "responses": _dropped_by_responses,
    "messages": _dropped_by_messages,
    "gemini": _dropped_by_gemini,
}


def _refused_by_messages(model: str, request: Mapping[str, Any]) -> None:
    if forces_tool(request) and not claude_forces_tools(model):
        raise unsupported_parameter("tool_choice", "messages", reason="it cannot be made to call a tool")
    form = request.get("response_format") or {}
    if form.get("type") == "json_schema" and holds_map(form["json_schema"].get("schema")):
        raise unsupported_parameter(
            "response_format", "messages", reason="every object of a schema has to name its properties"
        )


def _refused_by_gemini(model: str, request: Mapping[str, Any]) -> None:
    tools, choice = offered_tools(request)
    if tools and choice != "none" and asks_for_json(request) and not gemini_mixes(model):
        raise unsupported_parameter("response_format", "gemini", reason="it answers in JSON only without tools")


_REFUSED_BY: Mapping[Format, Callable[[str, Mapping[str, Any]], None]] = {
    "messages": _refused_by_messages,
    "gemini": _refused_by_gemini,
}
