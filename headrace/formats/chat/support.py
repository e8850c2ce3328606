"""What each wire format makes of each parameter of a chat request: passed, translated, dropped or refused.

A parameter that a format cannot express is dropped where the answer is as good without it, and the client is told its
name; where the client would get something else than it asked for, the request is refused. A value that asks for what
happens anyway (`n` of 1, `logprobs` of false) counts as not given.

`python -m headrace.formats.chat.support` prints the table of docs/reference/parameters.md.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Literal, NamedTuple

from headrace.formats.chat.request import EXTENSIONS, ChatRequest

Kind = Literal["openai", "anthropic", "gemini"]
"""The kind of a provider, which is also the name of its format for operators."""

Format = Literal["chat", "responses", "messages", "gemini"]
"""A wire format."""

LimitParameter = Literal["max_tokens", "max_completion_tokens"]
"""The names of a chat request's limit of tokens."""

FORMAT_OF: Mapping[Kind, Format] = {"openai": "chat", "anthropic": "messages", "gemini": "gemini"}
"""The format that a provider of each kind speaks, unless a route says otherwise."""


LEAST_OUTPUT = 16
"""Tokens that the Responses API takes as a limit at least."""


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
_RENAMED = _passed("under the name that the provider's `limit_parameter` says")
_CHAT = (
    {name: _passed() for name in ChatRequest.model_fields if name not in EXTENSIONS}
    | {name: Handling(Treatment.PASSED, handling.note) for name, handling in _OURS.items()}
    | {"max_tokens": _RENAMED, "max_completion_tokens": _RENAMED}
)

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
        "functions to `tools`, schemas as they are; `strict` ones closed, without bounds and with `anyOf` for `oneOf`;"
        " `strict` dropped after 20 of them, and where an object may have any names; custom tools refused"
    ),
    "tool_choice": _translated(
        "`tool_choice`; `required` is `any`; of `allowed_tools` only those are sent; a tool that has to be called is"
        " refused since Opus 5.5, Sonnet 5.5 and Fable 5.1"
    ),
    "parallel_tool_calls": _translated("`disable_parallel_tool_use`"),
    "functions": _refused("use `tools`"),
    "function_call": _refused("use `tool_choice`"),
    "response_format": _translated(
        "`json_schema` to `output_config.format`, closed, without bounds and with `anyOf` for `oneOf`; refused where an"
        " object may have any names; `json_object`, or no schema, to an instruction"
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
        "`thinkingLevel` since Gemini 3, `thinkingBudget` in 2.5; dropped before; `none` and `minimal` are the level"
        " `minimal` of Flash models, else `low`; `none` is named as dropped where a model always thinks: since 3 all"
        " but Flash models, and 2.5 Pro, where it is 128 tokens"
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
