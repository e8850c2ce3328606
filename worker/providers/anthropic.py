"""Anthropic's Messages: https://platform.claude.com/docs/en/api/messages.

Written from the types of Anthropic's own Python client of 2026-08-07, read 2026-11. Where the two vocabularies differ:

* System and developer messages, wherever they stand, become `system`: there is no such turn.
* Thinking is `reasoning_content`, and with its signature `thinking_blocks`, which go back as they came.
* There is no mode of any JSON: for `json_object` the model is told so, after all other instructions.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import orjson

from headrace.chat.support import Thinking, claude_samples, claude_thinking
from headrace.chat.tool_calls import render_arguments
from headrace.errors import (
    InvalidRequestError,
    UpstreamError,
    UpstreamKeyError,
    UpstreamRateLimitError,
    UpstreamRefusedError,
    UpstreamTimeoutError,
)
from worker.providers.lenient import parse_json
from worker.providers.media import Medium, file_of, image_of
from worker.providers.skipped import skip
from worker.providers.tools import offered_tools, parse_arguments

MANY_CHOICES = False

_VERSION = "2023-06-01"
_Json = dict[str, Any]

# What a request without a limit gets where the model's own is not known: `max_tokens` is required.
_OUTPUT_LIMIT = 8192
_LEAST_BUDGET = 1024
# Tokens of thought for models that are given a budget and not an effort.
_BUDGETS = {"minimal": 1024, "low": 2048, "medium": 8192, "high": 16384, "xhigh": 24576, "max": 32768}
_EFFORTS = {"minimal": "low"}

_IMAGES = frozenset({"image/jpeg", "image/png", "image/gif", "image/webp"})
_CALL_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_ONLY_JSON = "Answer with one JSON object and nothing else: no prose before or after it, no code fence around it."

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
}
_TOO_LONG = re.compile(r"prompt is too long|exceeds? (the )?(model'?s? )?context (limit|window)", re.IGNORECASE)


def render_url(base_url: str, *, model: str, stream: bool) -> str:  # noqa: ARG001  (other formats have both in the URL)
    """Return where the request goes."""
    return f"{base_url.rstrip('/')}/messages"


def render_headers(secret: str | None) -> dict[str, str]:
    """Return the headers that carry the provider's key and the format's version."""
    return {"anthropic-version": _VERSION} | ({} if secret is None else {"x-api-key": secret})


# ---------------------------------------------------------------------------------------------------------------------
# The request


def render_request(request: Mapping[str, Any], *, model: str, stream: bool, output_limit: int | None) -> bytes:
    """Return the body.

    Raises:
        InvalidRequestError: It holds a medium that the format cannot carry, or no text at all.
    """
    given = {name: value for name, value in request.items() if value is not None}
    most = given.get("max_completion_tokens") or given.get("max_tokens") or output_limit or _OUTPUT_LIMIT
    system, messages = _render_messages(given["messages"])
    form = given.get("response_format", {})
    if form.get("type") == "json_object":
        system.append({"type": "text", "text": _ONLY_JSON})
    if not messages:
        # A conversation needs a turn of the user's.
        system, messages = [], [{"role": "user", "content": system}]
    body: _Json = {"model": model, "max_tokens": most, "messages": messages}
    if not messages[0]["content"]:
        raise InvalidRequestError("Invalid 'messages': there is no text in them.", param="messages")
    if system:
        body["system"] = system
    if stream:
        body["stream"] = True
    thinking = claude_thinking(model, given | {"max_tokens": most})
    body |= _render_sampling(given, model, thinking) | _render_tools(given)
    body |= _render_effort(given, thinking, most)
    if form.get("type") == "json_schema":
        schema = _closed(form["json_schema"].get("schema") or {"type": "object"})
        body.setdefault("output_config", {})["format"] = {"type": "json_schema", "schema": schema}
    user = given.get("safety_identifier") or given.get("user")
    if user:
        body["metadata"] = {"user_id": user}
    if "cache_control" in given:
        body["cache_control"] = given["cache_control"]
    return orjson.dumps(body)


def _render_sampling(given: _Json, model: str, thinking: Thinking | None) -> _Json:
    stop = given.get("stop", [])
    sequences = [text for text in ([stop] if isinstance(stop, str) else stop) if text.strip()]
    sampling: _Json = {"stop_sequences": sequences} if sequences else {}
    if thinking in (None, Thinking.EFFORT) and claude_samples(model):
        if "temperature" in given:
            sampling["temperature"] = min(given["temperature"], 1)
        sampling |= {name: given[name] for name in ("top_p", "top_k") if name in given}
    return sampling


def _render_effort(given: _Json, thinking: Thinking | None, most: int) -> _Json:
    if "thinking" in given:
        return {"thinking": given["thinking"]}
    effort = given.get("reasoning_effort")
    if effort in (None, "none"):
        return {}
    if thinking is Thinking.BUDGET:
        budget = max(_LEAST_BUDGET, min(_BUDGETS[effort], most - _LEAST_BUDGET))
        return {"thinking": {"type": "enabled", "budget_tokens": budget}}
    if thinking is None:
        return {}
    rendered: _Json = {"output_config": {"effort": _EFFORTS.get(effort, effort)}}
    return rendered | ({"thinking": {"type": "adaptive"}} if thinking is Thinking.ADAPTIVE else {})


def _render_tools(given: _Json) -> _Json:
    tools, choice = offered_tools(given)
    if not given.get("tools"):
        # What was called before has to be declared, even if nothing may be called now.
        called = dict.fromkeys(call["function"]["name"] for call in _calls(given["messages"]))
        declared = [{"name": name, "input_schema": {"type": "object"}} for name in called]
        return {"tools": declared, "tool_choice": {"type": "none"}} if declared else {}
    if isinstance(choice, str):
        rendered: _Json = {"type": "any" if choice == "required" else choice}
    else:
        rendered = {"type": "tool", "name": choice["function"]["name"]}
    if given.get("parallel_tool_calls") is False and rendered["type"] != "none":
        rendered = {**rendered, "disable_parallel_tool_use": True}
    body: _Json = {"tools": [_render_tool(tool) for tool in tools]}
    # What happens anyway is not said.
    return body if rendered == {"type": "auto"} else {**body, "tool_choice": rendered}


def _render_tool(tool: Mapping[str, Any]) -> _Json:
    function = tool["function"]
    rendered = {"name": function["name"], "input_schema": {"type": "object", **(function.get("parameters") or {})}}
    if function.get("description"):
        rendered["description"] = function["description"]
    if function.get("strict"):
        rendered["strict"] = True
    return rendered | _cache_control(tool) | _cache_control(function)


def _cache_control(holder: Mapping[str, Any]) -> _Json:
    return {"cache_control": holder["cache_control"]} if holder.get("cache_control") else {}


def _calls(messages: Sequence[_Json]) -> Iterator[_Json]:
    for message in messages:
        yield from message.get("tool_calls") or ()


def _render_messages(messages: Sequence[_Json]) -> tuple[list[_Json], list[_Json]]:
    """Return the system blocks and the turns: consecutive messages of a side are one turn, as is an answer to tools."""
    system: list[_Json] = []
    turns: list[_Json] = []
    for index, message in enumerate(messages):
        role = message["role"]
        param = f"messages[{index}]"
        if role in ("system", "developer"):
            system += _render_content(message, param)
            continue
        side = "assistant" if role == "assistant" else "user"
        render = {"assistant": _render_assistant, "tool": _render_result}.get(role, _render_content)
        blocks = render(message, param)
        if not blocks:
            continue
        if turns and turns[-1]["role"] == side:
            turns[-1]["content"] += blocks
        else:
            turns.append({"role": side, "content": blocks})
    for turn in turns:
        # In a turn of the user's, what tools answered comes first.
        turn["content"].sort(key=lambda block: block["type"] != "tool_result" and turn["role"] == "user")
    if turns and turns[-1]["role"] == "assistant":
        _trim(turns[-1]["content"])
    return system, turns


def _trim(blocks: list[_Json]) -> None:
    """Cut white space that ends an answer which the model is to go on with: the provider refuses it."""
    if blocks[-1]["type"] == "text":
        blocks[-1]["text"] = blocks[-1]["text"].rstrip()
        if not blocks[-1]["text"]:
            blocks.pop()


def _render_content(message: _Json, param: str) -> list[_Json]:
    content = message.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
    blocks = [
        _render_part(part, f"{param}.content[{index}]") | _cache_control(part)
        for index, part in enumerate(parts)
        if part["type"] != "text" or part["text"].strip()  # the provider refuses a text of nothing
    ]
    if blocks:
        blocks[-1] |= _cache_control(message)
    return blocks


def _render_part(part: _Json, param: str) -> _Json:
    match part["type"]:
        case "text":
            return {"type": "text", "text": part["text"]}
        case "refusal":
            return {"type": "text", "text": part["refusal"]}
        case "image_url":
            return _render_image(image_of(part, param), param)
        case _:
            return _render_file(file_of(part, param), param)


def _render_image(image: Medium, param: str) -> _Json:
    if image.url is not None:
        return {"type": "image", "source": {"type": "url", "url": image.url}}
    if image.media_type not in _IMAGES:
        raise _unsupported(image, param)
    return {"type": "image", "source": {"type": "base64", "media_type": image.media_type, "data": image.data}}


def _render_file(file: Medium, param: str) -> _Json:
    if file.media_type in _IMAGES:
        return _render_image(file, param)
    if file.media_type == "application/pdf":
        source: _Json = {"type": "base64", "media_type": "application/pdf", "data": file.data}
    elif file.media_type.startswith("text/"):
        source = {"type": "text", "media_type": "text/plain", "data": file.text(param)}
    else:
        raise _unsupported(file, param)
    return {"type": "document", "source": source} | ({"title": file.name} if file.name else {})


def _unsupported(medium: Medium, param: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"Invalid '{param}': this model's provider takes no {medium.media_type}.", param=param, code="invalid_value"
    )


def _render_assistant(message: _Json, param: str) -> list[_Json]:
    blocks: list[_Json] = list(message.get("thinking_blocks") or ())
    blocks += _render_content(message, param)
    if message.get("refusal"):
        blocks.append({"type": "text", "text": message["refusal"]})
    for call in message.get("tool_calls") or ():
        function = call["function"]
        blocks.append(
            {
                "type": "tool_use",
                "id": _call_id(call["id"]),
                "name": function["name"],
                "input": parse_arguments(function["arguments"]),
            }
        )
    return blocks


def _render_result(message: _Json, param: str) -> list[_Json]:
    result: _Json = {"type": "tool_result", "tool_use_id": _call_id(message["tool_call_id"])}
    content = _render_content({"content": message["content"]}, param)
    return [result | ({"content": content} if content else {}) | _cache_control(message)]


def _call_id(name: str) -> str:
    """Return an id that the provider takes: the same for the same, and another for another."""
    if _CALL_ID.fullmatch(name):
        return name
    return f"call_{hashlib.sha256(name.encode()).hexdigest()[:32]}"


_UNSUPPORTED_KEYWORDS = frozenset({
    "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength", "maxLength",
    "maxItems", "uniqueItems", "minProperties", "maxProperties",
})  # fmt: skip


def _closed(schema: Any) -> Any:
    """Return a JSON Schema as structured outputs take it: objects closed, and without bounds, which they refuse."""
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed: _Json = {}
    for key, value in schema.items():
        if key in ("properties", "$defs", "definitions") and isinstance(value, dict):
            closed[key] = {name: _closed(inner) for name, inner in value.items()}
        elif key in ("enum", "const", "default", "examples", "required"):
            closed[key] = value
        elif key not in _UNSUPPORTED_KEYWORDS and not (key == "minItems" and value not in (0, 1)):
            closed[key] = _closed(value)
    if closed.get("type") == "object":
        closed["additionalProperties"] = False
    return closed


# ---------------------------------------------------------------------------------------------------------------------
# The answer


def parse_completion(body: bytes) -> dict[str, Any]:
    """Return the `chat.completion` of a whole answer, but for what the job gives it.

    Raises:
        UpstreamError: It is none.
    """
    answer = _parse_object(body)
    try:
        message = _parse_content(answer["content"])
        choice = {"index": 0, "message": message, "logprobs": None, **_finish(answer["stop_reason"])}
        completion = {"choices": [choice], **_known(answer.get("model"), answer.get("usage") or {})}
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError):
        raise _nonsense() from None
    return completion


def _parse_content(blocks: Sequence[_Json]) -> _Json:
    text: list[str] = []
    thoughts: list[str] = []
    signed: list[_Json] = []
    calls: list[_Json] = []
    for block in blocks:
        match block["type"]:
            case "text":
                text.append(block["text"])
            case "thinking":
                thoughts.append(block["thinking"])
                signed.append(block)
            case "redacted_thinking":
                signed.append(block)
            case "tool_use":
                # Spaced as the provider streams it.
                arguments = render_arguments(block["input"])
                function = {"name": block["name"], "arguments": arguments}
                calls.append({"id": block["id"], "type": "function", "function": function})
            case unknown:
                skip("anthropic", f"content block {unknown}")
    message: _Json = {"role": "assistant", "content": "".join(text) if text else None, "refusal": None}
    if thoughts:
        message["reasoning_content"] = "".join(thoughts)
    if signed:
        message["thinking_blocks"] = signed
    if calls:
        message["tool_calls"] = calls
    return message


def _finish(reason: str) -> dict[str, str]:
    """Return a choice's finish reason, and the provider's own word, which may say more."""
    if reason not in _FINISH_REASONS:
        raise UpstreamError(f"The model's provider ended its answer with the reason {reason[:100]!r}.")
    return {"finish_reason": _FINISH_REASONS[reason], "native_finish_reason": reason}


def _known(model: str | None, usage: Mapping[str, Any]) -> _Json:
    """Return the model and the usage of a completion, as far as its provider said them."""
    said: _Json = {"model": model} if model else {}
    return said | {"usage": _usage(usage)} if usage else said


def _usage(usage: Mapping[str, Any]) -> _Json:
    """Return OpenAI's usage: what was read from and written to the cache is part of the prompt there."""
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
    """Where a stream of content blocks stands."""

    def __init__(self) -> None:
        self.done = False
        self._said: _Json = {}
        self._usage: _Json = {}
        self._calls = 0
        self._block: _Json = {}
        self._fragments = False
        self._events: Mapping[str, Callable[[_Json], Sequence[_Json]]] = {
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
            UpstreamError: It makes no sense, or it is an error.
        """
        event = _parse_object(data)
        try:
            handle = self._events.get(event["type"], self._skip)
            return handle(event)
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError):
            raise _nonsense() from None

    @staticmethod
    def _skip(event: _Json) -> Sequence[_Json]:
        skip("anthropic", f"event {event['type']}")
        return ()

    def _chunk(self, delta: _Json) -> tuple[_Json]:
        return ({**self._said, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]},)

    def _start(self, event: _Json) -> Sequence[_Json]:
        message = event["message"]
        if message.get("model"):
            self._said = {"model": message["model"]}
        self._count(message.get("usage"))
        return self._chunk({"role": "assistant", "content": None})

    def _block_start(self, event: _Json) -> Sequence[_Json]:
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

    def _delta(self, event: _Json) -> Sequence[_Json]:
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
                return self._chunk({"reasoning_content": delta["thinking"]})
            case "signature_delta":
                self._block["signature"] = delta["signature"]
            case unknown:
                skip("anthropic", f"delta {unknown}")
        return ()

    def _more_arguments(self, text: str) -> Sequence[_Json]:
        return self._chunk({"tool_calls": [{"index": self._calls - 1, "function": {"arguments": text}}]})

    def _block_stop(self, _: _Json) -> Sequence[_Json]:
        block, self._block = self._block, {}
        kind = block.get("type")
        if kind in ("thinking", "redacted_thinking"):
            return self._chunk({"thinking_blocks": [block]})
        if kind == "tool_use" and not self._fragments:
            return self._more_arguments(render_arguments(block["input"]))
        return ()

    def _end(self, event: _Json) -> Sequence[_Json]:
        self._count(event.get("usage"))
        reason = event["delta"].get("stop_reason")
        if reason is None:
            return ()
        return ({**self._said, "choices": [{"index": 0, "delta": {}, **_finish(reason)}]},)

    def _stop(self, _: _Json) -> Sequence[_Json]:
        self.done = True
        return ({**self._said, "choices": [], "usage": _usage(self._usage)},) if self._usage else ()

    def _count(self, usage: _Json | None) -> None:
        """Take note of counts. They are of all up to now, so one that comes again replaces the last, unless smaller."""
        for name, count in (usage or {}).items():
            known = self._usage.get(name)
            if count is not None and not (type(count) is int and type(known) is int and count < known):
                self._usage[name] = count


def parse_error(body: bytes) -> dict[str, Any]:
    """Return OpenAI's error object, or what there is of one, from the body of an error status."""
    try:
        document = parse_json(body)
    except ValueError:
        return {}
    error = document.get("error") if isinstance(document, dict) else None
    if not isinstance(error, dict) or not isinstance(message := error.get("message"), str):
        return {}
    return {"message": message, "code": "context_length_exceeded" if _TOO_LONG.search(message) else None}


def _parse_object(data: bytes) -> _Json:
    try:
        document = parse_json(data)
    except ValueError:
        raise UpstreamError("The model's provider answered with something that is not JSON.") from None
    if not isinstance(document, dict):
        raise _nonsense()
    if document.get("type") == "error":
        error = document.get("error")
        kind = error.get("type") if isinstance(error, dict) else None
        said = parse_error(data)
        failure = _ERRORS.get(str(kind), UpstreamError)
        message = f"The model's provider reported an error: {said.get('message', 'it did not say which')[:500]}"
        raise UpstreamKeyError if failure is UpstreamKeyError else failure(message, code=said.get("code"))
    return document


def _nonsense() -> UpstreamError:
    return UpstreamError("The model's provider answered with something that is not a message of Anthropic's format.")
