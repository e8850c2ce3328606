"""What each wire format makes of each parameter of a chat request: passed, translated, dropped or refused.

A parameter that a format cannot express is dropped where the answer is as good without it, and the client is told its
name; where the client would get something else than it asked for, the request is refused. A value that asks for what
happens anyway (`n` of 1, `logprobs` of false) counts as not given.

`python -m headrace.formats.chat.support` prints the table of docs/reference/parameters.md.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any, Literal, NamedTuple

from headrace.errors import InvalidRequestError
from headrace.formats.chat.generations import (
    DEFAULTS,
    claude_always_thinks,
    claude_forces_tools,
    claude_sampling,
    claude_thinking,
    forces_tool,
    gemini_budget_range,
    gemini_mixes,
    gemini_penalises,
    gemini_version,
)
from headrace.formats.chat.request import EXTENSIONS, ChatRequest
from headrace.formats.json_document import shorten
from headrace.formats.tools import offered_tools

Kind = Literal["openai", "anthropic", "gemini"]
"""The kind of a provider, which is also the name of its format for operators."""

Format = Literal["chat", "responses", "messages", "gemini"]
"""A wire format."""

FORMAT_OF: Mapping[Kind, Format] = {"openai": "chat", "anthropic": "messages", "gemini": "gemini"}
"""The format that a provider of each kind speaks, unless a route says otherwise."""


LEAST_OUTPUT = 16
"""Tokens that the Responses API takes as a limit at least."""

# Strict tools that Anthropic takes in a request.
_MOST_STRICT = 20


class Treatment(StrEnum):
    """What becomes of a parameter."""

    PASSED = "passed"
    TRANSLATED = "translated"
    DROPPED = "dropped"
    REFUSED = "refused"
    OURS = "ours"
    """Headrace acts on it; the provider sees it only in the formats of OpenAI."""


class Handling(NamedTuple):
    """What becomes of a parameter, and how or why."""

    treatment: Treatment
    note: str = ""


def _passed(note: str = "") -> Handling:
    return Handling(Treatment.PASSED, note)


def _translated(note: str) -> Handling:
    return Handling(Treatment.TRANSLATED, note)


def _dropped(note: str) -> Handling:
    return Handling(Treatment.DROPPED, note)


def _refused(note: str) -> Handling:
    return Handling(Treatment.REFUSED, note)


_NO_SUCH = "has none"
_OURS = {
    "model": Handling(Treatment.OURS, "the route's name for it"),
    "stream": Handling(Treatment.OURS, "jobs that a client may follow are streamed"),
    "stream_options": Handling(Treatment.OURS, "usage is always asked for"),
    "store": Handling(Treatment.OURS, "kept, unless it is `false`"),
    "metadata": Handling(Treatment.OURS, "kept with the job"),
    "service_tier": Handling(Treatment.OURS, "chooses the queue"),
}
_CHAT = {name: _passed() for name in ChatRequest.model_fields if name not in EXTENSIONS} | {
    name: Handling(Treatment.PASSED, handling.note) for name, handling in _OURS.items()
}

_RESPONSES = _OURS | {
    "store": Handling(Treatment.OURS, "kept here, unless it is `false`; the provider is always told `false`"),
    "metadata": _passed("kept with the job"),
    "service_tier": _passed("chooses the queue"),
    "messages": _translated("items of `input`; names dropped; no spoken answers"),
    "temperature": _passed(),
    "top_p": _passed(),
    "n": _translated("as many calls, merged; their usage added up"),
    "stop": _refused(_NO_SUCH),
    "max_tokens": _translated("`max_output_tokens`"),
    "max_completion_tokens": _translated(
        "`max_output_tokens`, before the older name; below 16 it is 16, and named as dropped"
    ),
    "presence_penalty": _dropped(_NO_SUCH),
    "frequency_penalty": _dropped(_NO_SUCH),
    "logit_bias": _refused(_NO_SUCH),
    "logprobs": _translated("`include`"),
    "top_logprobs": _passed(),
    "seed": _dropped("has none, and OpenAI promises no more than its best effort"),
    "tools": _translated("flat"),
    "tool_choice": _translated("flat"),
    "parallel_tool_calls": _passed(),
    "functions": _refused("use `tools`"),
    "function_call": _refused("use `tool_choice`"),
    "response_format": _translated("`text.format`"),
    "reasoning_effort": _translated("`reasoning.effort`"),
    "verbosity": _translated("`text.verbosity`"),
    "modalities": _refused("answers in text"),
    "audio": _refused("answers in text"),
    "prediction": _dropped("has none, and it changes the speed alone"),
    "web_search_options": _translated("a `web_search` tool"),
    "moderation": _passed(),
    "user": _passed(),
    "safety_identifier": _passed(),
    "prompt_cache_key": _passed(),
    "prompt_cache_retention": _passed(),
    "prompt_cache_options": _passed(),
    "thinking": _dropped("Anthropic's own: use `reasoning_effort`"),
}

_MESSAGES = _OURS | {
    "messages": _translated("system and developer messages to `system`; names dropped; no audio, no file ids"),
    "temperature": _translated(
        "above 1 it is 1, and named as dropped; dropped where the model thinks, or since 4.7; 1 counts as not given"
    ),
    "top_p": _passed(
        "dropped beside a `temperature` since 4.0, where the model thinks, or since 4.7; 1 counts as not given"
    ),
    "n": _translated("as many calls, merged; their usage added up"),
    "stop": _translated("`stop_sequences`; white space alone is dropped"),
    "max_tokens": _translated("`max_tokens`; without it the model's output limit"),
    "max_completion_tokens": _translated("`max_tokens`, before the older name"),
    "presence_penalty": _dropped(_NO_SUCH),
    "frequency_penalty": _dropped(_NO_SUCH),
    "logit_bias": _refused(_NO_SUCH),
    "logprobs": _refused(_NO_SUCH),
    "top_logprobs": _refused(_NO_SUCH),
    "seed": _dropped("has none, and OpenAI promises no more than its best effort"),
    "tools": _translated(
        "functions to `tools`, schemas as they are; `strict` ones closed and without bounds, and `strict` dropped after"
        " 20 of them; custom tools refused"
    ),
    "tool_choice": _translated(
        "`tool_choice`; `required` is `any`; of `allowed_tools` only those are sent; a tool that has to be called is"
        " refused since Opus 5.5, Sonnet 5.5 and Fable 5.1"
    ),
    "parallel_tool_calls": _translated("`disable_parallel_tool_use`"),
    "functions": _refused("use `tools`"),
    "function_call": _refused("use `tool_choice`"),
    "response_format": _translated(
        "`json_schema` to `output_config.format`, closed and without bounds; `json_object` to an instruction"
    ),
    "reasoning_effort": _translated(
        "adaptive thinking and `output_config.effort` since 4.6, a budget before; dropped before 4.6 where a tool is"
        " forced, where the call before has no `thinking_blocks`, or with no more than 1,024 tokens; `none` is the"
        " least effort, and named as dropped, where a model always thinks, as Fable and Opus 5.5 do"
    ),
    "verbosity": _dropped(_NO_SUCH),
    "modalities": _refused("answers in text"),
    "audio": _refused("answers in text"),
    "prediction": _dropped("has none, and it changes the speed alone"),
    "web_search_options": _refused("a tool there"),
    "moderation": _refused(_NO_SUCH),
    "user": _translated("`metadata.user_id`"),
    "safety_identifier": _translated("`metadata.user_id`, before `user`"),
    "prompt_cache_key": _dropped("caches by `cache_control`"),
    "prompt_cache_retention": _dropped("caches by `cache_control`"),
    "prompt_cache_options": _dropped("caches by `cache_control`"),
    # Not OpenAI's, but Anthropic's own: clients send them through OpenAI's libraries as extra parameters.
    "top_k": _passed("Anthropic's own; as `top_p`"),
    "thinking": _passed("Anthropic's own; before `reasoning_effort`"),
    "cache_control": _passed("Anthropic's own; in messages, parts and tools too"),
}

_GEMINI = _OURS | {
    "messages": _translated("system and developer messages to `systemInstruction`; names dropped; no file ids"),
    "temperature": _passed(),
    "top_p": _passed("`topP`"),
    "n": _passed("`candidateCount`"),
    "stop": _passed("`stopSequences`"),
    "max_tokens": _passed("`maxOutputTokens`"),
    "max_completion_tokens": _passed("`maxOutputTokens`, before the older name"),
    "presence_penalty": _passed("`presencePenalty`; dropped since 2.5"),
    "frequency_penalty": _passed("`frequencyPenalty`; dropped since 2.5"),
    "logit_bias": _refused(_NO_SUCH),
    "logprobs": _passed("`responseLogprobs`"),
    "top_logprobs": _passed("`logprobs`"),
    "seed": _passed(),
    "tools": _translated("`functionDeclarations`, schemas as they are; custom tools refused"),
    "tool_choice": _translated("`functionCallingConfig`; of `allowed_tools` only those are sent"),
    "parallel_tool_calls": _dropped("the model calls as many as it likes"),
    "functions": _refused("use `tools`"),
    "function_call": _refused("use `tool_choice`"),
    "response_format": _translated(
        "`responseMimeType` and `responseJsonSchema`; before Gemini 3 JSON is refused beside tools"
    ),
    "reasoning_effort": _translated(
        "`thinkingLevel` since Gemini 3, `thinkingBudget` in 2.5; dropped before; `none` is 128 tokens, and named as"
        " dropped, in 2.5 Pro"
    ),
    "verbosity": _dropped(_NO_SUCH),
    "modalities": _refused("answers in text"),
    "audio": _refused("answers in text"),
    "prediction": _dropped("has none, and it changes the speed alone"),
    "web_search_options": _refused("a tool there"),
    "moderation": _refused("use `safety_settings`"),
    "user": _dropped(_NO_SUCH),
    "safety_identifier": _dropped(_NO_SUCH),
    "prompt_cache_key": _dropped("caches by itself"),
    "prompt_cache_retention": _dropped("caches by itself"),
    "prompt_cache_options": _dropped("caches by itself"),
    "thinking": _dropped("Anthropic's own: use `reasoning_effort`"),
    "top_k": _passed("Gemini's own; `topK`"),
    "safety_settings": _passed("Gemini's own; `safetySettings`"),
}

HANDLINGS: Mapping[Format, Mapping[str, Handling]] = {
    "chat": _CHAT,
    "responses": _RESPONSES,
    "messages": _MESSAGES,
    "gemini": _GEMINI,
}
"""Every parameter of the request. One that is not here is newer than us: chat passes it, the others drop it."""

# The formats that have tools which take text, and those that have files which were uploaded before.
_CUSTOM_TOOLS = _FILE_IDS = frozenset[Format]({"chat", "responses"})

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
    if form not in _CUSTOM_TOOLS:
        for index, tool in enumerate(request.get("tools") or ()):
            if tool["type"] != "function":
                raise unsupported_parameter(f"tools[{index}]", form)
        choice = request.get("tool_choice")
        if isinstance(choice, Mapping) and choice["type"] == "custom":
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
    """Tell whether a request asks for JSON in place of text."""
    return (request.get("response_format") or {}).get("type") in ("json_object", "json_schema")


def loose_tools(request: Mapping[str, Any]) -> Sequence[str]:
    """Return the names of the strict tools beyond those that Anthropic takes."""
    tools, _ = offered_tools(request)
    return [tool["function"]["name"] for tool in tools if tool["function"].get("strict")][_MOST_STRICT:]


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
        if part["type"] == "input_audio" and form == "messages":
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
    """Tell whether a model of Anthropic's thinks otherwise than the request's effort says."""
    effort, own = request.get("reasoning_effort"), request.get("thinking") is not None
    if effort == "none":
        return claude_always_thinks(model) and not own
    return effort is not None and (own or claude_thinking(model, request) is None)


def _dropped_by_gemini(model: str, request: Mapping[str, Any]) -> Iterator[str]:
    effort, version = request.get("reasoning_effort"), gemini_version(model)
    too_old = effort not in (None, "none") and version < (2, 5)
    if too_old or (effort == "none" and (2, 5) <= version < (3, 0) and gemini_budget_range(model)[0]):
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


def _refused_by_gemini(model: str, request: Mapping[str, Any]) -> None:
    tools, choice = offered_tools(request)
    if tools and choice != "none" and asks_for_json(request) and not gemini_mixes(model):
        raise unsupported_parameter("response_format", "gemini", reason="it answers in JSON only without tools")


_REFUSED_BY: Mapping[Format, Callable[[str, Mapping[str, Any]], None]] = {
    "messages": _refused_by_messages,
    "gemini": _refused_by_gemini,
}

# ---------------------------------------------------------------------------------------------------------------------
# The table

COLUMNS: Mapping[Format, str] = {
    "chat": "openai",
    "responses": 'openai, `format = "responses"`',
    "messages": "anthropic",
    "gemini": "gemini",
}
"""The titles of the formats' columns."""


def render_table() -> str:
    """Return all of it as a table in Markdown."""
    names = list(dict.fromkeys(name for handlings in HANDLINGS.values() for name in handlings))
    unknown = {form: _passed() if form == "chat" else _dropped("") for form in COLUMNS}
    return render_rows(
        (f"`{name}`", {form: HANDLINGS[form].get(name, unknown[form]) for form in COLUMNS}) for name in names
    )


def render_rows(rows: Iterable[tuple[str, Mapping[Format, Handling]]]) -> str:
    """Return a table in Markdown. A row has a title, and what each format makes of it."""
    lines = ["| parameter | " + " | ".join(COLUMNS.values()) + " |", "| --- |" + " --- |" * len(COLUMNS)]
    for title, handlings in rows:
        lines.append(f"| {title} | " + " | ".join(_cell(handlings[form]) for form in COLUMNS) + " |")
    return "\n".join(lines) + "\n"


def _cell(handling: Handling) -> str:
    return f"**{handling.treatment}**" + (f": {handling.note}" if handling.note else "")


if __name__ == "__main__":
    sys.stdout.write(render_table())
