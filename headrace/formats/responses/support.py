"""What becomes of each parameter of a Responses request on a route of each format.

`translate` does it. Where a parameter becomes one of a chat request, `headrace.formats.chat.support` goes on.
`python -m headrace.formats.responses.support` prints the table of docs/reference/parameters.md.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

from headrace.formats.chat.support import COLUMNS, HANDLINGS, Format, Handling, Treatment, render_rows

_Row = Mapping[Format, Handling]

_PASSED = Handling(Treatment.PASSED)


def _ours(note: str) -> _Row:
    return dict.fromkeys(COLUMNS, Handling(Treatment.OURS, note))


def _as_chats(name: str, *, renamed: bool = True, note: str = "") -> _Row:
    """Return the row of what is the parameter `name` of a chat request, and there goes the way of that one."""
    chat = Handling(Treatment.TRANSLATED, note or f"`{name}`") if renamed else _PASSED
    return {**{form: HANDLINGS[form][name] for form in COLUMNS}, "responses": _PASSED, "chat": chat}


def _same(name: str) -> _Row:
    return _as_chats(name, renamed=False)


def _elsewhere(treatment: Treatment, note: str) -> _Row:
    """Return the row of what a provider of the Responses API gets as it is."""
    return {**dict.fromkeys(COLUMNS, Handling(treatment, note)), "responses": _PASSED}


def _dropped(note: str) -> _Row:
    return _elsewhere(Treatment.DROPPED, note)


def _refused(note: str) -> _Row:
    return _elsewhere(Treatment.REFUSED, note)


def _translated(note: str) -> _Row:
    return _elsewhere(Treatment.TRANSLATED, note)


ROWS: Mapping[str, _Row] = {
    "model": _ours("the route's name for it"),
    "input": _as_chats("messages", note="`messages`; what the model says in one turn is one message"),
    "input[].content[].file_id": _refused("of an image: has none; of a file: as in a chat request"),
    "input[].content[].file_url": _refused("has none"),
    "input[].type: reasoning": _translated(
        "thoughts that Headrace sealed go back to the model, plain ones of a chat server to the same model alone; the"
        " others are dropped"
    ),
    "input[].type: item_reference": _ours("the item stands in its place"),
    "input[].type: a hosted tool's, compaction": _refused("has none"),
    "instructions": _translated("a system message before all others"),
    "previous_response_id": _ours("the response's input and output come before `input`"),
    "conversation": _ours("its items come before `input`; input and output are added to it"),
    "prompt": _refused("has none"),
    "temperature": _same("temperature"),
    "top_p": _same("top_p"),
    "presence_penalty": _same("presence_penalty"),
    "frequency_penalty": _same("frequency_penalty"),
    "max_output_tokens": _as_chats("max_completion_tokens"),
    "top_logprobs": _same("top_logprobs"),
    "include: message.output_text.logprobs": _as_chats("logprobs"),
    "include: reasoning.encrypted_content": _ours("thoughts that go back to the model are always sealed"),
    "include: message.input_image.image_url": _ours("`input_items` always has it"),
    "include: others": _dropped("concern hosted tools"),
    "tools[].type: function": _as_chats(
        "tools",
        note="nested; a name beyond 64 characters is shortened, and calls come back under the client's;"
        " `output_schema`, `defer_loading` and `allowed_callers` dropped",
    ),
    "tools[].type: custom": _translated(
        "a function with one string, `input`; a grammar becomes advice, and is named as dropped"
    ),
    "tools[].type: namespace": _translated(
        "functions called `namespace__name`; calls come back under the client's names"
    ),
    "tools[].type: others": _refused("hosted tools: the provider has to run them"),
    "tool_choice": _as_chats("tool_choice", note="nested; a hosted tool is refused"),
    "parallel_tool_calls": _same("parallel_tool_calls"),
    "max_tool_calls": _dropped("counts calls of hosted tools"),
    "text.format": _as_chats("response_format"),
    "text.verbosity": _as_chats("verbosity"),
    "reasoning.effort": _as_chats("reasoning_effort"),
    "reasoning.summary": _ours("thoughts that the provider tells become the summary"),
    "reasoning.generate_summary": _ours("as `reasoning.summary`"),
    "reasoning.context": _dropped("has none"),
    "reasoning.mode": _dropped("has none"),
    "truncation": _dropped("`auto`: has none; a prompt that is too long fails, or goes to `context_window_fallbacks`"),
    "context_management": _dropped("has none"),
    "moderation": _same("moderation"),
    "stream": _ours("jobs that a client may follow are streamed"),
    "stream_options": _ours("`include_obfuscation` is dropped"),
    "store": _ours("kept here, unless it is `false`; no provider keeps it"),
    "metadata": {**_ours("kept with the job"), "responses": _PASSED},
    "service_tier": _same("service_tier"),
    "background": _ours("the job runs on without its client"),
    "user": _same("user"),
    "safety_identifier": _same("safety_identifier"),
    "prompt_cache_key": _same("prompt_cache_key"),
    "prompt_cache_retention": _same("prompt_cache_retention"),
    "prompt_cache_options": _same("prompt_cache_options"),
    "thinking": _same("thinking"),
    "webhook": _ours("called when the job has ended"),
    "timeout": _ours("the job's deadline"),
    "fallbacks": _ours("the models to try next"),
    "strict_params": _ours("every drop is a 400"),
}
"""The parameters. What depends on a value or on the type of an object has a row of its own."""


def render_table() -> str:
    """Return all of it as a table in Markdown."""
    return render_rows((f"`{name}`", row) for name, row in ROWS.items())


if __name__ == "__main__":
    sys.stdout.write(render_table())
