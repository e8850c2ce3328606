"""A chat request as the Responses API's: https://platform.openai.com/docs/api-reference/responses/create, read 2026-11.

The provider stores nothing: each request holds the whole conversation. What a reasoning model thought comes encrypted,
as `reasoning_items` of the assistant's message, and goes back from there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson

from headrace.formats.chat.generations import responses_reason
from headrace.formats.chat.support import LEAST_OUTPUT, LimitParameter
from headrace.formats.responses.options import ENCRYPTED, LOGPROBS
from headrace.formats.tools import CHOICES

Json = dict[str, Any]

MANY_CHOICES = False

_PASSED = (
    "temperature",
    "top_p",
    "top_logprobs",
    "moderation",
    "metadata",
    "service_tier",
    "user",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "prompt_cache_options",
)
# Characters of a call's id, at most.
_LONGEST_CALL_ID = 64


def render_url(base_url: str, *, model: str, stream: bool) -> str:  # noqa: ARG001  (other formats have both in the URL)
    """Return where the request goes."""
    return f"{base_url.rstrip('/')}/responses"


def render_headers(secret: str | None) -> dict[str, str]:
    """Return the headers that carry the provider's key."""
    return {} if secret is None else {"authorization": f"Bearer {secret}"}


def render_request(
    request: Mapping[str, Any],
    *,
    model: str,
    stream: bool,
    output_limit: int | None,  # noqa: ARG001  (OpenAI has its own default)
    limit_parameter: LimitParameter | None = None,  # noqa: ARG001  (the format has one name for it)
) -> bytes:
    """Return the body."""
    given = {name: value for name, value in request.items() if value is not None}
    body: Json = {"model": model, "input": list(_render_messages(given["messages"])), "store": False}
    if stream:
        body["stream"] = True
    body |= {name: given[name] for name in _PASSED if name in given}
    if most := given.get("max_completion_tokens") or given.get("max_tokens"):
        body["max_output_tokens"] = max(most, LEAST_OUTPUT)
    if "reasoning_effort" in given:
        body["reasoning"] = {"effort": given["reasoning_effort"]}
    if text := _render_text(given):
        body["text"] = text
    if include := _render_include(given, model):
        body["include"] = include
    return orjson.dumps(body | _render_tools(given))


def _render_include(given: Json, model: str) -> list[str]:
    include = [LOGPROBS] if given.get("logprobs") else []
    return [*include, ENCRYPTED] if responses_reason(model, given) else include


def _render_text(given: Json) -> Json:
    text: Json = {}
    form = given.get("response_format")
    if form is not None and form["type"] == "json_schema":
        schema = {name: value for name, value in form["json_schema"].items() if value is not None}
        text["format"] = {"type": "json_schema", "schema": {"type": "object"}, **schema}
    elif form is not None and form["type"] != "text":
        text["format"] = form
    if "verbosity" in given:
        text["verbosity"] = given["verbosity"]
    return text


# ---------------------------------------------------------------------------------------------------------------------
# Tools


def _render_tools(given: Json) -> Json:
    tools = [_render_tool(tool) for tool in given.get("tools") or ()]
    body: Json = {}
    if tools and "tool_choice" in given:
        body["tool_choice"] = _render_choice(given["tool_choice"])
    if tools and "parallel_tool_calls" in given:
        body["parallel_tool_calls"] = given["parallel_tool_calls"]
    if "web_search_options" in given:
        tools.append(_render_search(given["web_search_options"]))
    return body | {"tools": tools} if tools else {}


def _render_tool(tool: Json) -> Json:
    if tool["type"] == "custom":
        custom = {name: value for name, value in tool["custom"].items() if value is not None}
        if (form := custom.get("format")) is not None and form["type"] == "grammar":
            custom["format"] = {"type": "grammar", **form["grammar"]}
        return {"type": "custom", **custom}
    if tool["type"] != "function":
        return tool  # an agent's, which a provider of the Responses API may run
    function = tool["function"]
    rendered = {
        "type": "function",
        "name": function["name"],
        "parameters": function.get("parameters") or {"type": "object", "properties": {}},
        "strict": bool(function.get("strict")),  # the Responses API would take it for true, chat for false
    }
    return rendered | ({"description": function["description"]} if function.get("description") else {})


def _render_choice(choice: str | Json) -> str | Json:
    if isinstance(choice, str):
        return CHOICES.get(choice, choice)
    if choice["type"] != "allowed_tools":
        return _flat(choice)
    allowed = choice["allowed_tools"]
    return {"type": "allowed_tools", "mode": allowed["mode"], "tools": [_flat(tool) for tool in allowed["tools"]]}


def _flat(tool: Json) -> Json:
    """Return a reference to a tool, whose name is beside the type."""
    kind = tool.get("type", "function")
    inner = tool.get(kind) if isinstance(kind, str) else None
    return {"type": kind, "name": inner.get("name")} if isinstance(inner, dict) else tool


def _render_search(options: Json) -> Json:
    search: Json = {"type": "web_search"}
    if options.get("search_context_size"):
        search["search_context_size"] = options["search_context_size"]
    if where := options.get("user_location"):
        search["user_location"] = {**where["approximate"], "type": "approximate"}
    return search


# ---------------------------------------------------------------------------------------------------------------------
# Messages


def _render_messages(messages: Sequence[Json]) -> Iterator[Json]:
    """Yield the items that the messages are."""
    custom: set[str] = set()
    for message in messages:
        match message["role"]:
            case "assistant":
                calls = message.get("tool_calls") or ()
                custom |= {call["id"] for call in calls if call["type"] == "custom"}
                yield from _render_assistant(message, calls)
            case "tool":
                kind = "custom_tool_call" if message["tool_call_id"] in custom else "function_call"
                output = _render_content(message["content"])
                yield {"type": f"{kind}_output", "call_id": _call_id(message["tool_call_id"]), "output": output}
            case role:
                yield {"type": "message", "role": role, "content": _render_content(message["content"])}


def _render_content(content: str | Sequence[Json]) -> str | list[Json]:
    return content if isinstance(content, str) else [_render_part(part) for part in content]


def _render_part(part: Json) -> Json:
    match part["type"]:
        case "text":
            rendered = {"type": "input_text", "text": part["text"]}
        case "image_url":
            image = part["image_url"]
            rendered = {"type": "input_image", "image_url": image["url"], "detail": image.get("detail") or "auto"}
        case "file":
            file = {name: value for name, value in part["file"].items() if value is not None}
            rendered = {"type": "input_file", **file}
        case "input_audio":
            rendered = {"type": "input_audio", "input_audio": part["input_audio"]}
        case _:
            rendered = part  # an agent's, which the provider judges
    mark = part.get("prompt_cache_breakpoint")
    return rendered if mark is None else {**rendered, "prompt_cache_breakpoint": mark}


def _render_assistant(message: Json, calls: Sequence[Json]) -> Iterator[Json]:
    """Yield the items of an answer: each thought before what came of it, the text, and the calls."""
    thoughts: dict[int, list[Json]] = {}
    for item in message.get("reasoning_items") or ():
        thought = {name: value for name, value in item.items() if name != "calls_before"}
        place = item.get("calls_before")
        thoughts.setdefault(place if type(place) is int else 0, []).append(thought)
    yield from thoughts.pop(0, ())
    if content := _render_answer(message):
        yield {"type": "message", "role": "assistant", "content": content}
    for number, call in enumerate(calls, start=1):
        yield _render_call(call)
        yield from thoughts.pop(number, ())
    for rest in thoughts.values():
        yield from rest


def _render_answer(message: Json) -> str | list[Json]:
    content = message.get("content") or ()
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
    if message.get("refusal"):
        parts.append({"type": "refusal", "refusal": message["refusal"]})
    if all(part["type"] == "text" for part in parts):
        return "".join(part["text"] for part in parts)  # a form that every server takes
    return [
        {"type": "output_text", "text": part["text"], "annotations": []}
        if part["type"] == "text"
        else {"type": "refusal", "refusal": part["refusal"]}
        for part in parts
    ]


def _render_call(call: Json) -> Json:
    kind = call["type"]
    said, key = call[kind], "input" if kind == "custom" else "arguments"
    name = "custom_tool_call" if kind == "custom" else "function_call"
    return {"type": name, "call_id": _call_id(call["id"]), "name": said["name"], key: said[key]}


def _call_id(name: str) -> str:
    """Return a call's id in a length that OpenAI takes. Different ids stay different."""
    if 0 < len(name) <= _LONGEST_CALL_ID:
        return name
    return f"call_{hashlib.sha256(name.encode(errors='replace')).hexdigest()[:32]}"
