"""A chat request as Anthropic's: https://platform.claude.com/docs/en/api/messages.

Written from the types of Anthropic's own Python client of 2026-08-07, read 2026-11. System and developer messages
become `system`, wherever they stand: Anthropic has no such turn. Anthropic has no mode for any JSON object either, so
for `json_object` the last of the instructions asks for one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson

from headrace.errors import InvalidRequestError, invalid_parameter
from headrace.formats.chat.dropped import asks_for_json, loose_tools
from headrace.formats.chat.generations import (
    Thinking,
    claude_effort,
    claude_sampling,
    claude_thinking,
    claude_unthinking,
)
from headrace.formats.chat.support import LimitParameter
from headrace.formats.closed_schema import close_schema
from headrace.formats.media import Medium, file_of, image_of
from headrace.formats.messages.parse import Json
from headrace.formats.tools import offered_tools, parse_arguments

MANY_CHOICES = False

_VERSION = "2023-06-01"

_ONLY_JSON = "Answer with one JSON object and nothing else: no prose before or after it, no code fence around it."

# Tokens of `max_tokens`, which Anthropic requires, where neither the request nor the model's entry has a limit.
_OUTPUT_LIMIT = 8192
# Tokens of thought that Anthropic takes at least.
_LEAST_BUDGET = 1024
# Tokens of thought for models that are given a budget and not an effort.
_BUDGETS = {"minimal": 1024, "low": 2048, "medium": 8192, "high": 16384, "xhigh": 24576, "max": 32768}

_IMAGES = frozenset({"image/jpeg", "image/png", "image/gif", "image/webp"})
_CALL_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")


def render_url(base_url: str, *, model: str, stream: bool) -> str:  # noqa: ARG001  (other formats have both in the URL)
    """Return where the request goes."""
    return f"{base_url.rstrip('/')}/messages"


def render_headers(secret: str | None) -> dict[str, str]:
    """Return the headers that carry the provider's key and the format's version."""
    return {"anthropic-version": _VERSION} | ({} if secret is None else {"x-api-key": secret})


def render_request(
    request: Mapping[str, Any],
    *,
    model: str,
    stream: bool,
    output_limit: int | None,
    limit_parameter: LimitParameter | None = None,  # noqa: ARG001  (the format has one name for it)
) -> bytes:
    """Return the body.

    Raises:
        InvalidRequestError: The request holds a medium that the format cannot carry, or no text at all.
    """
    given = {name: value for name, value in request.items() if value is not None}
    most = given.get("max_completion_tokens") or given.get("max_tokens") or output_limit or _OUTPUT_LIMIT
    system, messages = _render_messages(given["messages"])
    schema = _answers_schema(given)
    if schema is None and asks_for_json(given):
        system.append({"type": "text", "text": _ONLY_JSON})
    if not messages:
        # A conversation needs a turn of the user's.
        system, messages = [], [{"role": "user", "content": system}]
    body: Json = {"model": model, "max_tokens": most, "messages": messages}
    if not messages[0]["content"]:
        raise invalid_parameter("messages", "there is no text in them", code=None)
    if system:
        body["system"] = system
    if stream:
        body["stream"] = True
    limited = given | {"max_tokens": most}
    body |= _render_stop(given) | claude_sampling(model, limited) | _render_tools(given)
    body |= _render_effort(given, model, claude_thinking(model, limited), most)
    if schema is not None:
        body.setdefault("output_config", {})["format"] = {"type": "json_schema", "schema": close_schema(schema)}
    user = given.get("safety_identifier") or given.get("user")
    if user:
        body["metadata"] = {"user_id": user}
    if "cache_control" in given:
        body["cache_control"] = given["cache_control"]
    return orjson.dumps(body)


def _answers_schema(given: Json) -> Json | None:
    """Return the JSON Schema that the answer has to follow; None without a schema, or with an empty one."""
    form = given.get("response_format", {})
    return form["json_schema"].get("schema") or None if form.get("type") == "json_schema" else None


def _render_stop(given: Json) -> Json:
    stop = given.get("stop", [])
    sequences = [text for text in ([stop] if isinstance(stop, str) else stop) if text.strip()]
    return {"stop_sequences": sequences} if sequences else {}


def _render_effort(given: Json, model: str, thinking: Thinking | None, most: int) -> Json:
    if "thinking" in given:
        return {"thinking": given["thinking"]}
    effort = given.get("reasoning_effort")
    if effort is None:
        return {}
    if effort == "none":
        return claude_unthinking(model)
    if thinking is Thinking.BUDGET:
        budget = max(_LEAST_BUDGET, min(_BUDGETS[effort], most - _LEAST_BUDGET))
        return {"thinking": {"type": "enabled", "budget_tokens": budget}}
    if thinking is None:
        return {}
    rendered: Json = {"output_config": {"effort": claude_effort(model, effort)}}
    # Models since 4.7 send the signature of a thought alone, unless a request asks for its summary.
    adaptive = {"thinking": {"type": "adaptive", "display": "summarized"}}
    return rendered | (adaptive if thinking is Thinking.ADAPTIVE else {})


def _render_tools(given: Json) -> Json:
    tools, choice = offered_tools(given)
    if not given.get("tools"):
        # Anthropic requires every tool that the conversation has called to be declared.
        called = dict.fromkeys(call["function"]["name"] for call in _calls(given["messages"]))
        declared = [{"name": name, "input_schema": {"type": "object"}} for name in called]
        return {"tools": declared, "tool_choice": {"type": "none"}} if declared else {}
    if isinstance(choice, str):
        rendered: Json = {"type": "any" if choice == "required" else choice}
    else:
        rendered = {"type": "tool", "name": choice["function"]["name"]}
    if given.get("parallel_tool_calls") is False and rendered["type"] != "none":
        rendered = {**rendered, "disable_parallel_tool_use": True}
    loose = loose_tools(given)
    body: Json = {"tools": [_render_tool(tool, loose) for tool in tools]}
    # `auto` is Anthropic's default.
    return body if rendered == {"type": "auto"} else {**body, "tool_choice": rendered}


def _render_tool(tool: Mapping[str, Any], loose: Sequence[str]) -> Json:
    """Return a tool, strict unless it is one of the `loose` ones."""
    function = tool["function"]
    strict = function.get("strict") and function["name"] not in loose
    schema = {"type": "object", **(function.get("parameters") or {})}
    rendered = {"name": function["name"], "input_schema": close_schema(schema) if strict else schema}
    if function.get("description"):
        rendered["description"] = function["description"]
    if strict:
        rendered["strict"] = True
    return rendered | _cache_control(tool) | _cache_control(function)


def _cache_control(holder: Mapping[str, Any]) -> Json:
    return {"cache_control": holder["cache_control"]} if holder.get("cache_control") else {}


def _calls(messages: Sequence[Json]) -> Iterator[Json]:
    for message in messages:
        yield from message.get("tool_calls") or ()


def _render_messages(messages: Sequence[Json]) -> tuple[list[Json], list[Json]]:
    """Return the system blocks and the turns: consecutive messages of a side are one turn, as is an answer to tools."""
    system: list[Json] = []
    turns: list[Json] = []
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


def _trim(blocks: list[Json]) -> None:
    """Cut white space that ends an answer which the model is to go on with: the provider refuses it."""
    if blocks[-1]["type"] == "text":
        blocks[-1]["text"] = blocks[-1]["text"].rstrip()
        if not blocks[-1]["text"]:
            blocks.pop()


def _render_content(message: Json, param: str) -> list[Json]:
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


def _render_part(part: Json, param: str) -> Json:
    match part["type"]:
        case "text":
            return {"type": "text", "text": part["text"]}
        case "refusal":
            return {"type": "text", "text": part["refusal"]}
        case "image_url":
            return _render_image(image_of(part, param), param)
        case _:
            return _render_file(file_of(part, param), param)


def _render_image(image: Medium, param: str) -> Json:
    if image.url is not None:
        return {"type": "image", "source": {"type": "url", "url": image.url}}
    if image.media_type not in _IMAGES:
        raise _unsupported(image, param)
    return {"type": "image", "source": {"type": "base64", "media_type": image.media_type, "data": image.data}}


def _render_file(file: Medium, param: str) -> Json:
    if file.media_type in _IMAGES:
        return _render_image(file, param)
    if file.media_type == "application/pdf":
        source: Json = {"type": "base64", "media_type": "application/pdf", "data": file.data}
    elif file.media_type.startswith("text/"):
        source = {"type": "text", "media_type": "text/plain", "data": file.text(param)}
    else:
        raise _unsupported(file, param)
    return {"type": "document", "source": source} | ({"title": file.name} if file.name else {})


def _unsupported(medium: Medium, param: str) -> InvalidRequestError:
    return invalid_parameter(param, f"this model's provider takes no {medium.media_type}")


def _render_assistant(message: Json, param: str) -> list[Json]:
    """Return the blocks of an answer: each thought in its place among text and calls, as the provider compares them."""
    texts = _render_content(message, param)
    if message.get("refusal"):
        texts.append({"type": "text", "text": message["refusal"]})
    calls = [_render_call(call) for call in message.get("tool_calls") or ()]
    thoughts = list(_placed_thoughts(message, length=sum(len(text["text"]) for text in texts)))
    pieces = _cut(texts, [place for _, place, _ in thoughts])
    blocks: list[Json] = []
    called = 0
    for (thought, _, before), piece in zip(thoughts, pieces, strict=False):
        blocks += [*piece, *calls[called:before], thought]
        called = max(called, before)
    return [*blocks, *pieces[-1], *calls[called:]]


def _placed_thoughts(message: Json, *, length: int) -> Iterator[tuple[Json, int, int]]:
    """Yield the thoughts of an answer, each with the characters of text and the number of calls before it.

    `length` is that of the text.
    """
    thoughts = message.get("thinking_blocks") or []
    after = (message.get("thinking_origin") or {}).get("after") or []
    for block, said in zip(thoughts, ([0] * len(thoughts) + after)[len(after) :], strict=True):
        thought = {name: value for name, value in block.items() if name != "calls_before"}
        before = block.get("calls_before")
        calls = max(0, before) if type(before) is int else 0
        if calls and not said:
            yield thought, length, calls  # text mostly comes before all calls
        elif said >= length and not message.get("tool_calls"):
            yield thought, 0, calls  # the provider refuses a thought at the end
        else:
            yield thought, said, calls


def _cut(texts: Sequence[Json], places: Sequence[int]) -> list[list[Json]]:
    """Return text blocks in pieces, one before each place and one behind the last; places are in characters."""
    pieces: list[list[Json]] = [[] for _ in range(len(places) + 1)]
    number = start = 0
    for block in texts:
        text, at, end = block["text"], 0, start + len(block["text"])
        while number < len(places) and places[number] < end:
            upto = max(at, places[number] - start)
            pieces[number].append(_piece(block, at, upto))
            at, number = upto, number + 1
        pieces[number].append(_piece(block, at, len(text)))
        start = end
    return [[block for block in piece if block["text"].strip()] for piece in pieces]


def _piece(block: Json, start: int, end: int) -> Json:
    """Return a piece of a text block. Only the last one that has text keeps a breakpoint of the cache.

    A request has at most four breakpoints. A piece without text is not sent.
    """
    piece = {**block, "text": block["text"][start:end]}
    if "cache_control" in piece and block["text"][end:].strip():
        del piece["cache_control"]
    return piece


def _render_call(call: Json) -> Json:
    function = call["function"]
    arguments = parse_arguments(function["arguments"])
    return {"type": "tool_use", "id": _call_id(call["id"]), "name": function["name"], "input": arguments}


def _render_result(message: Json, param: str) -> list[Json]:
    result: Json = {"type": "tool_result", "tool_use_id": _call_id(message["tool_call_id"])}
    content = _render_content({"content": message["content"]}, param)
    return [result | ({"content": content} if content else {}) | _cache_control(message)]


def _call_id(name: str) -> str:
    """Return a call's id in characters that Anthropic takes. Different ids stay different."""
    if _CALL_ID.fullmatch(name):
        return name
    return f"call_{hashlib.sha256(name.encode()).hexdigest()[:32]}"
