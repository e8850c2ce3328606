"""Tokens: OpenAI's usage object read, written, and estimated where a provider gives none."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

__all__ = [
    "TokenUsage",
    "estimate_demand",
    "estimate_usage",
    "exact_usage",
    "longest_answer",
    "no_smaller",
    "parse_usage",
    "render_usage",
]

# No call has this many tokens, so a count beyond it is garbage; and the sum of two still fits Postgres's integer.
_MOST_TOKENS = 1_000_000_000
_DIGITS = re.compile(r"[0-9]{1,10}")  # of a count that came as a string

# Fields of a usage object that has counts alone, as most have.
_PLAIN = frozenset({"prompt_tokens", "completion_tokens", "total_tokens"})
# Where other servers put what was read from a cache, beside the details.
_CACHED = ("prompt_cache_hit_tokens", "cached_tokens", "cache_read_input_tokens")

# For the estimate. In English a token is about four bytes of UTF-8; in other scripts bytes are nearer than characters.
_BYTES_PER_TOKEN = 4
_TOKENS_PER_MESSAGE = 4  # its role and delimiters
_TOKENS_PER_REPLY = 3  # the delimiters that prompt the model to answer
_USUAL_ANSWER = 4096  # few answers without a limit are longer
_TOKENS_PER_MEDIUM = 765  # what OpenAI charges for an image of 1024 x 1024 at high detail
_BYTES_PER_TOKEN_OF = {"file": 50, "input_audio": 250}  # of a part's base64: documents with text and pictures, speech

# What limits an answer's tokens, under OpenAI's names and those that some chat servers have.
_LIMITS = ("max_completion_tokens", "max_tokens")
_OTHER_LIMITS = ("max_new_tokens", "max_output_tokens")
# Fields of a message that its estimate counts as a few tokens for each message.
_COUNTED_BY_MESSAGE = frozenset({"role", "content", "tool_call_id"})


@dataclass(slots=True)
class TokenUsage:
    """What one completion used, in tokens. Each answer makes some, so it is not frozen, which would take twice as long.

    `cached_tokens`, read from the provider's cache, and `cache_write_tokens`, written to it, are part of the prompt's,
    and `reasoning_tokens` part of the completion's; recordings are part of either. `estimated` means that the provider
    gave no counts and these are ours.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    estimated: bool = False
    cache_write_tokens: int = 0
    prompt_audio_tokens: int = 0
    completion_audio_tokens: int = 0

    def __add__(self, other: TokenUsage) -> TokenUsage:
        """Return what both used; estimated if either is."""
        return TokenUsage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cached_tokens + other.cached_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
            self.estimated or other.estimated,
            self.cache_write_tokens + other.cache_write_tokens,
            self.prompt_audio_tokens + other.prompt_audio_tokens,
            self.completion_audio_tokens + other.completion_audio_tokens,
        )

    @property
    def total_tokens(self) -> int:
        """All tokens, as OpenAI adds them up: cached and reasoning tokens are counted once."""
        return self.prompt_tokens + self.completion_tokens


def parse_usage(usage: object) -> TokenUsage | None:
    """Return OpenAI's usage object `usage` as TokenUsage, or None where it gives no counts that can be believed.

    A count that is left out is 0, OpenAI's default. Details that make no sense are taken for 0; those that exceed the
    whole they are part of are cut to it. docs/how-to/add-a-provider.md has a table of what is
    read besides OpenAI's own fields.
    """
    if type(usage) is not dict and not isinstance(usage, Mapping):
        return None
    if not ("prompt_tokens" in usage or "completion_tokens" in usage):
        if not ("input_tokens" in usage or "output_tokens" in usage):
            return None
        usage = _renamed(usage)
    total = _parse_count(usage.get("total_tokens")) or 0
    prompt = _parse_count(usage.get("prompt_tokens", 0))
    completion = _parse_count(usage.get("completion_tokens", 0))
    if total and completion is not None and usage.get("prompt_tokens", 0) is None:
        prompt = max(0, total - completion)
    elif total and prompt is not None and usage.get("completion_tokens") is None:
        completion = max(0, total - prompt)
    if prompt is None or completion is None:
        return None
    if usage.keys() <= _PLAIN:
        return TokenUsage(prompt, completion)
    prompt_details, completion_details = usage.get("prompt_tokens_details"), usage.get("completion_tokens_details")
    reasoning = _parse_detail(completion_details, "reasoning_tokens") or _parse_detail(usage, "reasoning_tokens")
    if total and total == prompt + completion + reasoning:
        completion += reasoning  # what was thought is not counted
    cached = _parse_detail(prompt_details, "cached_tokens")
    if not (cached or usage.keys().isdisjoint(_CACHED)):
        cached = max(_parse_detail(usage, name) for name in _CACHED)
    cached = min(cached, prompt)
    written = _parse_detail(prompt_details, "cache_write_tokens") or _parse_detail(usage, "cache_creation_input_tokens")
    written = min(written, prompt - cached)
    return TokenUsage(
        prompt,
        completion,
        cached,
        min(reasoning, completion),
        cache_write_tokens=written,
        prompt_audio_tokens=min(_parse_detail(prompt_details, "audio_tokens"), prompt),
        completion_audio_tokens=min(_parse_detail(completion_details, "audio_tokens"), completion),
    )


def _renamed(usage: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return counts under the names that OpenAI's chat completions have, of the Responses API's or of Anthropic's.

    Those of Anthropic's do not have what was read from a cache or written to it in `input_tokens`.
    """
    prompt = _parse_count(usage.get("input_tokens", 0))
    if "input_tokens_details" not in usage and prompt is not None:
        prompt += sum(_parse_detail(usage, f"cache_{done}_input_tokens") for done in ("read", "creation"))
    return {
        **usage,
        "prompt_tokens": prompt,
        "completion_tokens": usage.get("output_tokens", 0),
        "prompt_tokens_details": usage.get("input_tokens_details"),
        "completion_tokens_details": usage.get("output_tokens_details"),
    }


def no_smaller(before: Mapping[str, Any] | None, usage: dict[str, Any]) -> dict[str, Any]:
    """Return an exact usage object whose counts are at least those of the one `before`, of the same answer."""
    if before is not None and usage["prompt_tokens"] + usage["completion_tokens"] == 0:
        return {**before}
    if before is not None:
        for name in ("prompt_tokens", "completion_tokens"):
            usage[name] = max(usage[name], before[name])
        usage["total_tokens"] = usage["prompt_tokens"] + usage["completion_tokens"]
    return usage


def exact_usage(usage: object) -> dict[str, Any] | None:
    """Return a provider's usage object as OpenAI has it, with what is there besides, or None where it says nothing."""
    counts = parse_usage(usage)
    if counts is None or not isinstance(usage, dict):
        return None
    ours = render_usage(counts)
    exact: dict[str, Any] = {**usage}
    for name, count in ours.items():
        if isinstance(count, int):
            exact[name] = count
            continue
        said = exact.pop(name, None)
        # OpenAI's counts are there or are left out; none is null.
        details = _details(said) if isinstance(said, dict) else {}
        details |= {key: tokens for key, tokens in count.items() if tokens or key in details}
        if details:
            exact[name] = details
    return exact


def _details(said: Mapping[str, Any]) -> dict[str, Any]:
    """Return details without what is null, and with counts as numbers where they came as strings."""
    read = {key: _parse_count(tokens) if isinstance(tokens, str) else tokens for key, tokens in said.items()}
    return {key: tokens for key, tokens in read.items() if tokens is not None}


def estimate_usage(request: Mapping[str, Any], text: str) -> TokenUsage:
    """Return a rough estimate for the answer `text` to the chat completion `request`, marked as estimated.

    It is about 4 bytes of UTF-8 a token, a few tokens for each message, a flat rate for each image, and a rate by size
    for each recording or file: good to some ten per cent for English prose, less so for code and other scripts. No
    tokenizer is consulted.
    """
    prompt = _TOKENS_PER_REPLY
    for message in request.get("messages") or ():
        prompt += _TOKENS_PER_MESSAGE + _estimate_message(message)
    for parameter in ("tools", "functions", "response_format", "prediction", "documents"):
        if request.get(parameter):
            prompt += _estimate_json(request[parameter])
    return TokenUsage(prompt, _estimate_text(text), estimated=True)


def estimate_demand(request: Mapping[str, Any], *, output_limit: int | None, whole: bool = False) -> TokenUsage:
    """Return what an answer to `request` may use: its prompt, and as many tokens as the request allows.

    Where it sets no limit, that is what the model writes at most if we know, but 4,096 unless `whole` is asked for.
    """
    prompt = estimate_usage(request, "").prompt_tokens
    most = longest_answer(request)
    if most is None:
        most = output_limit or _USUAL_ANSWER
        most = most if whole else min(most, _USUAL_ANSWER)
    most = max(most, *(_parse_count(request.get(name)) or 0 for name in _OTHER_LIMITS))
    return TokenUsage(prompt, most * (request.get("n") or 1), estimated=True)


def longest_answer(request: Mapping[str, Any]) -> int | None:
    """Return the most tokens of an answer that a chat completion allows; None if it sets no limit.

    Of two limits the larger counts: a provider may heed either.
    """
    return max((limit for name in _LIMITS if (limit := request.get(name)) is not None), default=None)


def render_usage(usage: TokenUsage) -> dict[str, Any]:
    """Return `usage` as OpenAI's usage object."""
    prompt = {"cached_tokens": usage.cached_tokens, "cache_write_tokens": usage.cache_write_tokens}
    completion = {"reasoning_tokens": usage.reasoning_tokens}
    if usage.prompt_audio_tokens:
        prompt["audio_tokens"] = usage.prompt_audio_tokens
    if usage.completion_audio_tokens:
        completion["audio_tokens"] = usage.completion_audio_tokens
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": prompt,
        "completion_tokens_details": completion,
    }


def _parse_count(value: object) -> int | None:
    if type(value) is int:
        return value if 0 <= value <= _MOST_TOKENS else None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str) and _DIGITS.fullmatch(value):
        value = int(value)
    return value if type(value) is int and 0 <= value <= _MOST_TOKENS else None


def _parse_detail(details: object, key: str) -> int:
    if not details:
        return 0
    value = details.get(key) if type(details) is dict or isinstance(details, Mapping) else None
    return 0 if value is None else _parse_count(value) or 0


def _estimate_message(message: Mapping[str, Any]) -> int:
    content = message.get("content")
    tokens = 0
    if isinstance(content, str):
        tokens = _estimate_text(content)
    elif isinstance(content, list):
        tokens = sum(map(_estimate_part, content))
    for field, value in message.items():
        if value and field not in _COUNTED_BY_MESSAGE:
            tokens += _estimate_field(field, value)
    return tokens


def _estimate_field(field: str, value: object) -> int:
    """Return what another field counts: its bytes, but the images that Ollama takes beside the content as media."""
    if field == "images" and isinstance(value, list):
        return sum(_TOKENS_PER_MEDIUM if isinstance(image, str | dict) else _estimate_json(image) for image in value)
    return _estimate_text(value) if isinstance(value, str) else _estimate_json(value)


def _estimate_part(part: Mapping[str, Any]) -> int:
    """Return what a part counts: all of its text, and where it is more than that, a medium by its kind and size."""
    kind = part.get("type")
    tokens = sum(_estimate_text(text) for key in ("text", "refusal") if isinstance(text := part.get(key), str))
    if kind in {"text", "refusal"}:
        return tokens
    medium = part.get(kind) if isinstance(kind, str) else None
    sizes = [len(value) for value in medium.values() if isinstance(value, str)] if isinstance(medium, Mapping) else ()
    by_size = sum(sizes) // _BYTES_PER_TOKEN_OF[kind] if kind in _BYTES_PER_TOKEN_OF else 0
    return tokens + max(_TOKENS_PER_MEDIUM, by_size)


def _estimate_json(value: object) -> int:
    return -(-len(orjson.dumps(value)) // _BYTES_PER_TOKEN)


def _estimate_text(text: str) -> int:
    size = len(text) if text.isascii() else len(text.encode(errors="replace"))
    return -(-size // _BYTES_PER_TOKEN)
