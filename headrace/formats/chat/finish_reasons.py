"""Why a choice ended: OpenAI's five words, and what other servers say for them."""

from __future__ import annotations

from typing import Any

from headrace.errors import UpstreamError, shorten

FINISH_REASONS = frozenset({"stop", "length", "tool_calls", "content_filter", "function_call"})

_WORDS = {
    "stop": "complete completed done end end_of_text end_of_turn end_turn endoftext eos eos_found eos_token finish"
    " finished stop_sequence stop_str stop_token",
    "length": "context_length context_length_exceeded length_capped length_limit limit max_completion_tokens max_length"
    " max_new_tokens max_output_tokens max_tokens model_context_window_exceeded model_length repetition"
    " repetition_truncation token_limit",
    "content_filter": "blocklist content_filtered content_policy content_policy_violation guardrail_intervened"
    " prohibited_content recitation refusal safety sensitive spii",
    "tool_calls": "function_calls tool_call tool_use tooluse toolcall toolcalls",
}
_SYNONYMS = {word: ours for ours, words in _WORDS.items() for word in words.split()}
# What stands for null while a choice goes on.
_NOT_YET = frozenset({"", "null", "none"})


def exact_reason(reason: Any) -> str | None:
    """Return OpenAI's word for a finish reason, or None where none is given yet.

    Raises:
        UpstreamError: The word is not known to mean that the answer is whole.
    """
    if not reason:
        return None
    if isinstance(reason, str):
        if reason in FINISH_REASONS:
            return reason
        word = reason.strip(" <|>").lower().replace("-", "_").removeprefix("finish_reason_")
        if word in _NOT_YET:
            return None
        ours = word if word in FINISH_REASONS else _SYNONYMS.get(word)
        if ours is not None:
            return ours
    raise UpstreamError(f"The model's provider ended its answer with the reason {shorten(str(reason))!r}.")
