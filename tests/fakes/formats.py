"""What the fake provider says in each wire format: the same answer and the same error, as the real one would word it.

Written from the providers' documents, as the recordings are, and not with the code under test.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]

PATHS = {
    re.compile(r".*/chat/completions$"): "openai",
    re.compile(r".*/responses(?:/compact)?$"): "responses",
    re.compile(r".*/messages$"): "anthropic",
    re.compile(r".*/models/(?P<model>[^/:]+):(?P<how>generateContent|streamGenerateContent\?alt=sse)$"): "gemini",
}

_ANTHROPIC_STOPS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}
_ANTHROPIC_ERRORS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    529: "overloaded_error",
}
_GEMINI_FINISHES = {"stop": "STOP", "length": "MAX_TOKENS", "tool_calls": "STOP", "content_filter": "SAFETY"}
_GEMINI_ERRORS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


@dataclass(frozen=True)
class Said:
    """An answer, in no format yet. Usage is OpenAI's."""

    model: str
    pieces: Sequence[str]
    usage: Json | None
    finish: str = "stop"
    thoughts: Sequence[str] = ()
    calls: Sequence[tuple[str, str, Json]] = field(default=())
    """Id, name and arguments."""


def anthropic_usage(usage: Json) -> Json:
    """Return OpenAI's usage as Anthropic counts it: the cache's tokens apart."""
    details = usage.get("prompt_tokens_details") or {}
    read, written = details.get("cached_tokens", 0), details.get("cache_write_tokens", 0)
    return {
        "input_tokens": usage["prompt_tokens"] - read - written,
        "cache_read_input_tokens": read,
        "cache_creation_input_tokens": written,
        "output_tokens": usage["completion_tokens"],
    }


def anthropic_whole(said: Said) -> Json:
    """Return a Message."""
    content: list[Json] = []
    if said.thoughts:
        content.append({"type": "thinking", "thinking": "".join(said.thoughts), "signature": "c2ln"})
    if said.pieces:
        content.append({"type": "text", "text": "".join(said.pieces)})
    content += [{"type": "tool_use", "id": id_, "name": name, "input": given} for id_, name, given in said.calls]
    return {
        "id": "msg_upstream",
        "type": "message",
        "role": "assistant",
        "model": said.model,
        "content": content,
        "stop_reason": _ANTHROPIC_STOPS[said.finish],
        "stop_sequence": None,
        "usage": anthropic_usage(said.usage or {"prompt_tokens": 0, "completion_tokens": 0}),
    }


def anthropic_events(said: Said) -> list[Json]:
    """Return the events of the same Message."""
    whole = anthropic_whole(said)
    usage = whole["usage"]
    begun = {**whole, "content": [], "stop_reason": None, "usage": {**usage, "output_tokens": 1}}
    events: list[Json] = [{"type": "message_start", "message": begun}, {"type": "ping"}]
    for index, block in enumerate(whole["content"]):
        match block["type"]:
            case "thinking":
                start: Json = {"type": "thinking", "thinking": "", "signature": ""}
                deltas: list[Json] = [{"type": "thinking_delta", "thinking": text} for text in said.thoughts]
                deltas.append({"type": "signature_delta", "signature": block["signature"]})
            case "text":
                start = {"type": "text", "text": ""}
                deltas = [{"type": "text_delta", "text": text} for text in said.pieces]
            case _:
                start = {**block, "input": {}}
                text = json.dumps(block["input"])
                deltas = [{"type": "input_json_delta", "partial_json": part} for part in ("", text[:5], text[5:])]
        events.append({"type": "content_block_start", "index": index, "content_block": start})
        events += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
        events.append({"type": "content_block_stop", "index": index})
    ended = {"stop_reason": whole["stop_reason"], "stop_sequence": None}
    counts = {"output_tokens": usage["output_tokens"]}
    return [*events, {"type": "message_delta", "delta": ended, "usage": counts}, {"type": "message_stop"}]


def responses_whole(said: Said) -> Json:
    """Return a Response."""
    output: list[Json] = []
    if said.thoughts:
        summary = [{"type": "summary_text", "text": "".join(said.thoughts)}]
        output.append({"id": "rs_upstream", "type": "reasoning", "summary": summary, "encrypted_content": "c2ln"})
    if said.pieces:
        text = {"type": "output_text", "text": "".join(said.pieces), "annotations": [], "logprobs": []}
        message = {"id": "msg_upstream", "type": "message", "status": "completed", "role": "assistant"}
        output.append({**message, "content": [text]})
    for number, (id_, name, given) in enumerate(said.calls):
        call = {"id": f"fc_upstream{number}", "type": "function_call", "status": "completed", "call_id": id_}
        output.append({**call, "name": name, "arguments": json.dumps(given)})
    reason = {"length": "max_output_tokens", "content_filter": "content_filter"}.get(said.finish)
    return {
        "id": "resp_upstream",
        "object": "response",
        "created_at": 1_700_000_000,
        "status": "completed" if reason is None else "incomplete",
        "error": None,
        "incomplete_details": None if reason is None else {"reason": reason},
        "model": said.model,
        "output": output,
        "usage": None if said.usage is None else responses_usage(said.usage),
    }


def responses_usage(usage: Json) -> Json:
    """Return chat's usage as the Responses API names it."""
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    thought = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens", 0)
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": cached},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": thought},
        "total_tokens": usage["total_tokens"],
    }


def responses_events(said: Said) -> list[Json]:
    """Return the events of the same Response."""
    whole = responses_whole(said)
    begun = {**whole, "status": "in_progress", "output": [], "usage": None, "incomplete_details": None}
    events: list[Json] = [{"type": f"response.{kind}", "response": begun} for kind in ("created", "in_progress")]
    for index, item in enumerate(whole["output"]):
        events += _item_events(index, item, said)
    events.append({"type": f"response.{whole['status']}", "response": whole})
    return [{**event, "sequence_number": number} for number, event in enumerate(events)]


def _item_events(index: int, item: Json, said: Said) -> list[Json]:
    at: Json = {"item_id": item["id"], "output_index": index}
    match item["type"]:
        case "reasoning":
            empty: Json = {"summary": []}
            within, part = {**at, "summary_index": 0}, item["summary"][0]
            told = _told("response.reasoning_summary_text", within, said.thoughts, {"text": part["text"]})
            told = _parted("response.reasoning_summary_part", within, part, told)
        case "message":
            empty = {"content": [], "status": "in_progress"}
            within, part = {**at, "content_index": 0}, item["content"][0]
            told = _told("response.output_text", within, said.pieces, {"text": part["text"], "logprobs": []})
            told = _parted("response.content_part", within, part, told)
        case _:
            empty = {"arguments": "", "status": "in_progress"}
            text = item["arguments"]
            whole = {"name": item["name"], "arguments": text}
            told = _told("response.function_call_arguments", at, (text[:5], text[5:]), whole)
    added = {"type": "response.output_item.added", "output_index": index, "item": {**item, **empty}}
    return [added, *told, {"type": "response.output_item.done", "output_index": index, "item": item}]


def _told(kind: str, at: Json, pieces: Sequence[str], whole: Json) -> list[Json]:
    more: Json = {"logprobs": []} if "logprobs" in whole else {}
    deltas = [{"type": f"{kind}.delta", **at, "delta": piece, **more} for piece in pieces]
    return [*deltas, {"type": f"{kind}.done", **at, **whole}]


def _parted(kind: str, at: Json, part: Json, told: list[Json]) -> list[Json]:
    empty = {**part, "text": ""}
    return [{"type": f"{kind}.added", **at, "part": empty}, *told, {"type": f"{kind}.done", **at, "part": part}]


def gemini_whole(said: Said, choices: int = 1) -> Json:
    """Return a GenerateContentResponse with the same candidate as many times as asked."""
    parts: list[Json] = [{"text": text, "thought": True} for text in said.thoughts]
    if said.pieces:
        parts.append({"text": "".join(said.pieces)})
    parts += [{"functionCall": {"id": id_, "name": name, "args": given}} for id_, name, given in said.calls]
    return _gemini(said, [parts] * choices, last=True)


def gemini_events(said: Said, choices: int = 1) -> list[Json]:
    """Return the events of the same response."""
    steps: list[Json] = [{"text": text, "thought": True} for text in said.thoughts]
    steps += [{"text": text} for text in said.pieces]
    steps += [{"functionCall": {"id": id_, "name": name, "args": given}} for id_, name, given in said.calls]
    return [
        *(_gemini(said, [[step]] * choices, last=False) for step in steps),
        _gemini(said, [[]] * choices, last=True),
    ]


def _gemini(said: Said, candidates: Sequence[list[Json]], *, last: bool) -> Json:
    ended = {"finishReason": _GEMINI_FINISHES[said.finish]} if last else {}
    answer: Json = {
        "candidates": [
            {"content": {"parts": parts, "role": "model"}, "index": index, **ended}
            for index, parts in enumerate(candidates)
        ],
        "modelVersion": said.model,
        "responseId": "upstream",
    }
    if last and said.usage is not None:
        thought = (said.usage.get("completion_tokens_details") or {}).get("reasoning_tokens", 0)
        answer["usageMetadata"] = {
            "promptTokenCount": said.usage["prompt_tokens"],
            "candidatesTokenCount": said.usage["completion_tokens"] - thought,
            "thoughtsTokenCount": thought,
            "cachedContentTokenCount": (said.usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0),
            "totalTokenCount": said.usage["total_tokens"],
        }
    return answer


def error(kind: str, status: int, message: str, *, retry_after: float | str | None = None) -> Json:
    """Return an error's body."""
    if kind == "anthropic":
        return {
            "type": "error",
            "error": {"type": _ANTHROPIC_ERRORS.get(status, "api_error"), "message": message},
            "request_id": "req_upstream",
        }
    if kind == "gemini":
        details: list[Json] = (
            []
            if retry_after is None
            else [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": f"{retry_after}s"}]
        )
        about: Json = {"code": status, "message": message, "status": _GEMINI_ERRORS.get(status, "INTERNAL")}
        return {"error": {**about, "details": details}}
    return {"error": {"message": message, "type": "scripted_error", "param": None, "code": None}}


def problem(kind: str, headers: Any, body: Json) -> str | None:
    """Return what the real provider would refuse a request for, or None."""
    if kind == "anthropic":
        if "anthropic-version" not in headers:
            return "anthropic-version: header is required"
        if type(body.get("max_tokens")) is not int:
            return "max_tokens: Field required"
        for index, message in enumerate(body.get("messages") or ()):
            for block in message["content"] if isinstance(message["content"], list) else ():
                if block["type"] == "text" and not block["text"].strip():
                    return f"messages.{index}: text content blocks must contain non-whitespace text"
        if not body.get("messages"):
            return "messages: at least one message is required"
    if kind == "responses":
        if body.get("store") is not False:
            return "store: the tests' provider keeps nothing"
        if "messages" in body or not body.get("input"):
            return "Missing required parameter: 'input'."
        if "function" in body.get("tools", [{}])[0]:
            return "Missing required parameter: 'tools[0].name'."
        if body.get("max_output_tokens", 16) < 16:
            return "Invalid 'max_output_tokens': integer below minimum value."
    if kind == "gemini" and not all(content.get("parts") for content in body.get("contents") or [{}]):
        return "GenerateContentRequest.contents: contents is not specified"
    return None
