"""Gemini's answers, streams and errors as OpenAI's: https://ai.google.dev/api/generate-content.

Written from the types of Google's own Python client of 2026-08-21, read 2026-11. A whole answer has the form of a
stream's event, so one parser reads both. Thought becomes `reasoning_content`. A call's signature becomes
`extra_content.google.thought_signature`, as in Google's own OpenAI-compatible answers. `extra_content.origin` tells it
from theirs, so that no chat server gets it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from headrace.errors import (
    UpstreamError,
    UpstreamKeyError,
    UpstreamOverloadedError,
    UpstreamRateLimitError,
    UpstreamRefusedError,
    UpstreamTimeoutError,
    shorten,
)
from headrace.formats.chat.fold import Fold
from headrace.formats.chat.tool_calls import render_arguments
from headrace.formats.failures import reported, says_too_long
from headrace.formats.lenient import parse_lenient_json, parse_object
from headrace.formats.skipped import skip

Json = dict[str, Any]

_FINISH_REASONS = {
    "STOP": "stop",
    "MAX_TOKENS": "length",
    "SAFETY": "content_filter",
    "RECITATION": "content_filter",
    "BLOCKLIST": "content_filter",
    "PROHIBITED_CONTENT": "content_filter",
    "SPII": "content_filter",
    "IMAGE_SAFETY": "content_filter",
    "IMAGE_PROHIBITED_CONTENT": "content_filter",
    "IMAGE_RECITATION": "content_filter",
    "UNEXPECTED_TOOL_CALL": "stop",  # a call of a tool that the request does not offer
}
_ERRORS: Mapping[int, type[UpstreamError]] = {
    400: UpstreamRefusedError,
    401: UpstreamKeyError,
    403: UpstreamKeyError,
    404: UpstreamRefusedError,
    429: UpstreamRateLimitError,
    503: UpstreamOverloadedError,
    504: UpstreamTimeoutError,
}

_NONSENSE = "The model's provider answered with something that is not Gemini's format."


def parse_completion(body: bytes) -> dict[str, Any]:
    """Return the `chat.completion` of a whole answer, but for what the job gives it.

    Raises:
        UpstreamError: The body is not a whole answer, or reports an error.
    """
    fold, parser = Fold(), StreamParser()
    chunks = [chunk for answer in _answers(body) for chunk in parser.parse(answer)]
    for chunk in chunks:
        fold.add(chunk)
    if not fold.finished:
        raise _nonsense()
    completion = fold.completion(id="", created=0, model=chunks[0]["model"])
    return {name: value for name, value in completion.items() if name not in ("id", "object", "created")}


def _answers(body: bytes) -> list[bytes]:
    """Return the answers of a body: one, or all of a stream as one array, as Google sends it without `alt=sse`."""
    if not body.lstrip().startswith(b"["):
        return [body]
    try:
        document = parse_lenient_json(body)
    except ValueError:
        return [body]
    return [orjson.dumps(answer) for answer in document]


def parse_stream() -> StreamParser:
    """Return the parser of a new stream."""
    return StreamParser()


class StreamParser:
    """Reads a stream of candidates. No event marks its end: the last finish reason does."""

    texts_are_alike = True

    def __init__(self) -> None:
        self.done = False
        self._calls: dict[int, int] = {}

    def parse(self, data: bytes, name: bytes = b"") -> Sequence[dict[str, Any]]:  # noqa: ARG002  (its events have none)
        """Return the chunks of an event.

        Raises:
            UpstreamError: The event is not Gemini's, or reports an error, or the prompt was blocked.
        """
        answer = _parse_object(data)
        try:
            return self._parse(answer)
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError):
            raise _nonsense() from None

    def _parse(self, answer: Json) -> Sequence[Json]:
        model = answer.get("modelVersion", "")
        candidates = answer.get("candidates")
        if not candidates:
            return self._without_candidates(answer, model)
        chunks: list[Json] = []
        finished = False
        for candidate in candidates:
            index = candidate.get("index", 0)
            if index not in self._calls:
                self._calls[index] = 0
                chunks.append(_chunk(model, index, {"role": "assistant", "content": None}))
            for part in (candidate.get("content") or {}).get("parts") or ():
                delta = self._delta(part, index, answer)
                if delta is not None:
                    chunks.append(_chunk(model, index, delta))
            if (reason := candidate.get("finishReason")) is not None:
                chunks.append(self._finish(model, index, reason, candidate))
                finished = True
            elif candidate.get("logprobsResult"):
                chunks.append(_chunk(model, index, {}))
                chunks[-1]["choices"][0]["logprobs"] = _logprobs(candidate["logprobsResult"])
        if finished and (usage := answer.get("usageMetadata")) is not None:
            chunks.append({"model": model, "choices": [], "usage": _usage(usage)})
        return chunks

    def _without_candidates(self, answer: Json, model: str) -> Sequence[Json]:
        reason = (answer.get("promptFeedback") or {}).get("blockReason")
        if reason is not None:
            raise UpstreamRefusedError(f"The model's provider blocked the prompt: {reason}.", code="content_filter")
        usage = answer.get("usageMetadata")
        if usage is None:
            raise _nonsense()
        return ({"model": model, "choices": [], "usage": _usage(usage)},)

    def _delta(self, part: Json, index: int, answer: Json) -> Json | None:
        if "text" in part:
            return {"reasoning_content" if part.get("thought") else "content": part["text"]}
        if "functionCall" in part:
            return {"tool_calls": [self._call(part, index, answer)]}
        if "thoughtSignature" not in part:
            skip("gemini", f"part {', '.join(part)}")
        return None

    def _call(self, part: Json, index: int, answer: Json) -> Json:
        called = part["functionCall"]
        number = self._calls[index]
        self._calls[index] += 1
        call = {
            "index": number,
            "id": called.get("id") or _call_id(answer, f"{index}/{number}"),
            "type": "function",
            "function": {
                "name": called["name"],
                "arguments": render_arguments(called.get("args") or {}),
            },
        }
        if signature := part.get("thoughtSignature"):
            call["extra_content"] = {"google": {"thought_signature": signature}, "origin": {"format": "gemini"}}
        return call

    def _finish(self, model: str, index: int, reason: str, candidate: Json) -> Json:
        if reason not in _FINISH_REASONS:
            said = candidate.get("finishMessage")
            because = f": {said[:500]}" if isinstance(said, str) else "."
            raise UpstreamError(f"The model's provider ended its answer with the reason {shorten(reason)!r}{because}")
        ours = _FINISH_REASONS[reason]
        chunk = _chunk(model, index, {}, "tool_calls" if reason == "STOP" and self._calls[index] else ours)
        choice = chunk["choices"][0]
        choice["native_finish_reason"] = reason
        if candidate.get("logprobsResult"):
            choice["logprobs"] = _logprobs(candidate["logprobsResult"])
        return chunk


def _call_id(answer: Json, place: str) -> str | None:
    """Return an id for the call at a place of an answer, always the same one; None if the answer has no id."""
    if not (named := answer.get("responseId")):
        return None
    return f"call_{hashlib.sha256(f'{named}/{place}'.encode()).hexdigest()[:24]}"


def _chunk(model: str, index: int, delta: Json, finish_reason: str | None = None) -> Json:
    return {"model": model, "choices": [{"index": index, "delta": delta, "finish_reason": finish_reason}]}


def _logprobs(result: Json) -> Json:
    chosen, top = result.get("chosenCandidates") or [], result.get("topCandidates") or []
    content = [
        _logprob(token) | {"top_logprobs": [_logprob(other) for other in (top[place]["candidates"] if top else ())]}
        for place, token in enumerate(chosen)
    ]
    return {"content": content, "refusal": None}


def _logprob(candidate: Json) -> Json:
    token = candidate.get("token", "")
    return {"token": token, "logprob": candidate.get("logProbability", 0.0), "bytes": list(token.encode())}


def _usage(usage: Json) -> Json:
    """Return OpenAI's usage, whose prompt includes the results of tools, and whose completion includes thought."""
    prompt = (usage.get("promptTokenCount") or 0) + (usage.get("toolUsePromptTokenCount") or 0)
    thought = usage.get("thoughtsTokenCount") or 0
    completion = (usage.get("candidatesTokenCount") or 0) + thought
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {
            "cached_tokens": usage.get("cachedContentTokenCount") or 0,
            "audio_tokens": _audio(usage.get("promptTokensDetails")),
        },
        "completion_tokens_details": {
            "reasoning_tokens": thought,
            "audio_tokens": _audio(usage.get("candidatesTokensDetails")),
        },
    }


def _audio(details: Sequence[Json] | None) -> int:
    return sum(detail.get("tokenCount") or 0 for detail in details or () if detail.get("modality") == "AUDIO")


def parse_error(body: bytes) -> dict[str, Any]:
    """Return OpenAI's error object and `retry_after`, as far as the body of an error status has them."""
    try:
        document = parse_lenient_json(body)
    except ValueError:
        return {}
    if isinstance(document, list) and document:
        document = document[0]
    error = document.get("error") if isinstance(document, dict) else None
    if not isinstance(error, dict) or not isinstance(message := error.get("message"), str):
        return {}
    said: Json = {"message": message, "code": None}
    if says_too_long(message):
        said["code"] = "context_length_exceeded"
    details = error.get("details")
    for detail in details if isinstance(details, list) else ():
        if not isinstance(detail, dict):
            continue
        if detail.get("reason") == "API_KEY_INVALID":
            said["code"] = "invalid_api_key"
        delay = detail.get("retryDelay")
        if isinstance(delay, str) and delay.removesuffix("s").replace(".", "", 1).isdecimal():
            said["retry_after"] = float(delay.removesuffix("s"))
    return said


def _parse_object(data: bytes) -> Json:
    document = parse_object(data, _NONSENSE)
    if "error" in document:
        error = document["error"]
        code = error.get("code") if isinstance(error, dict) else None
        kind = _ERRORS.get(code, UpstreamError) if type(code) is int else UpstreamError
        raise reported(kind, parse_error(data))
    return document


def _nonsense() -> UpstreamError:
    return UpstreamError(_NONSENSE)
