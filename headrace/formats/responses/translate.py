"""The chat request that a request of the Responses API means.

`previous_response_id` and `conversation` are no parts of it: by then the API has put the items of the earlier responses
before those of `input`, and their number beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headrace.errors import InvalidRequestError
from headrace.formats.responses.context import COMPACTS, OUR_KEYS
from headrace.formats.responses.offered import Json, render_choice, render_tools
from headrace.formats.responses.options import ENCRYPTED, LOGPROBS
from headrace.formats.responses.turns import Turns
from headrace.formats.translation import Translation

# The parameters that a chat request has under the same names. The last ones are those of other formats.
_SAME = frozenset({
    "model", "temperature", "top_p", "presence_penalty", "frequency_penalty", "moderation", "stream", "user",
    "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "prompt_cache_options", "background",
    "webhook", "timeout", "fallbacks", "strict_params", "thinking", "top_k", "cache_control", "safety_settings",
})  # fmt: skip
# The parameters that Headrace acts on alone, or that `translate` reads by themselves.
_READ = frozenset({
    "input", "instructions", "previous_response_id", "conversation", "store", "metadata", "prompt", *OUR_KEYS,
})  # fmt: skip
# Those that a chat request has in another form.
_OPTIONS = frozenset({
    "tools", "tool_choice", "parallel_tool_calls", "text", "reasoning", "include", "top_logprobs", "max_output_tokens",
    "service_tier", "truncation", "stream_options",
})  # fmt: skip
# The values of `include` that every answer of Headrace's honours.
_ALWAYS_INCLUDED = frozenset({LOGPROBS, ENCRYPTED, "message.input_image.image_url"})

NAMES: Mapping[str, str] = {
    "messages": "input",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "verbosity": "text.verbosity",
    "reasoning_effort": "reasoning.effort",
    "logprobs": "include",
}
"""The names of a Responses request for what a chat request calls otherwise."""

WITHIN: Mapping[str, str] = {
    ".image_url.url": ".image_url",
    ".file.file_": ".file_",
    ".tool_call_id": ".call_id",
}
"""The same, of what is inside of a message."""


def translate(document: dict[str, Any]) -> Translation:
    """Return the chat request that a checked request means, whose context is in its `input`.

    Raises:
        InvalidRequestError: There is no message; a call has no output, an output no call, or two calls the same id.
    """
    turns = Turns(document)
    if document.get("instructions"):
        turns.instruct(document["instructions"])
    if document.get("input") is not None:
        turns.take(document["input"])
    chat: Json = {"messages": turns.messages}
    own, dropped, options = turns.own, turns.dropped, False
    for name, value in document.items():
        if value is None or name in _READ:
            continue
        if name in _SAME:
            chat[name] = value
        elif name in _OPTIONS:
            options = True
        else:
            dropped.append(name)
    if document.get("prompt") is not None:
        own["prompt"] = "a stored prompt"
    if document.get(COMPACTS):
        own[COMPACTS] = "compaction"
    if not (turns.messages or own):
        raise InvalidRequestError("Invalid 'input': there is no message in it.", param="input", code="empty_array")
    if options:
        _add_tools(chat, document, own, dropped)
        _add_options(chat, document, dropped)
    return Translation(chat, own, dropped, NAMES, turns.paths, WITHIN)


def _add_tools(chat: Json, document: Json, own: dict[str, str], dropped: list[str]) -> None:
    if document.get("tools"):
        chat["tools"], hosted, left_out = render_tools(document["tools"])
        own |= hosted
        dropped += left_out
    choice, parallel = document.get("tool_choice"), document.get("parallel_tool_calls")
    made = None if choice is None else render_choice(choice)
    if choice is not None and made is None:
        own["tool_choice"] = choice["type"]
    if not chat.get("tools"):
        return  # a chat server refuses what a request without tools says of them
    if made is not None:
        chat["tool_choice"] = made
    if parallel is not None:
        chat["parallel_tool_calls"] = parallel


def _add_options(chat: Json, document: Json, dropped: list[str]) -> None:
    if (most := document.get("max_output_tokens")) is not None:
        chat["max_completion_tokens"] = most
    if text := document.get("text"):
        _add_text(chat, text)
    if reasoning := document.get("reasoning"):
        if reasoning.get("effort") is not None:
            chat["reasoning_effort"] = reasoning["effort"]
        dropped += [f"reasoning.{name}" for name in ("context", "mode") if reasoning.get(name) is not None]
    if include := document.get("include"):
        dropped += [f"include[{at}]" for at, value in enumerate(include) if value not in _ALWAYS_INCLUDED]
        if LOGPROBS in include:
            chat["logprobs"] = True
            if document.get("top_logprobs") is not None:
                chat["top_logprobs"] = document["top_logprobs"]
    if (tier := document.get("service_tier")) is not None:
        if tier == "ultrafast":
            dropped.append("service_tier")
        else:
            chat["service_tier"] = tier
    if document.get("truncation") == "auto":
        dropped.append("truncation")
    if (document.get("stream_options") or {}).get("include_obfuscation"):
        dropped.append("stream_options.include_obfuscation")


def _add_text(chat: Json, text: Json) -> None:
    if text.get("verbosity") is not None:
        chat["verbosity"] = text["verbosity"]
    form = text.get("format")
    if form is None or form["type"] == "text":
        return
    if form["type"] == "json_object":
        chat["response_format"] = {"type": "json_object"}
        return
    names = ("name", "description", "schema", "strict")
    schema = {name: form[name] for name in names if form.get(name) is not None}
    chat["response_format"] = {"type": "json_schema", "json_schema": schema}
