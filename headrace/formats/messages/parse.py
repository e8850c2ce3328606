"""Anthropic's answers, streams and errors as OpenAI's: https://platform.claude.com/docs/en/api/messages.

Written from the types of Anthropic's own Python client of 2026-08-07, read 2026-11. Thinking becomes
`reasoning_content`, and with its signature `thinking_blocks`, which the next request sends back unchanged, each in its
place: one between calls has `calls_before`, the number of calls before it. For those behind text `thinking_origin` has
the characters of text before each, which in a stream only the fold knows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from headrace.errors import (
    UpstreamError,
    UpstreamKeyError,
    UpstreamOverloadedError,
    UpstreamRateLimitError,
    UpstreamRefusedError,
    UpstreamTimeoutError,
    shorten,
)
from headrace.formats.chat.tool_calls import render_arguments
from headrace.formats.failures import reported, says_too_long
from headrace.formats.lenient import parse_lenient_json, parse_object
from headrace.formats.skipped import skip

Json = dict[str, Any]

_FINISH_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
_ERRORS: Mapping[str, type[UpstreamError]] = {
    "invalid_request_error": UpstreamRefusedError,
    "not_found_error": UpstreamRefusedError,
    "request_too_large": UpstreamRefusedError,
    "authentication_error": UpstreamKeyError,
    "permission_error": UpstreamKeyError,
    "billing_error": UpstreamKeyError,
    "rate_limit_error": UpstreamRateLimitError,
    "timeout_error": UpstreamTimeoutError,
    "overloaded_error": UpstreamOverloadedError,
}

# Tells these thoughts from those of a chat server, so that no chat server gets them.
_ORIGIN = {"format": "messages"}
_NONSENSE = "The model's provider answered with something that is not a message of Anthropic's format."


def parse_completion(body: bytes) -> dict[str, Any]:
    """Return the `chat.completion` of a whole answer, but for what the job gives it.

    Raises:
        UpstreamError: The body is not a message, or reports an error.
    """
    answer = _parse_object(body)
    try:
        message = _parse_content(answer["content"])
        choice = {"index": 0, "message": message, "logprobs": None, **_finish(answer["stop_reason"])}
        completion = {"choices": [choice], **_known(answer.get("model"), answer.get("usage") or {})}
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError):
        raise _nonsense() from None
    return completion


def _parse_content(blocks: Sequence[Json]) -> Json:
    text: list[str] = []
    thoughts: list[str] = []
    signed: list[Json] = []
    after: list[int] = []
    calls: list[Json] = []
    for block in blocks:
        match block["type"]:
            case "text":
                text.append(block["text"])
            case "thinking":
                thoughts.append(block["thinking"])
                signed.append(_placed(block, len(calls)))
                after += [len("".join(text))] if text else []
            case "redacted_thinking":
                signed.append(_placed(block, len(calls)))
                after += [len("".join(text))] if text else []
            case "tool_use":
                arguments = render_arguments(block["input"])
                function = {"name": block["name"], "arguments": arguments}
                calls.append({"id": block["id"], "type": "function", "function": function})
            case unknown:
                skip("anthropic", f"content block {unknown}")
    message: Json = {"role": "assistant", "content": "".join(text) if text else None, "refusal": None}
    # A thought may come without its text, as a signature alone.
    if thought := "".join(thoughts):
        message["reasoning_content"] = thought
    if signed:
        message["thinking_blocks"] = signed
        message["thinking_origin"] = _ORIGIN | ({"after": after} if after else {})
    if calls:
        message["tool_calls"] = calls
    return message


def _placed(thought: Json, calls: int) -> Json:
    """Return a thought with the number of calls that the model has made before it."""
    return thought | ({"calls_before": calls} if calls else {})


def _finish(reason: str) -> dict[str, str]:
    """Return a choice's finish reason, and the provider's own word for it.

    Raises:
        UpstreamError: Headrace does not know the reason.
    """
    if reason not in _FINISH_REASONS:
        raise UpstreamError(f"The model's provider ended its answer with the reason {shorten(reason)!r}.")
    return {"finish_reason": _FINISH_REASONS[reason], "native_finish_reason": reason}


def _known(model: str | None, usage: Mapping[str, Any]) -> Json:
    """Return the model and the usage of a completion, as far as its provider names them."""
    said: Json = {"model": model} if model else {}
    return said | {"usage": _usage(usage)} if usage else said


def _usage(usage: Mapping[str, Any]) -> Json:
    """Return OpenAI's usage, whose prompt includes the tokens read from the cache and written to it."""
    read, written = usage.get("cache_read_input_tokens") or 0, usage.get("cache_creation_input_tokens") or 0
    prompt, completion = (usage.get("input_tokens") or 0) + read + written, usage.get("output_tokens") or 0
    details = usage.get("output_tokens_details") or {}
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": read, "cache_write_tokens": written},
        "completion_tokens_details": {"reasoning_tokens": details.get("thinking_tokens") or 0},
    }


def parse_stream() -> StreamParser:
    """Return the parser of a new stream."""
    return StreamParser()


class StreamParser:
    """Reads a stream of content blocks."""

    texts_are_alike = True

    def __init__(self) -> None:
        self.done = False
        self._said: Json = {}
        self._usage: Json = {}
        self._calls = 0
        self._block: Json = {}
        self._fragments = False
        self._events: Mapping[str, Callable[[Json], Sequence[Json]]] = {
            "content_block_delta": self._delta,
            "content_block_start": self._block_start,
            "content_block_stop": self._block_stop,
            "message_start": self._start,
            "message_delta": self._end,
            "message_stop": self._stop,
            "ping": lambda _: (),
        }

    def parse(self, data: bytes, name: bytes = b"") -> Sequence[dict[str, Any]]:  # noqa: ARG002  (the data has it too)
        """Return the chunks of an event.

        Raises:
            UpstreamError: The event is not Anthropic's, or reports an error.
        """
        event = _parse_object(data)
        try:
            handle = self._events.get(event["type"], self._skip)
            return handle(event)
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError):
            raise _nonsense() from None

    @staticmethod
    def _skip(event: Json) -> Sequence[Json]:
        skip("anthropic", f"event {event['type']}")
        return ()

    def _chunk(self, delta: Json) -> tuple[Json]:
        return ({**self._said, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]},)

    def _start(self, event: Json) -> Sequence[Json]:
        message = event["message"]
        if message.get("model"):
            self._said = {"model": message["model"]}
        self._count(message.get("usage"))
        return self._chunk({"role": "assistant", "content": None})

    def _block_start(self, event: Json) -> Sequence[Json]:
        self._block = block = dict(event["content_block"])
        match block["type"]:
            case "tool_use":
                self._calls += 1
                self._fragments = False
                function = {"name": block["name"], "arguments": ""}
                call = {"index": self._calls - 1, "id": block["id"], "type": "function", "function": function}
                return self._chunk({"tool_calls": [call]})
            case "text" if block["text"]:
                return self._chunk({"content": block["text"]})
            case "text" | "thinking" | "redacted_thinking":
                return ()
            case unknown:
                skip("anthropic", f"content block {unknown}")
                return ()

    def _delta(self, event: Json) -> Sequence[Json]:
        delta = event["delta"]
        match delta["type"]:
            case "text_delta":
                return self._chunk({"content": delta["text"]})
            case "input_json_delta":
                if self._block["type"] != "tool_use" or not delta["partial_json"]:
                    return ()
                self._fragments = True
                return self._more_arguments(delta["partial_json"])
            case "thinking_delta":
                self._block["thinking"] += delta["thinking"]
                return self._chunk({"reasoning_content": delta["thinking"]}) if delta["thinking"] else ()
            case "signature_delta":
                self._block["signature"] = delta["signature"]
            case unknown:
                skip("anthropic", f"delta {unknown}")
        return ()

    def _more_arguments(self, text: str) -> Sequence[Json]:
        return self._chunk({"tool_calls": [{"index": self._calls - 1, "function": {"arguments": text}}]})

    def _block_stop(self, _: Json) -> Sequence[Json]:
        block, self._block = self._block, {}
        kind = block.get("type")
        if kind in ("thinking", "redacted_thinking"):
            return self._chunk({"thinking_blocks": [_placed(block, self._calls)], "thinking_origin": dict(_ORIGIN)})
        if kind == "tool_use" and not self._fragments:
            return self._more_arguments(render_arguments(block["input"]))
        return ()

    def _end(self, event: Json) -> Sequence[Json]:
        self._count(event.get("usage"))
        reason = event["delta"].get("stop_reason")
        if reason is None:
            return ()
        return ({**self._said, "choices": [{"index": 0, "delta": {}, **_finish(reason)}]},)

    def _stop(self, _: Json) -> Sequence[Json]:
        self.done = True
        return ({**self._said, "choices": [], "usage": _usage(self._usage)},) if self._usage else ()

    def _count(self, usage: Json | None) -> None:
        """Keep the newest counts. Each is a total up to now, so a smaller one is ignored."""
        for name, count in (usage or {}).items():
            known = self._usage.get(name)
            if count is not None and not (type(count) is int and type(known) is int and count < known):
                self._usage[name] = count


def parse_error(body: bytes) -> dict[str, Any]:
    """Return OpenAI's error object, as far as the body of an error status has one."""
    try:
        document = parse_lenient_json(body)
    except ValueError:
        return {}
    error = document.get("error") if isinstance(document, dict) else None
    if not isinstance(error, dict) or not isinstance(message := error.get("message"), str):
        return {}
    return {"message": message, "code": "context_length_exceeded" if says_too_long(message) else None}


def _parse_object(data: bytes) -> Json:
    document = parse_object(data, _NONSENSE)
    if document.get("type") == "error":
        error = document.get("error")
        kind = error.get("type") if isinstance(error, dict) else None
        raise reported(_ERRORS.get(str(kind), UpstreamError), parse_error(data))
    return document


def _nonsense() -> UpstreamError:
    return UpstreamError(_NONSENSE)
